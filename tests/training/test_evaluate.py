"""Evaluation during a run: what is attacked and how, what it is summed up to, and over how many devices."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.evaluation import evaluate as measure
from rlpips_jax.evaluation.measurement import Conditions, Distances
from rlpips_jax.evaluation.placement import filled_size, over_all_devices
from rlpips_jax.evaluation.triplets import Triplets
from training import evaluate
from training.config import Lin

COUNT = 11


def draw_triplets(made: str = "ordinal") -> Triplets:
    """Noise of two strengths on noise; the teacher of crossed ones is sure of every other."""
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (COUNT, 32, 32, 3))
    p0, p1 = (np.clip(reference + rng.normal(0, sigma, reference.shape), 0, 255) for sigma in (20, 30))
    first, second, third = (image.astype(np.uint8) for image in (reference, p0, p1))
    sure = np.arange(COUNT) % 2 == 0 if made == "crossed" else None
    judgment = np.where(np.arange(COUNT) < 8, 0.0, 1.0).astype(np.float32)
    kind = "noise/blur" if made == "crossed" else "noise"
    return Triplets(first, second, third, judgment, (kind,) * COUNT, sure, made, {"made": made})


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.mark.slow
def test_many_devices_measure_what_one_does(tiny) -> None:
    """11 triplets fill no multiple of 8 devices. The attack is smooth: a sign would make rounding a whole step."""
    placement = over_all_devices()
    assert placement.num_devices == 8
    assert [filled_size(count, placement) for count in (6, 8, 9)] == [8, 8, 16]
    assert filled_size(6, None) == 6
    everywhere = jax.device_put(tiny, jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec()))
    attack = functools.partial(attacks.pgd, norm="l2", steps=2)
    # Batches of one shape, as the attack's start is drawn for all of a batch.
    alone = measure(tiny, draw_triplets(), attack, [0.3], batch=8)
    placed = measure(everywhere, draw_triplets(), attack, [0.3], batch=8, conditions=Conditions(placement=placement))
    for one, other in zip(alone, placed, strict=True):
        np.testing.assert_allclose(one.distances, other.distances, rtol=1e-5)
        assert one.scores == other.scores
    # By lpips-tiny the weaker noise is nearer but once, as 8 of the 11 judgments have it.
    assert placed[0].scores.two_afc.mean == pytest.approx(7 / 11)
    assert placed[1].scores.two_afc.mean < 0.5
    uneven = measure(everywhere, draw_triplets(), batch=6, conditions=Conditions(placement=placement))
    np.testing.assert_allclose(uneven[0].distances, alone[0].distances, rtol=1e-5)


@pytest.mark.slow
def test_radii_are_halved_and_crossed_triplets_are_not_attacked(tiny, monkeypatch) -> None:
    calls = []

    def record(metric: Lpips, triplets: Any, attack: Any, **options: Any) -> Any:
        calls.append((triplets.name, attack, attack.keywords["epsilon"], options["attacked"]))
        return evaluate.measurement.natural_distances(metric, triplets)

    monkeypatch.setattr(evaluate.measurement, "attacked_distances", record)
    config = Lin(evaluation_epsilons=("2/255", "0.5"), attacked="both", evaluation_steps=7, norm="l2")
    found = evaluate.scores(config, tiny, {made: draw_triplets(made) for made in ("ordinal", "crossed")})
    # Images are in [0, 1] here, radii are stated for [-1, 1].
    assert [(name, radius, attacked) for name, _, radius, attacked in calls] == [
        ("ordinal", 1 / 255, "both"),
        ("ordinal", 0.25, "both"),
    ]
    for _, attack, radius, _ in calls:
        assert attack.func is attacks.pgd
        assert attack.keywords == {"norm": "l2", "steps": 7, "epsilon": radius}
    assert found["ordinal"].keys() == {"natural", "2/255", "0.5"}
    assert found["crossed"].keys() == {"natural", "sure"}


def test_the_published_protocol_counts_majorities_too(tiny, monkeypatch) -> None:
    """The metric sides with 7 of 10 people in 8 triplets, with 1 of 10 in 2, and people are divided about the last."""
    triplets = with_judgments([0.3] * 8 + [0.9] * 2 + [0.5])
    near, far = np.full(COUNT, 1.0, np.float32), np.full(COUNT, 2.0, np.float32)
    natural, attacked = Distances(near, far), Distances(far, near)

    def scores(protocol: Literal["corrected", "published"], triplets: Triplets) -> dict[str, float]:
        monkeypatch.setattr(evaluate.measurement, "natural_distances", lambda *_, **__: iter([natural]))
        monkeypatch.setattr(evaluate.measurement, "attacked_distances", lambda *_, **__: iter([attacked]))
        config = Lin(protocol=protocol, evaluation_epsilons=("2/255",))
        return evaluate.scores(config, tiny, {"set": triplets})["set"]

    two_afc = {"natural": (8 * 0.7 + 2 * 0.1 + 0.5) / COUNT, "2/255": (8 * 0.3 + 2 * 0.9 + 0.5) / COUNT}
    corrected, published = scores("corrected", triplets), scores("published", triplets)
    assert corrected == pytest.approx(two_afc)
    assert published == pytest.approx(two_afc | {"majority": 8 / 10, "majority 2/255": 2 / 10})
    # It is still 2AFC that checkpoints are chosen by.
    assert evaluate.summary({"set": published}) == evaluate.summary({"set": corrected})
    assert scores("published", with_judgments([0.5] * COUNT)).keys() == two_afc.keys()


def with_judgments(judgment: list[float]) -> Triplets:
    return dataclasses.replace(draw_triplets(), judgment=np.array(judgment, np.float32))


@pytest.mark.slow
def test_scores_are_those_of_an_evaluation_that_nothing_interrupts(tiny) -> None:
    config = Lin(evaluation_epsilons=("0.6",), evaluation_steps=2, norm="l2")
    found = evaluate.scores(config, tiny, {"ordinal": draw_triplets()})
    attack = functools.partial(attacks.pgd, norm="l2", steps=2)
    natural, attacked = measure(tiny, draw_triplets(), attack, [0.3])
    assert found == {"ordinal": {"natural": natural.scores.two_afc.mean, "0.6": attacked.scores.two_afc.mean}}


def test_an_evaluation_is_left_off_between_batches(tiny, monkeypatch) -> None:
    """Each answer comes before the next batch is measured."""
    done = []

    def parts(name: str) -> Iterator[Distances]:
        for part in range(3):
            done.append((name, part))
            yield Distances(*np.ones((2, 4), np.float32))

    (assessed,) = measure(tiny, draw_triplets())
    monkeypatch.setattr(evaluate.measurement, "natural_distances", lambda *_, **__: parts("natural"))
    monkeypatch.setattr(evaluate.measurement, "attacked_distances", lambda *_, **__: parts("attacked"))
    monkeypatch.setattr(evaluate.measurement, "assess", lambda *_: assessed)
    config = Lin(evaluation_epsilons=("0.5",))
    for last in (("natural", 1), ("attacked", 0)):
        done.clear()
        with pytest.raises(evaluate.Interrupted):
            evaluate.scores(
                config, tiny, {"ordinal": draw_triplets()}, interrupted=lambda last=last: done[-1:] == [last]
            )
        assert done[-1] == last


SCORES = {"first": {"natural": 0.9, "2/255": 0.5}, "second": {"natural": 0.8, "sure": 0.1}}


def test_sets_count_alike_in_the_summary_and_sureness_does_not() -> None:
    assert evaluate.summary(SCORES) == pytest.approx((0.7 + 0.8) / 2)
    assert np.isnan(evaluate.summary({}))


def test_the_table_shows_both_metrics_side_by_side() -> None:
    before = {"first": {"natural": 0.95, "2/255": 0.1}, "second": {"natural": 0.85, "sure": 1.0}}
    lines = evaluate.table(before, SCORES, ("old", "new")).splitlines()
    assert " ".join(lines[0].split()) == "set old natural new natural old 2/255 new 2/255 old sure new sure"
    assert lines[1].split() == ["first", "95.00", "90.00", "10.00", "50.00"]
    assert lines[2].split() == ["second", "85.00", "80.00", "100.00", "10.00"]
    assert lines[3].split() == ["mean", "90.00", "85.00", "10.00", "50.00", "100.00", "10.00"]


def test_scores_are_rounded_for_the_card() -> None:
    assert evaluate.document({"set": {"natural": 2 / 3}}) == {"set": {"natural": 0.666667}}

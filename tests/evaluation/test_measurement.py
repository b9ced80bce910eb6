"""Evaluations: scores follow from distances, attacks act on whom they should, and parts make the whole."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import Randomness, noise, pgd
from rlpips_jax.attacks.expectations import judge_key
from rlpips_jax.backbones import Convolution, Pooling, Sequential
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.distortions import apply, draw
from rlpips_jax.evaluation.measurement import (
    Conditions,
    Distances,
    assess,
    attacked_distances,
    evaluate,
    join,
    natural_distances,
    shift_robustness,
    shifted_distances,
)
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets

COUNT = 7
NETWORK = Sequential("mini", (Convolution(0, 6, 5, stride=4),), Pooling("max", 3, 2), (0,))
ATTACK = functools.partial(pgd, steps=3)


@pytest.fixture(scope="module")
def metric() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def triplets() -> Triplets:
    """Patches with grain, blurred a little and a little more; every other one the other way round.

    At 64 pixels no image is smaller than a kernel, which the compiler of the tests would make slow.
    """
    rng = np.random.default_rng(0)
    images = [np.repeat(np.repeat(rng.integers(40, 216, (8, 8, 3), np.uint8), 8, 0), 8, 1) for _ in range(COUNT)]
    versions = [[apply(image, "blur", s, draw("blur", image.shape, rng)) for s in (0.2, 0.3)] for image in images]
    judgment = (np.arange(COUNT) % 2).astype(np.float32)
    p0, p1 = (
        np.stack([pair[index if h == 0 else 1 - index] for pair, h in zip(versions, judgment, strict=True)])
        for index in (0, 1)
    )
    kinds = tuple("blur" if index < 4 else "blur/noise" for index in range(COUNT))
    return Triplets(np.stack(images), p0, p1, judgment, kinds, np.arange(COUNT) < 5)


def test_natural_distances_are_those_of_the_library(metric: rl.Lpips, triplets: Triplets) -> None:
    d0, d1 = join(natural_distances(metric, triplets, batch=3))
    np.testing.assert_allclose(d0, rl.distance(triplets.reference, triplets.p0, metric), rtol=1e-5)
    np.testing.assert_allclose(d1, rl.distance(triplets.reference, triplets.p1, metric), rtol=1e-5)
    ((rest, _),) = natural_distances(metric, triplets, batch=3, start=6)
    np.testing.assert_array_equal(rest, d0[6:])


def test_an_attack_reverses_what_was_right_and_parts_make_the_whole(metric: rl.Lpips, triplets: Triplets) -> None:
    natural, harmless, attacked = evaluate(metric, triplets, ATTACK, [0.0, 16 / 255], batch=3)
    assert natural.scores.two_afc.mean == 1
    assert natural.scores.flip_rate is None
    assert harmless.scores.flip_rate is not None
    assert harmless.scores.flip_rate.mean == 0
    assert attacked.scores.flip_rate is not None
    assert attacked.scores.flip_rate.mean == attacked.scores.flip_rate.high == 1
    assert attacked.scores.two_afc.mean == 0
    options = {"attacked": "closer", "key": jax.random.key(0), "batch": 3}
    parts = list(attacked_distances(metric, triplets, functools.partial(ATTACK, epsilon=16 / 255), **options))
    assert [len(part.d0) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(join(iter(parts)).d0, attacked.distances.d0)
    (_, rest) = attacked_distances(metric, triplets, functools.partial(ATTACK, epsilon=16 / 255), start=3, **options)
    np.testing.assert_array_equal(rest.d1, parts[2].d1)


@pytest.mark.parametrize("side", ["closer", "farther"])
def test_only_whom_it_should_move(metric: rl.Lpips, triplets: Triplets, side: str) -> None:
    natural, attacked = evaluate(metric, triplets, ATTACK, [2 / 255], attacked=side, batch=3)
    first = triplets.judgment == (0 if side == "closer" else 1)
    before, after = (np.where(first, *each.distances) for each in (natural, attacked))
    still = (np.where(first, each.distances.d1, each.distances.d0) for each in (natural, attacked))
    np.testing.assert_allclose(*still, rtol=1e-5)
    assert np.all(after > before) if side == "closer" else after.mean() < before.mean()


@pytest.mark.slow
def test_the_worst_of_several_sides(metric: rl.Lpips, triplets: Triplets) -> None:
    def margin(attacked: str | tuple[str, ...]) -> np.ndarray:
        options = {"attacked": attacked, "key": jax.random.key(0), "batch": 3}
        d0, d1 = join(attacked_distances(metric, triplets, functools.partial(ATTACK, epsilon=2 / 255), **options))
        return np.where(triplets.judgment == 0, d0 - d1, d1 - d0)

    best = np.maximum(margin("closer"), margin("reference"))
    np.testing.assert_allclose(margin(("closer", "reference")), best, atol=1e-6)


@pytest.mark.slow
def test_all_parts_and_radii_are_one_program(metric: rl.Lpips, triplets: Triplets, compilations: list[str]) -> None:
    def run(part: Triplets, epsilon: float, seed: int) -> None:
        attack = functools.partial(noise, epsilon=epsilon)
        join(attacked_distances(metric, part, attack, key=jax.random.key(seed), batch=2))

    run(triplets.batch(0, 2), 0.01, 0)
    compilations.clear()
    run(triplets, 0.01, 0)
    run(triplets, 0.02, 1)
    assert compilations == []


@pytest.mark.slow
def test_metrics_of_one_network_compile_each_attack_once(
    metric: Any, triplets: Triplets, compilations: list[str]
) -> None:
    """Neither a name nor other weights are part of a program."""
    attacks = {"closer": ATTACK, "reference": functools.partial(noise, steps=2)}
    for side, attack in attacks.items():
        evaluate(metric, triplets, attack, [1 / 255], attacked=side, batch=4)
    assert compilations
    compilations.clear()
    unweighted = rl.load("lpips-tiny", unweighted=True)
    for other in (dataclasses.replace(metric, name="other"), dataclasses.replace(unweighted, name="unweighted")):
        for side, attack in attacks.items():
            evaluate(other, triplets, attack, [2 / 255], attacked=side, batch=4)
    assert compilations == []


def test_shifts(metric: rl.Lpips, triplets: Triplets) -> None:
    base, one, two = shift_robustness(metric, triplets, (1, 2), batch=4)
    assert [evaluation.epsilon for evaluation in (base, one, two)] == [0, 1, 2]
    size = triplets.reference.shape[1] - 2
    d0 = rl.distance(triplets.reference[:, :size, :size], triplets.p0[:, 1 : size + 1, 1 : size + 1], metric)
    np.testing.assert_allclose(one.distances.d0, d0, rtol=1e-5)
    unmoved = dataclasses.replace(triplets, p0=triplets.reference)
    assert np.all(join(shifted_distances(metric, unmoved, 0, 2)).d0 == 0)
    with pytest.raises(TripletsError, match="from 1 to 63 pixels"):
        shift_robustness(metric, triplets, (64,))


def test_scores_by_kind_count_a_triplet_of_two_distortions_for_both(triplets: Triplets) -> None:
    right = np.where(triplets.judgment == 0, 0.1, 0.2).astype(np.float32)
    distances = Distances(right, np.float32(0.3) - right)
    evaluation = assess(triplets, distances)
    assert {kind: scores.two_afc.count for kind, scores in evaluation.by_kind.items()} == {"blur": 7, "noise": 3}
    assert evaluation.scores.majority.mean == 1
    assert evaluation.scores.sure.count == 5
    reversed_ = assess(triplets, distances, Distances(*distances[::-1]), 0.5)
    assert reversed_.scores.flip_rate is not None
    assert reversed_.scores.flip_rate.mean == 1
    assert reversed_.epsilon == 0.5


@pytest.mark.slow
def test_triplets_that_share_images(metric: rl.Lpips, triplets: Triplets) -> None:
    images = np.concatenate([triplets.reference, triplets.p0, triplets.p1])
    indices = np.arange(COUNT)[:, None] + np.array([0, COUNT, 2 * COUNT])
    votes = np.stack([1 - triplets.judgment, triplets.judgment], axis=1).astype(np.int64)
    shared = IndexedTriplets(images, indices, votes, triplets.kinds)
    one, other = (evaluate(metric, each, ATTACK, [1 / 255], batch=3) for each in (triplets, shared))
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left.distances, right.distances, rtol=1e-4, atol=1e-6)


def test_an_attack_needs_epsilons(metric: rl.Lpips, triplets: Triplets) -> None:
    with pytest.raises(TripletsError, match="give both, or neither"):
        evaluate(metric, triplets, ATTACK)
    with pytest.raises(TripletsError, match="give both, or neither"):
        evaluate(metric, triplets, epsilons=[0.1])
    with pytest.raises(TripletsError, match="no triplets"):
        evaluate(metric, triplets.batch(0, 0))


@pytest.mark.parametrize("batch", [0, -3])
def test_a_batch_has_a_triplet_or_more(metric: rl.Lpips, triplets: Triplets, batch: int) -> None:
    attack = functools.partial(ATTACK, epsilon=0.1)
    for call in (
        lambda: evaluate(metric, triplets, batch=batch),
        lambda: shift_robustness(metric, triplets, batch=batch),
        lambda: join(attacked_distances(metric, triplets, attack, key=jax.random.key(0), batch=batch)),
    ):
        with pytest.raises(TripletsError, match=f"batch must be a whole number, 1 or more, got {batch}"):
            call()


def test_intervals_of_shares_are_wilsons(triplets: Triplets) -> None:
    """Seven of seven say less than that the share is 1."""
    right = np.where(triplets.judgment == 0, 0.1, 0.2).astype(np.float32)
    scores = assess(triplets, Distances(right, np.float32(0.3) - right)).scores
    # Wilson (1927), by hand: with all of n right the lower end is n / (n + z^2).
    assert scores.majority.low == pytest.approx(7 / (7 + 1.959964**2), rel=1e-6)
    assert scores.majority.high == 1
    assert scores.two_afc == scores.majority


def test_what_does_not_count_is_left_out_and_what_is_no_number_is_an_error(triplets: Triplets) -> None:
    split = dataclasses.replace(triplets, judgment=np.asarray([0.5, 0.5, 1, 0, 1, 0, 1], np.float32), sure=None)
    tied = Distances(np.full(COUNT, 0.1, np.float32), np.asarray([0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], np.float32))
    evaluation = assess(split, tied)
    assert evaluation.scores.two_afc.count == COUNT
    assert evaluation.scores.majority.count == evaluation.scores.sure.count == COUNT - 2
    assert evaluation.scores.majority.mean == 0.5
    with pytest.raises(TripletsError, match="1 of 7 distances are NaN or infinite"):
        assess(split, tied, Distances(tied.d0, np.asarray([np.nan, 1, 1, 1, 1, 1, 1], np.float32)), 0.1)


@pytest.mark.slow
def test_an_ensemble_is_measured_by_the_same_draws_before_and_after(
    drawn: Callable[..., rl.Lpips], triplets: Triplets
) -> None:
    """So that an attack without room changes nothing, in a last part that is filled up too."""
    ensemble = rl.Ensemble(drawn(NETWORK))
    conditions = Conditions(randomness=Randomness(draws=1, samples=2))
    natural, attacked = evaluate(ensemble, triplets, ATTACK, [0.0], batch=4, conditions=conditions)
    for one, other in zip(natural.distances, attacked.distances, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    assert cast(Any, attacked.scores.flip_rate).mean == 0
    key = judge_key(jax.random.fold_in(jax.random.key(0), 0))
    expected = rl.distance(triplets.reference[:4], triplets.p0[:4], ensemble, key=key, samples=2)
    np.testing.assert_allclose(natural.distances.d0[:4], expected, rtol=1e-4)
    (shifted, _) = shift_robustness(ensemble, triplets, (1,), conditions=conditions, batch=4)
    assert np.all(np.isfinite(shifted.distances.d0))


@pytest.mark.slow
def test_triplets_that_share_images_are_measured_by_an_ensemble_one_by_one(
    drawn: Callable[..., rl.Lpips], triplets: Triplets
) -> None:
    ensemble = rl.Ensemble(drawn(NETWORK))
    images = np.concatenate([triplets.reference, triplets.p0, triplets.p1])
    indices = np.arange(3 * COUNT).reshape(3, COUNT).T
    shared = IndexedTriplets(images, indices, np.ones((COUNT, 2), int), triplets.kinds)
    options: dict[str, Any] = {"conditions": Conditions(randomness=Randomness(samples=2)), "batch": 4}
    for one, other in zip(
        join(natural_distances(ensemble, shared, **options)),
        join(natural_distances(ensemble, triplets, **options)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4)

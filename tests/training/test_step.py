"""One training step: the reference run, heads of 0 or more, averages, parts of a batch, a loss that is no number."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks.objectives import ATTACKED
from rlpips_jax.attacks.table import ATTACKS, names
from rlpips_jax.backbones import ALEX, Convolution, Fire, Pool, Sequential
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TrainingError
from rlpips_jax.judgment import judgment_loss, ratio_logit
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from training.config import Lin, Natural, Training, Tune
from training.step import (
    JUDGED,
    ORDINAL,
    Batch,
    Groups,
    first_state,
    initial_floors,
    losses,
    make_optimiser,
    make_step,
    shifted,
    with_trained,
)
from training.update import State

SIZE = 32


def constant(step: Any) -> float:
    return 1.0


def copied(tree: Any) -> Any:
    """As NumPy has it: a step gives the memory of its state away."""
    return jax.tree.map(np.array, tree)


def same(first: Any, second: Any) -> bool:
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(one, other, equal_nan=True) for one, other in leaves)


def draw_batch(seed: int, count: int = 4) -> Batch:
    """Noise of two strengths on noise; p1 is closer in every other triplet."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 256, (count, SIZE, SIZE, 3))
    near, far = (np.clip(reference + rng.normal(0, sigma, reference.shape), 0, 255) for sigma in (20, 45))
    swapped = np.arange(count) % 2 == 1
    chosen = swapped[:, None, None, None]
    p0, p1 = np.where(chosen, far, near), np.where(chosen, near, far)
    judgment = np.where(swapped, 0.9, 0.2).astype(np.float32)
    first, second, third = (jnp.asarray(array, jnp.uint8) for array in (reference, p0, p1))
    return Batch(first, second, third, jnp.asarray(judgment))


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def groups() -> Groups:
    return {JUDGED: draw_batch(0)}


def begin(config: Training, metric: Lpips | rl.Ensemble, optimiser: Any = None) -> tuple[Any, State]:
    """A step and the state before it."""
    optimiser = make_optimiser(config, constant) if optimiser is None else optimiser
    sample = np.asarray(draw_batch(1).reference)
    return make_step(config, optimiser), first_state(config, metric, optimiser, sample)


@pytest.mark.shared
def test_six_steps_are_those_of_the_reference_program(shared: Path) -> None:
    with np.load(shared / "goldens" / "train_natural.npz") as file:
        golden = dict(file)
    parameters = from_pytorch(read_checkpoint(shared / "weights" / "alexnet-features.pth"), with_heads(ALEX), "alex")
    parameters |= {"heads": tuple(jnp.asarray(golden[f"init/head{index}"], jnp.float32) for index in range(5))}
    metric = Lpips(jax.tree.map(jnp.asarray, parameters), "lpips-alex", ALEX)
    config = Natural(loss="head", rate=1e-4, b1=0.5, batch=8, precision="highest")
    optimiser = make_optimiser(config, constant)
    ranking = {
        f"layer{index}": {
            name: jnp.asarray(golden[f"init/rank{index}/{name}"], jnp.float32) for name in ("kernel", "bias")
        }
        for index in range(3)
    }
    trained = {"heads": parameters["heads"], "ranking": ranking}
    state = State(trained, optimiser.init(trained), None, jnp.zeros((), jnp.int32))
    step, reports = make_step(config, optimiser), []
    for number in range(6):
        columns = (golden[f"data/{name}"][8 * number : 8 * number + 8] for name in ("ref", "p0", "p1", "judge"))
        state, report = step(state, metric, {JUDGED: Batch(*map(jnp.asarray, columns))})
        reports.append(report)
    np.testing.assert_allclose([report.loss for report in reports], golden["loss"], rtol=0, atol=1e-5)
    np.testing.assert_allclose([report.natural for report in reports], golden["accuracy"], rtol=0, atol=1e-6)
    for index in range(5):
        found, expected = state.trained["heads"][index], golden[f"final/head{index}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        # What the tolerance is small against.
        assert np.abs(expected - golden[f"init/head{index}"]).max() > 4e-4
    for index in range(3):
        for name in ("kernel", "bias"):
            found, expected = state.trained["ranking"][f"layer{index}"][name], golden[f"final/rank{index}/{name}"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_heads_stay_non_negative_averages_follow_and_nothing_follows_a_loss_that_is_no_number(tiny, groups) -> None:
    """One compiled step serves all three."""
    config = Natural(rate=0.5, average=0.7, initial_heads="drawn", loss="head")
    step, state = begin(config, tiny)
    assert any((np.asarray(head) < 0).any() for head in state.trained["heads"])
    expected = trained = copied(state.average)
    for number in range(12):
        state, report = step(state, tiny, groups)
        assert bool(report.finite)
        assert int(state.step) == number + 1
        trained = copied(state.trained)
        assert all((head >= 0).all() for head in (*trained["heads"], *state.average["heads"]))
        decay = min(0.7, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, trained)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), expected, state.average)
    # The clipping was needed.
    assert any((head == 0).any() for head in trained["heads"])
    before = copied(state)
    spoilt = groups[JUDGED]._replace(judgment=groups[JUDGED].judgment.at[1].set(jnp.nan))
    state, report = step(state, tiny, {JUDGED: spoilt})
    assert not bool(report.finite)
    assert not np.isfinite(float(report.loss))
    assert same(before, state)
    state, report = step(state, tiny, groups)
    assert bool(report.finite)
    assert not same(before.trained, state.trained)


def test_a_batch_in_parts_gives_the_gradient_of_the_whole(tiny, groups) -> None:
    """By plain gradient descent: Adam's first step is the gradient's sign, which rounding decides near 0."""
    found = []
    for accumulate in (1, 2):
        config = Natural(accumulate=accumulate, precision="highest")
        step, state = begin(config, tiny, optax.sgd(0.05))
        state, report = step(state, tiny, groups)
        found.append((copied(state.trained), report))
    (whole, all_at_once), (parts, in_parts) = found
    assert np.abs(whole["heads"][0] - np.asarray(tiny.parameters["heads"][0])).max() > 1e-4
    for one, other in zip(whole["heads"], parts["heads"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for name in ("loss", "natural", "gradient"):
        assert float(getattr(all_at_once, name)) == pytest.approx(float(getattr(in_parts, name)), rel=1e-5)


@pytest.mark.slow
def test_tune_moves_the_backbone_and_floors_by_rates_of_their_own(tiny, groups) -> None:
    config = Tune(attack_steps=1, floor=0.3)
    step, state = begin(config, tiny)
    first, backbone = copied(state.trained), copied(tiny.parameters["backbone"])
    state, report = step(state, tiny, groups | {ORDINAL: draw_batch(5)})
    assert all(np.isfinite(float(value)) for value in report)
    after = with_trained(tiny, state.trained).parameters
    assert not any(map(same, jax.tree.leaves(after["backbone"]), jax.tree.leaves(backbone)))
    # What was started from is as it was.
    assert same(tiny.parameters["backbone"], backbone)
    # Adam's first step is as long as its rate, wherever there is a slope.
    moved = jax.tree.map(lambda old, new: np.abs(new - old).max(), first, copied(state.trained))
    assert max(moved["heads"]) == pytest.approx(config.recipe.rate, rel=1e-3)
    assert max(moved["log_floors"]) == pytest.approx(config.floor_rate, rel=1e-3)
    assert max(jax.tree.leaves(moved["backbone"])) == pytest.approx(config.recipe.backbone_rate, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "attacked"), list(zip(names("objective"), itertools.cycle(ATTACKED), strict=False)))
def test_every_attack_on_any_image_is_trained_against(attack, attacked, tiny) -> None:
    epsilon = "1" if ATTACKS[attack].unit == "pixels" else "16/255"
    config = Lin(attack=attack, attacked=attacked, attack_steps=2, epsilon=epsilon)
    # Where judgments are certain, the loss on attacked triplets grows with the harm that is done to their order.
    batch = draw_batch(3, 2)
    batch = batch._replace(judgment=jnp.round(batch.judgment))
    step, state = begin(config, tiny)
    before = copied(state.trained["heads"])
    state, report = step(state, tiny, {ORDINAL: batch})
    assert bool(report.finite)
    assert float(report.gradient) > 0
    for old, new in zip(before, copied(state.trained["heads"]), strict=True):
        assert (new >= 0).all()
        # Adam's first step is as long as its rate, wherever there is a slope.
        assert np.abs(new - old).max() == pytest.approx(config.recipe.rate, rel=1e-3)
    assert float(report.loss) > float(ratio_loss(tiny, batch))


def ratio_loss(metric: Lpips, batch: Batch) -> Any:
    """The loss on triplets as they are."""
    d0, d1 = (rl.distance(batch.reference, image, metric) for image in (batch.p0, batch.p1))
    return judgment_loss(ratio_logit(d0, d1), batch.judgment).mean()


@pytest.mark.slow
def test_half_precision_in_parts_comes_close_to_full_precision(tiny) -> None:
    """By plain gradient descent, and in l2: neither hangs on the signs of small numbers."""
    found = []
    for dtype in ("float32", "bfloat16"):
        config = Lin(norm="l2", epsilon="0.3", attack_steps=2, accumulate=2, dtype=dtype)
        step, state = begin(config, tiny, optax.sgd(0.05))
        before = np.concatenate(copied(state.trained["heads"]))
        state, report = step(state, replace(tiny, dtype=dtype), {ORDINAL: draw_batch(3)})
        assert all(head.dtype == jnp.float32 for head in state.trained["heads"])
        found.append((np.concatenate(copied(state.trained["heads"])) - before, report))
    (full, exact), (half, rounded) = found
    # A distance off by 1 / 256, as one rounding to bfloat16's 8 bits may leave it, moves the logit 4 log(d0 / d1) by
    # 1 / 64, and the loss by no more; two distances are off. Slopes are differences between theirs, and lose more.
    assert float(rounded.loss) == pytest.approx(float(exact.loss), abs=1 / 32)
    assert float(rounded.gradient) == pytest.approx(float(exact.gradient), rel=0.05)
    assert 0 < np.linalg.norm(half - full) < 0.1 * np.linalg.norm(full)


@pytest.mark.slow
def test_the_heads_of_an_ensemble_learn_from_one_draw_for_both_images(tiny, groups) -> None:
    """Without a difference between p0 and p1 there is no slope, whatever is drawn."""
    ensemble, batch = rl.Ensemble(tiny), groups[JUDGED]
    step, state = begin(Natural(rate=1e-2), ensemble)
    before = copied(state.trained)
    assert before.keys() == {"heads"}
    state, report = step(state, ensemble, {JUDGED: batch._replace(p1=batch.p0)})
    assert float(report.loss) == pytest.approx(np.log(2), rel=1e-6)
    assert float(report.gradient) < 1e-6
    state, report = step(state, ensemble, groups)
    assert abs(float(report.loss) - np.log(2)) > 0.01
    assert float(report.gradient) > 0.01
    assert not same(before, state.trained)
    assert same(with_trained(ensemble, state.trained).metric.parameters["heads"], state.trained["heads"])


@pytest.mark.slow
def test_noise_adds_a_loss_on_noisy_triplets(tiny, groups) -> None:
    """Where p0 and p1 are the same image, each loss is log 2, unless noise makes them differ."""
    same_images = {JUDGED: groups[JUDGED]._replace(p1=groups[JUDGED].p0)}
    found = []
    for most in (0.0, 1e-7, 1.0):
        step, state = begin(Natural(noise=most), tiny)
        found.append(float(step(state, tiny, same_images)[1].loss))
    without, little, much = found
    assert without == pytest.approx(np.log(2), rel=1e-6)
    assert little == pytest.approx(2 * np.log(2), rel=1e-4)
    assert much != pytest.approx(2 * np.log(2), rel=1e-4)


def test_a_shift_moves_both_images_of_half_the_triplets() -> None:
    """Every pixel says where it lies, and in which image."""
    count, most = 200, 4
    rows, columns = jnp.meshgrid(jnp.arange(12.0), jnp.arange(10.0), indexing="ij")
    first, second, third = (
        jnp.broadcast_to(jnp.stack([rows, columns, jnp.full_like(rows, place)], -1), (count, 12, 10, 3))
        for place in range(3)
    )
    images = (first, second, third)
    cut = shifted(images, most, jax.random.key(0))
    corners = []
    for place, image in enumerate(cut):
        assert image.shape == (count, 8, 6, 3)
        corner = np.asarray(image[:, :1, :1, :2])
        np.testing.assert_array_equal(image[..., :2] - corner, jnp.broadcast_to(first[:, :8, :6, :2], (count, 8, 6, 2)))
        assert (image[..., 2] == place).all()
        corners.append(corner[:, 0, 0])
    reference, p0, p1 = corners
    np.testing.assert_array_equal(p0, p1)
    # A place is drawn equal one time in 25 even where it is drawn anew: .52 in all, with a standard error of .035.
    assert (p0 == reference).all(1).mean() == pytest.approx(0.52, abs=0.15)
    for least, largest in ((reference.min(), reference.max()), (p0.min(), p0.max())):
        assert (least, largest) == (0, most)
    with pytest.raises(TrainingError, match="--shift 10 leaves nothing of images of 12x10"):
        shifted(images, 10, jax.random.key(0))


def test_heads_alone_are_trained_where_nothing_else_is_asked_for(tiny) -> None:
    _, state = begin(Lin(), tiny)
    assert state.trained.keys() == {"heads"}
    assert state.average is None


def test_heads_may_start_equal(tiny) -> None:
    _, state = begin(Lin(initial_heads="equal"), tiny)
    assert [head.shape for head in state.trained["heads"]] == [head.shape for head in tiny.parameters["heads"]]
    assert all((np.asarray(head) == 1).all() for head in state.trained["heads"])


def test_the_first_layer_may_start_with_a_share(tiny) -> None:
    (_, whole), (_, part) = (begin(Lin(first_layer=share), tiny) for share in (1.0, 0.25))
    first, *others = part.trained["heads"]
    assert same(first, whole.trained["heads"][0] / 4)
    assert same(tuple(others), whole.trained["heads"][1:])


@pytest.mark.parametrize("start", ["metric", "equal"])
def test_heads_may_have_to_stay_near_their_start(start, tiny, groups) -> None:
    """A rate this high takes every weight beyond the range in one step, or leaves it where there is no slope."""
    step, state = begin(Natural(initial_heads=start, head_range=1.25, rate=1e3), tiny)
    before = copied(state.trained["heads"])
    state, _ = step(state, tiny, groups)
    after, before = (np.concatenate(heads) for heads in (state.trained["heads"], before))
    assert not after[before == 0].any()
    shares = after[before > 0] / before[before > 0]
    ends = [np.isclose(shares, end, rtol=1e-6) for end in (1 / 1.25, 1.25)]
    assert all(end.any() for end in ends)
    assert (ends[0] | ends[1] | (shares == 1)).all()


SMALL = Sequential(
    "small", (Convolution(0, 8, 3, stride=2), Pool(1), Fire(2, 4, 6)), Pooling("max", 3, 2, ceil=True), (0, 2)
)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_the_published_recipe_clips_every_1x1_kernel(protocol, drawn, groups) -> None:
    metric = drawn(SMALL)
    config = Tune(protocol=protocol, attack_steps=1, average=0.5, rate=1e-3, backbone_rate=1e-3)
    step, state = begin(config, metric)
    averaged = copied(state.average)["backbone"]
    state, report = step(state, metric, groups)
    assert bool(report.finite)
    after, fire = copied(state.trained["backbone"]), copied(state.trained["backbone"])["features_2"]
    # What is no 1x1 kernel goes where the gradient takes it.
    others = [after["features_0"]["kernel"], fire["expand3x3"]["kernel"], *(fire[name]["bias"] for name in fire)]
    assert all((other < 0).any() for other in others)
    for name in ("squeeze", "expand1x1"):
        before = np.asarray(metric.parameters["backbone"]["features_2"][name]["kernel"])
        kernels = [backbone["features_2"][name]["kernel"] for backbone in (after, averaged)]
        if protocol == "corrected":
            np.testing.assert_array_equal(kernels[1], before)
            assert all((kernel < 0).any() for kernel in kernels)
            continue
        np.testing.assert_array_equal(kernels[1], np.maximum(before, 0))
        assert (kernels[0] >= 0).all()
        # Adam's first step is as long as its rate.
        np.testing.assert_allclose(kernels[0], np.maximum(before, 0), atol=1.01e-3)
        assert (kernels[0][before < -2e-3] == 0).all()


def test_ratios_start_from_drawn_heads_that_are_not_negative(tiny) -> None:
    """The logarithm of a negative distance is not a number."""
    _, state = begin(Natural(initial_heads="drawn", loss="ratio"), tiny)
    for head in state.trained["heads"]:
        assert (np.asarray(head) >= 0).all()
        assert (np.asarray(head) > 0).any()
        assert np.asarray(head).max() <= len(head) ** -0.5


def test_the_start_depends_on_the_seed_alone(tiny) -> None:
    drawn = [begin(Natural(initial_heads="drawn", loss="head", seed=seed), tiny)[1] for seed in (1, 1, 2)]
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0].trained, drawn[2].trained)
    assert not np.array_equal(drawn[0].trained["heads"][0][:8], drawn[0].trained["heads"][1][:8])


def test_floors_begin_at_a_share_of_the_median_norm(tiny) -> None:
    sample = np.asarray(draw_batch(2, 2).reference)
    floors = initial_floors(tiny, sample, 0.5)
    assert same(initial_floors(tiny, sample, 0.25), tuple(floor / 2 for floor in floors))
    # A floor equal to the median norm shortens the median feature to 1 / sqrt(2).
    features = rl_with_floors(tiny, tuple(2 * floor for floor in floors)).features(sample)
    for feature in features:
        assert float(jnp.median(jnp.linalg.norm(feature, axis=-1))) == pytest.approx(2**-0.5, rel=1e-3)


def rl_with_floors(metric: Lpips, floors: tuple) -> Lpips:
    return Lpips(metric.parameters | {"floors": floors}, metric.name, metric.backbone, version=metric.version)


@pytest.mark.parametrize(
    ("options", "groups", "expected"),
    [
        ({}, (ORDINAL, JUDGED), {ORDINAL: (1, 0), JUDGED: (0, 2)}),
        ({"natural_weight": 6.0}, (ORDINAL, JUDGED), {ORDINAL: (1, 0), JUDGED: (0, 6)}),
        ({"attack_judged": True}, (ORDINAL, JUDGED), {ORDINAL: (1, 0), JUDGED: (1, 2)}),
        ({}, (JUDGED,), {JUDGED: (1, 2)}),
        ({"protocol": "published"}, (JUDGED,), {JUDGED: (1, 0)}),
        ({"attack": "none"}, (ORDINAL, JUDGED), {ORDINAL: (0, 2), JUDGED: (0, 2)}),
    ],
)
def test_whom_the_losses_are_of(options, groups, expected) -> None:
    assert {group: losses(Lin(**options), groups, group) for group in groups} == expected

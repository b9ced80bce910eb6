"""PPGD, LPA and Fast-LPA against a classifier that has learned handwritten digits; objectives of classifiers."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

import rlpips_jax as rl
from benchmarks.pixel_metrics import L2
from rlpips_jax import attacks
from rlpips_jax.backbones import ALEX
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import AttackError
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint

BOUND = 0.1
SHORT: dict[str, tuple[Any, dict[str, int]]] = {
    "perceptual_pgd": (attacks.perceptual_pgd, {"steps": 6, "iterations": 3}),
    "lagrangian": (attacks.lagrangian, {"outer_steps": 5, "steps": 6}),
    "fast_lagrangian": (attacks.fast_lagrangian, {"steps": 20}),
}
"""The attacks, with fewer steps than they would take by themselves."""
FAST_FIRST = ["fast_lagrangian", *(pytest.param(name, marks=pytest.mark.slow) for name in list(SHORT)[:2])]
LEFT = {"perceptual_pgd": 0.25, "lagrangian": 0.25, "fast_lagrangian": 0.5}
"""The most that they may leave of the accuracy; the fast attack, made for training, is the weakest."""


class Classifier(linen.Module):
    """Ten logits of images that are looked at in squares of 8."""

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        squares = linen.relu(linen.Conv(32, (8, 8), strides=8)(images))
        return linen.Dense(10)(squares.reshape(len(images), -1))


class Digits(NamedTuple):
    """A classifier and images that it has not learned from."""

    apply: Any
    images: np.ndarray
    labels: np.ndarray

    def accuracy(self, images: Any) -> float:
        return float(np.mean(np.argmax(self.apply(images), axis=1) == self.labels))


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Digits of 8x8 pixels, grey and enlarged to 32x32, and a network that tells them apart."""
    from sklearn.datasets import load_digits

    read: Any = load_digits()
    labels = np.asarray(read.target)
    grey = np.clip(np.asarray(jax.image.resize(read.images / 16, (len(labels), 32, 32), "bilinear")), 0, 1)
    images = np.repeat(np.asarray(0.1 + 0.8 * grey, np.float32)[..., None], 3, axis=-1)

    network: Any = Classifier()
    optimiser = optax.adam(2e-3)
    variables = network.init(jax.random.key(0), images[:1])

    @jax.jit
    def learn(variables: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        def loss(variables: Any) -> jax.Array:
            logits = network.apply(variables, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimiser.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    state, rng = optimiser.init(variables), np.random.default_rng(0)
    for _ in range(150):
        some = rng.integers(0, 1500, 64)
        variables, state = learn(variables, state, images[some], labels[some])
    return Digits(Partial(network.apply, variables), images[1500:1512], labels[1500:1512])


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


def noise(metric: Lpips, images: np.ndarray, bound: float) -> Any:
    """Images with noise of that perceptual size."""
    drawn = np.random.default_rng(1).normal(0, 0.5, images.shape).astype(np.float32)
    return attacks.project_perceptual(metric, np.clip(images + drawn, 0, 1), images, bound=bound)


def check_within(result: attacks.PerceptualAttackResult, images: np.ndarray, metric: Lpips, bound: float) -> None:
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    distances = np.sqrt(rl.distance(result.adversarial, images, metric))
    np.testing.assert_allclose(result.perceptual, distances, rtol=1e-3)
    assert np.all(distances <= 1.0001 * bound)


@pytest.mark.slow
def test_noise_of_the_same_perceptual_size_fools_nobody(digits, tiny) -> None:
    assert digits.accuracy(digits.images) >= 0.9
    assert digits.accuracy(noise(tiny, digits.images, BOUND)) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST_FIRST)
def test_attacks_fool_the_classifier_within_the_bound(digits, tiny, name) -> None:
    attack, options = SHORT[name]
    objective = attacks.classification(digits.apply, digits.labels)
    result = attack(objective, digits.images, key=jax.random.key(0), metric=tiny, bound=BOUND, **options)
    check_within(result, digits.images, tiny, BOUND)
    assert digits.accuracy(result.adversarial) <= LEFT[name]
    fooled = np.argmax(digits.apply(result.adversarial), axis=1) != digits.labels
    np.testing.assert_array_equal(result.success, fooled)
    np.testing.assert_allclose(result.after, objective(result.adversarial), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(result.after, result.trajectory.max(axis=0))
    assert len(result.trajectory) == options["steps"] * options.get("outer_steps", 1) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST_FIRST)
def test_ten_batches_are_one_program(digits, tiny, name) -> None:
    traces = []

    def apply(weight: jax.Array, images: jax.Array) -> jax.Array:
        traces.append(images.shape)
        return jnp.stack([images.mean(axis=(1, 2, 3)), weight * images[:, 0, 0, 0]], axis=1)

    attack, options = SHORT[name]
    options = dict.fromkeys(options, 1)
    counts, bounds = [], []
    for batch in range(10):
        objective = attacks.classification(Partial(apply, jnp.float32(batch)), digits.labels[batch : batch + 2] % 2)
        result = attack(
            objective,
            digits.images[batch : batch + 2, :31, :31],
            key=jax.random.key(batch),
            metric=tiny,
            bound=0.01 * (batch + 1),
            **options,
        )
        counts.append(len(traces))
        bounds.append(float(result.perceptual.max()) <= 0.010001 * (batch + 1))
    assert counts[0] > 0
    assert counts == [counts[0]] * 10
    assert all(bounds)


@pytest.mark.slow
def test_a_bound_of_zero_leaves_the_images(tiny) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (1, 31, 31, 3)).astype(np.float32)

    def brightness(images: jax.Array) -> jax.Array:
        return images.mean(axis=(1, 2, 3))

    result = attacks.fast_lagrangian(brightness, images, key=jax.random.key(0), metric=tiny, bound=0, steps=1)
    np.testing.assert_array_equal(result.adversarial, images)


def test_losses_are_their_definitions() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), np.arange(6) % 5
    images = np.zeros((6, 8, 8, 3), np.float32)
    values = {
        loss: np.asarray(attacks.classification(lambda images: jnp.asarray(logits), labels, loss=loss)(images))
        for loss in ("margin", "cross_entropy")
    }
    for row, label, margin, cross_entropy in zip(logits, labels, *values.values(), strict=True):
        np.testing.assert_allclose(margin, np.max(np.delete(row, label)) - row[label], rtol=1e-6)
        chances = np.exp(np.float64(row)) / np.exp(np.float64(row)).sum()
        np.testing.assert_allclose(cross_entropy, -np.log(chances[label]), rtol=1e-5)
    fooled = values["margin"] > 0
    assert fooled.any()
    assert not fooled.all()
    for loss in values:
        objective = attacks.classification(lambda images: jnp.asarray(logits), labels, loss=loss)
        result = attacks.pgd(objective, images, key=jax.random.key(0), epsilon=0.1, steps=1)
        np.testing.assert_array_equal(result.success, fooled)


def test_a_label_without_a_logit_is_no_number() -> None:
    for loss in ("margin", "cross_entropy"):
        objective = attacks.classification(lambda images: jnp.zeros((2, 3)), np.asarray([2, 3]), loss=loss)
        assert list(np.isnan(objective(np.zeros((2, 8, 8, 3), np.float32)))) == [False, True]


class Linear(nnx.Module):
    """A classifier in flax.nnx, which counts how often it is traced."""

    traces = 0

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.zeros(2))

    def __call__(self, images: jax.Array) -> jax.Array:
        Linear.traces += 1
        return images.mean(axis=(1, 2, 3))[:, None] * self.weights[...]


class Unhashable:
    """A callable that jit cannot take by itself."""

    __hash__: Any = None

    def __call__(self, images: jax.Array) -> jax.Array:
        return images[:, 0, 0, :2]


def test_modules_are_traced_with_the_weights_that_they_have_now() -> None:
    images, model = np.full((1, 8, 8, 3), 0.5, np.float32), Linear()
    margins, counts = [], []
    for weight in (1.0, 2.0):
        model.weights[...] = jnp.asarray([0, weight])
        objective = attacks.classification(model, [0])
        result = attacks.pgd(objective, images, key=jax.random.key(0), epsilon=0.1, steps=4, random_start=False)
        margins.append(float(result.after[0]))
        counts.append(Linear.traces)
    np.testing.assert_allclose(margins, [0.6, 1.2], rtol=1e-5)
    assert counts[0] == counts[1] > 0


def test_any_callable_will_do() -> None:
    images = np.full((1, 8, 8, 3), 0.5, np.float32)
    objective = attacks.classification(Unhashable(), [0])
    result = attacks.pgd(objective, images, key=jax.random.key(0), epsilon=0.1, steps=4)
    np.testing.assert_allclose(result.after, 0.2, rtol=1e-5)


@pytest.mark.slow
def test_a_classifier_of_plain_functions_is_attacked_by_every_call(tiny) -> None:
    """Three colours, judged by a function and a matrix, without a module of any library."""
    weights = 8 * jnp.eye(3) - 4

    def apply(parameters: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.mean(images, axis=(1, 2)) @ parameters

    coarse = np.random.default_rng(0).uniform(0.35, 0.65, (6, 8, 8, 3)).astype(np.float32)
    images = np.array(jax.image.resize(coarse, (6, 32, 32, 3), "linear"))
    labels = np.argmax(apply(weights, jnp.asarray(images)), axis=1)
    objective = attacks.classification(lambda points: apply(weights, points), labels)
    common: Any = {"key": jax.random.key(0), "steps": 6}
    perceptual: Any = {"metric": tiny, "bound": 0.3}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (attacks.apgd, {"epsilon": 16 / 255}),
        (attacks.apgd, {"epsilon": 4.0, "norm": "l2"}),
        (attacks.recolor, {"epsilon": 0.2}),
        (attacks.spatial, {"epsilon": 2.0}),
        (attacks.perceptual_pgd, perceptual),
        (attacks.lagrangian, perceptual),
    ]
    for attack, options in calls:
        result = attack(objective, images, **common, **options)
        fooled = np.argmax(apply(weights, result.adversarial), axis=1) != labels
        np.testing.assert_array_equal(result.success, fooled)
        # A flow hardly changes mean colours; everything else does.
        assert attack is attacks.spatial or fooled.all(), attack


@jax.tree_util.register_static
class PixelLength(L2):
    """The mean squared difference, with its embedding."""

    def embedded(self, features: Any) -> Any:
        return features / float(np.prod(features.shape[-3:])) ** 0.5


@pytest.mark.parametrize("attack", [attacks.perceptual_pgd, attacks.lagrangian])
def test_an_attack_stops_when_all_are_confidently_fooled(attack) -> None:
    """The objective is 4 (mean - 0.6), from -0.4 up; the mean rises by the bound at most."""
    objective = attacks.classification(
        lambda x: 4 * jnp.stack([0.6 - x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], axis=1), np.zeros(2, int)
    )
    images = np.full((2, 8, 8, 3), 0.5, np.float32)
    options: Any = {"key": jax.random.key(0), "metric": PixelLength(), "steps": 40, "confidence": 0.1}
    stopped = attack(objective, images, bound=0.3, **options)
    going_on = attack(objective, images, bound=np.array([0.3, 0.05], np.float32), **options)
    assert stopped.success.tolist() == [True, True]
    assert going_on.success.tolist() == [True, False]
    reached = (stopped.trajectory > 0.1).all(axis=1)
    assert 0 < reached.argmax() < 20
    assert (stopped.trajectory[reached][1:-1] == stopped.trajectory[reached][1]).all()
    assert len(np.unique(going_on.trajectory[:, 1])) > 20
    assert (stopped.perceptual <= 0.3 * 1.0001).all()


def test_misuse_is_told(tiny, wrong_types) -> None:
    def apply(images: jax.Array) -> jax.Array:
        return images[:, 0, 0]

    images = np.zeros((2, 31, 31, 3), np.float32)
    with pytest.raises(AttackError, match="argmax of one-hot"):
        attacks.classification(apply, np.eye(3))
    with pytest.raises(AttackError, match="whole numbers"):
        attacks.classification(apply, np.asarray([0.0, 1.0]))
    with pytest.raises(AttackError, match="counted from 0, got -1"):
        attacks.classification(apply, [1, -1])
    with pytest.raises(AttackError, match="margin, cross_entropy, got 'hinge'"):
        attacks.classification(apply, [0, 1], loss="hinge")
    with pytest.raises(AttackError, match="a row of logits for each label"):
        attacks.classification(apply, [0, 1, 2])(images)
    objective = attacks.classification(apply, [0, 1])
    options: dict[str, Any] = {"key": jax.random.key(0), "metric": tiny, "bound": 0.1}
    for attack, _ in SHORT.values():
        with pytest.raises(AttackError, match=r"metric must have an embedding .* None has none"):
            attack(objective, images, **options | {"metric": None})
        with pytest.raises(AttackError, match="in the units of the perceptual distance"):
            attack(objective, images, **options | {"bound": -1})
        with pytest.raises(AttackError, match="step_size must be"):
            attack(objective, images, **options, step_size=[1, 2, 3])
        with pytest.raises(AttackError, match="steps must be a whole number"):
            attack(objective, images, **options, steps=0)
    with pytest.raises(AttackError, match="confidence"):
        attacks.lagrangian(objective, images, **options, confidence=-1)


@pytest.mark.slow
@pytest.mark.shared
def test_the_published_metric_bounds_an_attack(digits, shared: Path) -> None:
    backbone = from_pytorch(read_checkpoint(shared / "weights" / "alexnet-features.pth"), with_heads(ALEX), "alexnet")
    heads = tuple(np.ones(channels, np.float32) for channels in ALEX.channels)
    metric = Lpips(backbone | {"heads": heads}, "baseline-alex", ALEX)
    images, labels = digits.images[:4], digits.labels[:4]
    objective = attacks.classification(digits.apply, labels)
    result = attacks.fast_lagrangian(objective, images, key=jax.random.key(0), metric=metric, bound=0.2, steps=4)
    check_within(result, images, metric, 0.2)
    assert np.all(result.after > result.before)

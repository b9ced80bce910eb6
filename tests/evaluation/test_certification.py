"""Certificates: never more than the truth where it is known, and never broken by an attack within them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

import rlpips_jax as rl
from rlpips_jax.attacks import attacked_images, pgd, randomised, ranking
from rlpips_jax.errors import AttackError, CertificateError, ImageError
from rlpips_jax.evaluation.certification import (
    Certificate,
    Smoothing,
    abstention_rate,
    certified_accuracy,
    certify,
    certify_triplets,
    lower_confidence_bound,
)

N, SIGMA = 64, 0.25
SHAPE = (N, 2, 2, 3)
BATCH = 64 * N
KEY = jax.random.key(0)


def plane(normal: jax.Array, offset: jax.Array, images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ normal - offset


def linear(margins: np.ndarray, shape: tuple[int, ...] = SHAPE) -> tuple[Partial, np.ndarray]:
    """Images and an objective whose planes lie that far from them: below 0 the order is kept."""
    rng = np.random.default_rng(1)
    images = rng.uniform(0, 1, shape).astype(np.float32)
    normal = rng.normal(0, 3, images[0].size)
    offset = images.reshape(len(images), -1) @ normal - margins * np.linalg.norm(normal)
    return Partial(plane, jnp.asarray(normal, jnp.float32), jnp.asarray(offset, jnp.float32)), images


MARGINS = np.linspace(-2.5, 2.5, N) * SIGMA


FIELDS = {field.name for field in dataclasses.fields(Smoothing)}


def smoothed(function: Callable[..., Certificate], *arguments: Any, **options: Any) -> Certificate:
    """Calls `certify` or `certify_triplets` with the fields of `Smoothing` among its options."""
    chosen = {name: options.pop(name) for name in FIELDS & options.keys()}
    return function(*arguments, Smoothing(**chosen), **options)


def made(**fields: Any) -> Certificate:
    radius = np.asarray(fields["radius"], np.float64)
    return Certificate(
        reversed=np.asarray(fields["reversed"]),
        radius=radius,
        lower_bound=stats.norm.cdf(radius),
        count=np.full(len(radius), 99),
        abstained=np.asarray(fields["abstained"]),
        smoothing=Smoothing(sigma=1.0, samples=100),
    )


@pytest.mark.slow
def test_the_radius_approaches_the_distance_to_the_plane_and_never_passes_it():
    objective, images = linear(MARGINS)
    gaps = []
    for samples in (200, 2_000, 20_000):
        found = smoothed(certify, objective, images, key=KEY, sigma=SIGMA, samples=samples, alpha=1e-6, max_batch=BATCH)
        assert (found.radius <= np.abs(MARGINS)).all()
        assert (found.reversed == (MARGINS > 0))[~found.abstained].all()
        gaps.append(np.mean(np.abs(MARGINS) - found.radius) / SIGMA)
    # The gap is near 4.75 sqrt(p (1 - p) / samples) / phi(Phi^-1(p)), so ten times the samples make it a third.
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert gaps[2] < 0.1


@pytest.mark.parametrize("shape", [SHAPE, (N, 2, 1, 2, 3)], ids=["one image", "pairs"])
def test_counts_follow_the_exact_probability(shape):
    margins = np.repeat([-1.5, -0.5, 0.5, 1.5], N // 4) * SIGMA
    objective, images = linear(margins, shape)
    found = smoothed(
        certify, objective, images, key=KEY, sigma=SIGMA, samples=4_000, max_batch=BATCH * (len(shape) - 3)
    )
    p = stats.norm.cdf(np.abs(margins) / SIGMA)
    scores = (found.count - 4_000 * p) / np.sqrt(4_000 * p * (1 - p))
    assert 1e-4 < stats.chi2.sf(np.sum(scores**2), N) < 1 - 1e-4
    # Noise shared by examples would make their counts deviate together.
    assert stats.chi2.sf(scores.reshape(4, -1).sum(axis=1) ** 2 / (N // 4), 1).min() > 1e-4


@pytest.mark.parametrize("samples", [1, 17, 1000])
@pytest.mark.parametrize("alpha", [1e-6, 0.001, 0.3])
def test_bounds_are_those_of_clopper_and_pearson(samples, alpha):
    counts = np.unique(np.linspace(0, samples, 12).astype(int))
    bounds = lower_confidence_bound(counts, samples, alpha)
    for count, bound in zip(counts, bounds, strict=True):
        one_sided = stats.binomtest(count, samples, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        two_sided = stats.binomtest(count, samples).proportion_ci(1 - 2 * alpha, method="exact").low
        assert bound == pytest.approx(one_sided, rel=1e-9)
        assert bound == pytest.approx(two_sided, rel=1e-9)
        if count:
            assert stats.binom.sf(count - 1, samples, bound) == pytest.approx(alpha, rel=1e-9)


@pytest.mark.slow
def test_bounds_are_wrong_as_often_as_alpha_allows():
    alpha, samples, repetitions = 0.1, 100, 40
    objective, images = linear(np.full(N, SIGMA))
    p = stats.norm.cdf(1)
    found = [
        smoothed(certify, objective, images, key=key, sigma=SIGMA, samples=samples, alpha=alpha, max_batch=BATCH)
        for key in jax.random.split(KEY, repetitions)
    ]
    wrong = np.mean([certificate.lower_bound > p for certificate in found])
    # Counts are whole numbers, so the exact rate is somewhat below alpha.
    counts = np.arange(samples + 1)
    exact = stats.binom.pmf(counts, samples, p)[lower_confidence_bound(counts, samples, alpha) > p].sum()
    assert 0.05 < exact <= alpha
    assert abs(wrong - exact) < 4 * np.sqrt(exact * (1 - exact) / (N * repetitions))
    assert np.mean([certificate.radius > SIGMA for certificate in found]) == wrong


def test_abstains_on_the_plane():
    objective, images = linear(np.zeros(N))
    found = smoothed(certify, objective, images, key=KEY, sigma=SIGMA, max_batch=BATCH)
    assert found.abstained.all()
    assert (found.radius == 0).all()
    assert (found.lower_bound <= 0.5).all()
    assert abstention_rate(found) == 1


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_and_nan_count_for_neither_side(value):
    objective, images = linear(np.full(N, value))
    constant = Partial(plane, jnp.zeros_like(objective.args[0]), jnp.full(N, value, jnp.float32))
    found = smoothed(certify, constant, images, key=KEY, sigma=SIGMA, max_batch=BATCH)
    assert found.abstained.all()
    assert (found.count == 0).all()


def test_a_unanimous_count_gives_the_largest_radius():
    objective, images = linear(np.full(N, 100.0))
    found = smoothed(certify, objective, images, key=KEY, sigma=SIGMA, max_batch=BATCH)
    assert (found.count == 1000).all()
    np.testing.assert_allclose(found.radius, SIGMA * stats.norm.ppf(0.001**0.001), rtol=1e-9)
    assert found.radius[0] == pytest.approx(2.46 * SIGMA, abs=0.005 * SIGMA)  # as the documentation says


def test_the_key_decides_and_the_blocks_do_not():
    objective, images = linear(MARGINS)
    options = {"sigma": SIGMA, "samples": 700}
    first = smoothed(certify, objective, images, key=KEY, max_batch=BATCH, **options)
    other = smoothed(certify, objective, images, key=KEY, max_batch=1, **options)  # one draw at a time
    assert np.array_equal(other.count, first.count)
    assert np.array_equal(other.reversed, first.reversed)
    old_style = smoothed(certify, objective, images, key=jax.random.key_data(KEY), max_batch=BATCH, **options)
    assert np.array_equal(old_style.count, first.count)
    another = smoothed(certify, objective, images, key=jax.random.key(1), max_batch=BATCH, **options)
    assert not np.array_equal(another.count, first.count)


def test_the_guess_and_the_count_have_noise_of_their_own():
    objective, images = linear(MARGINS)
    options = {"key": KEY, "sigma": SIGMA, "max_batch": BATCH, "samples": 100}
    first, second = (smoothed(certify, objective, images, selection_samples=number, **options) for number in (1, 100))
    # Another guess of the same draws: the count of the other side.
    differ = first.reversed != second.reversed
    assert differ.any()
    assert np.array_equal(first.count[~differ], second.count[~differ])
    assert np.array_equal(first.count[differ], 100 - second.count[differ])
    # Were they the same draws, the side guessed by all 100 would never be the minority of the 100 counted.
    on_the_plane = linear(np.zeros(N))
    found = smoothed(certify, *on_the_plane, selection_samples=100, **options)
    assert (found.count < 50).any()


def test_one_program_serves_every_batch_of_a_shape_and_sees_no_more_images_than_max_batch():
    traces, seen = [], []

    def look(images: np.ndarray) -> np.ndarray:
        seen.append(int(np.prod(images.shape[:-3])))
        return np.asarray(images).mean(axis=(-3, -2, -1))

    def mean_above(threshold: jax.Array, images: jax.Array) -> jax.Array:
        traces.append(images.shape)
        result = jax.ShapeDtypeStruct(images.shape[:1], jnp.float32)
        return jax.pure_callback(look, result, images, vmap_method="broadcast_all") - threshold

    images = np.full((4, 2, 2, 3), 0.6, np.float32)
    options = {"selection_samples": 5, "alpha": 0.01, "max_batch": 13}
    for number, (sigma, samples) in enumerate([(SIGMA, 30), (0.1, 30), (SIGMA, 77), (3, 7)]):
        seen.clear()
        objective = Partial(mean_above, jnp.float32(0.1 * number))
        smoothed(
            certify,
            objective,
            images - 0.1 * number,
            key=jax.random.key(number),
            sigma=sigma,
            samples=samples,
            **options,
        )
        assert set(seen) == {12}
        assert len(seen) == 2 + -(-samples // 3)  # three draws at a time, first the 5 that select
    assert traces == [(4, 2, 2, 3)]


def test_bytes_are_scaled_to_the_value_range():
    objective, images = linear(MARGINS)
    pixels = np.rint(images * 255).astype(np.uint8)
    options = {"key": KEY, "samples": 500, "max_batch": BATCH}
    found = smoothed(certify, objective, pixels, sigma=SIGMA, **options)
    floats = smoothed(certify, objective, pixels / np.float32(255), sigma=SIGMA, **options)
    # Rounding may move a draw across the plane.
    assert np.abs(found.count - floats.count).max() <= 1
    normal, offset = objective.args
    symmetric = Partial(plane, normal / 2, offset - normal.sum() / 2)
    found = smoothed(certify, symmetric, pixels, sigma=2 * SIGMA, value_range=(-1, 1), **options)
    assert np.abs(found.count - floats.count).max() <= 1
    np.testing.assert_allclose(found.radius, 2 * floats.radius, atol=0.02)
    byte = smoothed(certify, objective, np.full(SHAPE, 255, np.uint8), sigma=1e-6, **options)
    white = np.asarray(plane(normal, offset, jnp.ones(SHAPE)))
    assert np.array_equal(byte.reversed, white > 0)


def test_certified_accuracy_counts_what_is_right_and_proven():
    certificate = made(
        radius=[0.0, 0.5, 1.0, 2.0, 3.0],
        reversed=[False, False, False, False, True],
        abstained=[True, False, False, False, False],
    )
    np.testing.assert_array_equal(certified_accuracy(certificate, [0, 0.5, 0.6, 2, 2.5]), [0.6, 0.6, 0.4, 0.2, 0])
    assert abstention_rate(certificate) == 0.2
    empty = made(radius=[], reversed=np.zeros(0, bool), abstained=np.zeros(0, bool))
    for share in (lambda: certified_accuracy(empty, [0]), lambda: abstention_rate(empty)):
        with pytest.raises(CertificateError, match="no examples"):
            share()
    for radii in ([-1.0], [np.nan], np.zeros((2, 2))):
        with pytest.raises(CertificateError, match="radii"):
            certified_accuracy(certificate, radii)


@pytest.mark.usefixtures("wrong_types")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sigma": 0}, CertificateError, "sigma must be a number above 0"),
        ({"sigma": -0.1}, CertificateError, "sigma"),
        ({"sigma": np.nan}, CertificateError, "sigma"),
        ({"sigma": np.inf}, CertificateError, "sigma"),
        ({"sigma": "0.1"}, CertificateError, "sigma"),
        ({"alpha": 0.0}, CertificateError, "alpha must be a number between 0 and 1"),
        ({"alpha": 1.0}, CertificateError, "alpha"),
        ({"samples": 0}, CertificateError, "samples must be a whole number, 1 or more"),
        ({"samples": 10.0}, CertificateError, "samples"),
        ({"samples": 9}, CertificateError, "at least 10 samples"),
        ({"selection_samples": 0}, CertificateError, "selection_samples"),
        ({"max_batch": True}, CertificateError, "max_batch"),
        ({"key": 0}, CertificateError, r"jax.random.key\(0\)"),
        ({"key": jax.random.split(jax.random.key(0))}, CertificateError, "one key of"),
        ({"images": np.full((2, 2, 3), 0.5, np.float32)}, ImageError, r"\(n, h, w, 3\)"),
        ({"images": np.zeros((0, 2, 2, 3), np.uint8)}, ImageError, "one or more"),
        ({"images": np.full((2, 2, 2, 3), 2.0, np.float32)}, ImageError, "value_range"),
        ({"value_range": (1, 0)}, ImageError, "value_range"),
        ({"key": np.zeros(2, np.int32)}, CertificateError, "one key of"),
        ({"objective": lambda images: images.mean()}, CertificateError, r"\(4,\), not \(\)"),
        ({"objective": lambda images: (images, images)}, CertificateError, "one number per example"),
    ],
)
def test_what_makes_no_sense_is_refused(change, error, words):
    arguments: dict[str, Any] = {
        "objective": lambda images: images.mean(axis=(1, 2, 3)),
        "images": np.full((4, 2, 2, 3), 0.5, np.float32),
        "key": KEY,
        "sigma": SIGMA,
    }
    arguments |= change
    with pytest.raises(error, match=words):
        smoothed(certify, arguments.pop("objective"), arguments.pop("images"), **arguments)


def test_nine_samples_never_suffice_and_ten_may():
    objective, images = linear(np.full(N, 100.0))
    assert not smoothed(certify, objective, images, key=KEY, sigma=SIGMA, samples=10, max_batch=BATCH).abstained.any()


def test_counts_cannot_be_traced():
    objective, images = linear(MARGINS)
    with pytest.raises(CertificateError, match="outside jit"):
        jax.jit(lambda images: smoothed(certify, objective, images, key=KEY, sigma=SIGMA).radius)(images)


def shifted_plane(normal: jax.Array, offset: jax.Array, images: jax.Array, key: jax.Array) -> jax.Array:
    """Planes that are drawn at random, alike for all examples."""
    return plane(normal, offset + SIGMA * jnp.linalg.norm(normal) * jax.random.normal(key), images)


def test_of_a_randomised_objective_the_probability_is_over_its_draws_too():
    margins = np.repeat([-1.0, 1.0], N // 2) * SIGMA
    objective, images = linear(margins)
    random = randomised(Partial(shifted_plane, *objective.args))
    found = smoothed(certify, random, images, key=KEY, sigma=SIGMA, samples=4_000, max_batch=BATCH)
    # The planes' deviation is that of the noise, and the two are independent.
    p = stats.norm.cdf(1 / np.sqrt(2))
    assert np.array_equal(found.reversed, margins > 0)
    assert np.abs(found.count / 4_000 - p).max() < 5 * np.sqrt(p * (1 - p) / 4_000)


class Judged(NamedTuple):
    reference: np.ndarray
    p0: np.ndarray
    p1: np.ndarray
    judgment: np.ndarray


def drawn_triplets(number: int) -> Judged:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8) for name in ("reference", "p0", "p1")}
    return Judged(**images, judgment=np.arange(number) % 2 / 1.0)


@pytest.mark.slow
def test_triplets_are_certified_as_their_objective_is_in_whatever_batches():
    triplets, metric = drawn_triplets(5), rl.load("lpips-tiny")
    options = {"key": KEY, "sigma": SIGMA, "samples": 40, "selection_samples": 10}
    odd = (triplets.judgment == 1)[:, None, None, None]
    closer, farther = np.where(odd, triplets.p1, triplets.p0), np.where(odd, triplets.p0, triplets.p1)
    objective = ranking(metric, triplets.reference, closer, farther, attacked="both")
    images = attacked_images(triplets.reference, closer, farther, "both")
    expected = smoothed(certify, objective, images, max_batch=100, **options)
    # Batches of 3 and 2, filled up; noise near a tie may fall on the other side, as blocks round differently.
    found = smoothed(certify_triplets, metric, triplets, attacked="both", max_batch=6, **options)
    assert np.array_equal(found.reversed, expected.reversed)
    assert np.abs(found.count - expected.count).max() <= 1
    assert found.radius.shape == (5,)
    rest = Judged(*(array[2:] for array in triplets))
    part = smoothed(certify_triplets, metric, rest, attacked="both", max_batch=6, start=2, **options)
    assert np.abs(part.count - found.count[2:]).max() <= 1
    assert 0 < expected.count.min() < 40  # there was something to count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Brightness:
    """The difference of two images' means, times a sign."""

    sign: jax.Array
    name, signature, minimum_size = "brightness", "brightness 1", 1

    def features(self, images: Any, *, value_range: Any = (0, 1)) -> jax.Array:
        return images.mean((-3, -2, -1))

    def between(self, features: jax.Array, others: jax.Array) -> jax.Array:
        return self.sign * jnp.abs(features - others)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Contrary:
    """A randomised metric; one draw in four calls near what is far."""

    name, signature, minimum_size = "contrary", "contrary 1", 1

    def distance(self, x: Any, y: Any, *, value_range: Any, key: Any, samples: Any) -> Any:
        raise NotImplementedError

    def under(self, key: Any, *, samples: Any = None) -> Any:
        raise NotImplementedError

    def expectation(self, function: Callable[..., Any], arguments: Any, *, key: Any, samples: int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            metric = Brightness(jnp.where(jax.random.uniform(key) < 0.25, -1.0, 1.0))
            return function(metric, metric.features, arguments)

        return jax.lax.map(one, jax.random.split(key, samples)).mean(axis=0)


@pytest.mark.parametrize(("draws", "kept"), [(1, 0.75), (3, 0.75**3 + 3 * 0.25 * 0.75**2)])
def test_triplets_are_certified_by_a_randomised_metric_over_its_draws(draws, kept):
    grey = {"reference": 100, "p0": 110, "p1": 200}
    images = {name: np.full((2, 4, 4, 3), value, np.uint8) for name, value in grey.items()}
    triplets, samples = Judged(**images, judgment=np.array([0.0, 1.0])), 2_000
    found = smoothed(
        certify_triplets, Contrary(), triplets, key=KEY, sigma=0.01, samples=samples, max_batch=400, draws=draws
    )
    assert found.reversed.tolist() == [False, True]
    assert np.abs(found.count / samples - kept).max() < 4 * np.sqrt(kept * (1 - kept) / samples)


def test_triplets_without_an_order_are_refused():
    metric, triplets = rl.load("lpips-tiny"), drawn_triplets(3)
    triplets.judgment[1] = 0.5
    with pytest.raises(CertificateError, match="1 of 3 judgments"):
        smoothed(certify_triplets, metric, triplets, key=KEY, sigma=SIGMA)
    with pytest.raises(CertificateError, match="no triplets"):
        smoothed(certify_triplets, metric, drawn_triplets(0), key=KEY, sigma=SIGMA)


HARD = [495, 15, 285, 270, 240, 255, 465, 120]
"""Ordinal triplets of which little, and yet something, can be certified at this noise."""
NOISE = 0.1


def soft_vote(objective: Any, sides: jax.Array, images: jax.Array, key: jax.Array) -> jax.Array:
    """The vote of one draw, for the side that is not certified, made smooth."""
    noise = NOISE * jax.random.normal(key, images.shape)
    return jnp.tanh(sides * objective(images + noise) / 0.02)


@pytest.mark.shared
@pytest.mark.slow
def test_no_attack_within_the_radius_turns_the_smoothed_ranking(shared):
    with np.load(shared / "triplets" / "kodak.npz") as file:
        reference, p0, p1, judge = (file[f"ordinal/{name}"][HARD] for name in ("ref", "p0", "p1", "judge"))
    second = (judge > 0.5)[:, None, None, None]
    closer, farther = np.where(second, p1, p0), np.where(second, p0, p1)
    objective = ranking(rl.load("lpips-tiny"), reference, closer, farther)
    options = {"sigma": NOISE, "samples": 300}
    found = smoothed(certify, objective, closer, key=KEY, **options)
    assert not found.abstained.any()
    assert 0 < found.reversed.mean() < 1
    against = randomised(Partial(soft_vote, objective, jnp.where(found.reversed, -1.0, 1.0)), samples=8)

    def attacked(epsilon: np.ndarray) -> Certificate:
        result = pgd(against, closer, key=jax.random.key(1), epsilon=epsilon, norm="l2", steps=10)
        assert (result.l2 <= epsilon * (1 + 1e-5)).all()
        assert (result.l2 > 0.9 * epsilon).all()
        return smoothed(certify, objective, result.adversarial, key=jax.random.key(2), **options)

    within = attacked(found.radius.astype(np.float32))
    assert np.array_equal(within.reversed, found.reversed)
    assert (within.count > 150).all()
    # The attack is no weak one: at ten times the radius it turns every ranking, beyond doubt.
    beyond = attacked(10 * found.radius.astype(np.float32))
    assert np.array_equal(beyond.reversed, ~found.reversed)
    assert not beyond.abstained.any()


def test_an_objective_of_another_range_is_refused() -> None:
    metric = rl.load("lpips-tiny")
    images = np.full((1, 31, 31, 3), 0.5, np.float32)
    objective = ranking(metric, images, images, images, value_range=(-1, 1))
    with pytest.raises(AttackError, match="made for images in value_range"):
        smoothed(
            certify, objective, images, key=jax.random.key(0), sigma=0.1, samples=20, selection_samples=1, alpha=0.01
        )

"""The perceptual distance and its slope against dense matrices, and the projection within a bound."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.attacks.perceptual_pgd import conjugate_gradient
from rlpips_jax.attacks.project_perceptual import PerceptualBall, norm
from rlpips_jax.backbones import Convolution, Pool, Sequential
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.ops.pooling import Pooling

SMALL = Sequential(
    name="small",
    layers=(Convolution(0, 4, 3, padding=1), Pool(1), Convolution(2, 6, 3, padding=1)),
    pooling=Pooling("max", 3, 2),
    tapped=(0, 2),
)
"""So small that its Jacobian is a small matrix."""


@pytest.fixture(scope="module")
def small(drawn) -> Lpips:
    return drawn(SMALL)


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (*shape, 3)).astype(np.float32)


def ball_around(metric: Lpips, originals: np.ndarray, bound: Any) -> PerceptualBall:
    return PerceptualBall.around(metric, jnp.asarray(originals), jnp.asarray(bound, jnp.float32), (0.0, 1.0))


def distances(metric: Lpips, x: Any, y: Any) -> np.ndarray:
    return np.sqrt(rl.distance(x, y, metric))


def flat(vectors: Any) -> np.ndarray:
    """Of each image all numbers in one row."""
    return np.concatenate([np.reshape(vector, (len(vector), -1)) for vector in vectors], axis=1)


def test_embeddings_are_as_far_apart_as_the_images(tiny) -> None:
    x, y = pictures(2, 33, 35), pictures(2, 33, 35, seed=1)
    f, g = tiny.features(x), tiny.features(y)
    apart = flat(tiny.embedded(f)) - flat(tiny.embedded(g))
    np.testing.assert_allclose(np.square(np.float64(apart)).sum(axis=1), rl.distance(x, y, tiny), rtol=1e-5)
    np.testing.assert_allclose(attacks.perceptual_distance(tiny, f, g), distances(tiny, x, y), rtol=1e-6)


def test_the_distance_has_a_finite_gradient_where_images_are_alike(small) -> None:
    x = jnp.asarray(pictures(1, 9, 9))
    features = small.features(x)
    gradient = jax.grad(lambda x: attacks.perceptual_distance(small, small.features(x), features).sum())(x)
    assert np.all(np.isfinite(gradient))


def test_products_with_the_jacobian_are_those_of_the_dense_matrix(small) -> None:
    x = jnp.asarray(pictures(2, 7, 8))
    v = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    forward, backward = ball_around(small, np.asarray(x), 1).linearise(x)
    product = np.asarray(backward(forward(jnp.asarray(v))))
    for one in range(2):

        def phi(image: jax.Array) -> jax.Array:
            return jnp.concatenate([part.ravel() for part in small.embedded(small.features(image))])

        jacobian = np.asarray(jax.jacrev(phi)(x[one]), np.float64).reshape(-1, x[one].size)
        expected = jacobian.T @ (jacobian @ np.float64(v[one]).ravel())
        np.testing.assert_allclose(product[one].ravel(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        length = np.linalg.norm(jacobian @ np.float64(v[one]).ravel())
        np.testing.assert_allclose(np.asarray(norm(forward(jnp.asarray(v)), leading=1))[one], length, rtol=1e-5)


def test_both_products_agree_where_maxima_are_tied(tiny) -> None:
    # Of an image of one colour all windows are tied.
    x = jnp.full((1, 31, 31, 3), 0.6, jnp.float32)
    forward, backward = ball_around(tiny, np.asarray(x), 1).linearise(x)
    u, v = (jnp.asarray(pictures(1, 31, 31, seed=seed) - 0.5) for seed in (1, 2))
    inner = [float(jnp.sum(a * backward(forward(b)))) for a, b in ((u, v), (v, u))]
    np.testing.assert_allclose(inner[0], inner[1], rtol=1e-4, atol=1e-6)
    assert float(norm(forward(v), leading=1)[0]) > 0


def test_conjugate_gradients_solve_each_image_apart() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 2, 2, 3)
    maps = rng.normal(size=(3, 30, 12))
    matrices = np.asarray(maps.transpose(0, 2, 1) @ maps, np.float32)
    right = rng.normal(size=shape).astype(np.float32)
    right[1] = 0

    def multiply(x: jax.Array) -> jax.Array:
        return jnp.einsum("nij,nj->ni", matrices, x.reshape(3, 12), precision="highest").reshape(shape)

    solution = np.asarray(conjugate_gradient(multiply, jnp.asarray(right), 30)).reshape(3, 12)
    for one in (0, 2):
        np.testing.assert_allclose(solution[one], np.linalg.solve(matrices[one], right[one].ravel()), rtol=1e-3)
    assert np.all(solution[1] == 0)


def test_conjugate_gradients_stay_finite_along_what_the_map_does_not_see() -> None:
    right = jnp.asarray(pictures(2, 2, 2))
    assert np.all(np.isfinite(conjugate_gradient(lambda x: x * jnp.asarray([1.0, 0, 0]), right, 8)))
    assert np.all(np.asarray(conjugate_gradient(jnp.zeros_like, right, 3)) == 0)


@pytest.mark.slow
def test_projection_brings_images_within_and_leaves_the_others(tiny) -> None:
    originals = pictures(6, 33, 33)
    rng = np.random.default_rng(1)
    size = np.asarray([0.003, 0.03, 0.1, 0.3, 1, 3], np.float32)[:, None, None, None]
    images = np.clip(originals + size * rng.normal(size=originals.shape).astype(np.float32), 0, 1)
    before = distances(tiny, images, originals)
    for bound in (0.0, 1e-3, 0.05, 0.2):
        projected = np.asarray(attacks.project_perceptual(tiny, images, originals, bound=bound))
        after = distances(tiny, projected, originals)
        assert np.all(after <= 1.0001 * bound)
        assert projected.min() >= 0
        assert projected.max() <= 1
        # Not much farther in than Newton's method aims: the distance jumps where all channels of a pixel fall silent.
        assert np.all(after[before > bound] >= 0.8 * bound)
        within = before < bound
        np.testing.assert_array_equal(projected[within], images[within])
    assert np.any(before < 0.05)
    assert np.any(before > 0.2)


def test_every_example_has_its_bound_and_every_image_is_held_to_it(small) -> None:
    originals, images = pictures(2, 2, 9, 9), pictures(2, 2, 9, 9, seed=1)
    projected = attacks.project_perceptual(small, images, originals, bound=np.asarray([0.05, 0.1]))
    after = distances(small, projected, originals)
    assert np.all(after <= 1.0001 * np.asarray([[0.05], [0.1]]))
    assert np.all(after[1] > 0.05)


class Linear:
    """Images times a matrix, whose distances and slopes are one line of dense algebra."""

    name = signature = "linear"
    minimum_size = 1

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def features(self, images: jax.Array, *, value_range: Any = (0, 1)) -> Any:
        return [jnp.einsum("ij,nj->ni", self.matrix, images.reshape(len(images), -1), precision="highest")]

    def between(self, features: Any, others: Any) -> jax.Array:
        return jnp.sum((features[0] - others[0]) ** 2, axis=1)

    def embedded(self, features: Any) -> Any:
        return features


def test_projection_is_the_dense_solution() -> None:
    rng = np.random.default_rng(3)
    matrix, bound = rng.normal(size=(20, 12)) / 4, 0.02
    originals = rng.uniform(0.4, 0.6, (5, 2, 2, 3)).astype(np.float32)
    images = originals + 0.05 * rng.normal(size=originals.shape).astype(np.float32)
    metric: Any = Linear(matrix.astype(np.float32))
    change = (np.float64(images) - originals).reshape(5, -1)
    expected = change.copy()
    for row in expected:
        while (distance := np.linalg.norm(matrix @ row)) > bound:
            slope = matrix.T @ matrix @ row / distance
            row -= (distance - 0.99 * bound) * slope / (slope @ slope)
    ball = ball_around(metric, originals, bound)
    newton = (np.asarray(ball.project(jnp.asarray(images))) - originals).reshape(5, -1)
    np.testing.assert_allclose(newton, expected, atol=1e-6)
    # Along a segment the distance of a linear map is proportional to the share.
    flat = Flat(ball.metric, ball.originals, ball.features, ball.bound, ball.value_range)
    bisected = (np.asarray(flat.project(jnp.asarray(images))) - originals).reshape(5, -1)
    share = bound / np.linalg.norm(change @ matrix.T, axis=1, keepdims=True)
    np.testing.assert_allclose(bisected, share * change, atol=2**-12 * np.abs(change).max())


class Flat(PerceptualBall):
    """A distance without a slope: Newton's method stays where it is."""

    def distance(self, images: Any) -> Any:
        return jax.lax.stop_gradient(super().distance(images))


class Reversed(PerceptualBall):
    """A distance whose slope points the wrong way: Newton's method leads away."""

    def distance(self, images: Any) -> Any:
        distance = super().distance(images)
        return 2 * jax.lax.stop_gradient(distance) - distance


@pytest.mark.parametrize("kind", [Flat, Reversed])
def test_where_newton_fails_the_segment_is_bisected(small, kind) -> None:
    originals = pictures(3, 9, 9) * 0.5 + 0.25
    images = pictures(3, 9, 9, seed=1)
    images[2] = originals[2] + 1e-5
    ball = ball_around(small, originals, 0.05)
    ball = kind(ball.metric, ball.originals, ball.features, ball.bound, ball.value_range)
    projected = np.asarray(ball.project(jnp.asarray(images)))
    assert np.all(distances(small, projected, originals) <= 1.0001 * 0.05)
    np.testing.assert_array_equal(projected[2], images[2])
    whole = images - originals
    share = np.sum((projected - originals) * whole, axis=(1, 2, 3), keepdims=True) / np.sum(
        whole**2, axis=(1, 2, 3), keepdims=True
    )
    np.testing.assert_allclose(projected - originals, share * whole, atol=1e-6)
    # A little farther on the way is outside.
    assert np.all(share[:2] > 0)
    assert np.all(distances(small, originals + (share + 0.001) * whole, originals)[:2] > 0.05)


def test_bytes_and_other_ranges_are_projected_alike(small) -> None:
    originals, images = ((255 * pictures(1, 9, 9, seed=seed)).astype(np.uint8) for seed in (0, 1))
    one = attacks.project_perceptual(small, images, originals, bound=0.1)
    other = attacks.project_perceptual(small, images, originals, bound=0.1, value_range=(-1, 1))
    np.testing.assert_allclose((other + 1) / 2, one, atol=2e-4)
    assert other.min() < 0


def test_misuse_is_told(tiny, wrong_types) -> None:
    x = pictures(2, 31, 31)
    with pytest.raises(ImageError, match="one shape"):
        attacks.project_perceptual(tiny, x, x[:1], bound=0.1)
    with pytest.raises(AttackError, match="in the units of the perceptual distance"):
        attacks.project_perceptual(tiny, x, x, bound=-0.1)
    with pytest.raises(AttackError, match="one for each of the 2 examples"):
        attacks.project_perceptual(tiny, x, x, bound=[0.1, 0.1, 0.1])
    wrong: Any = "lpips-tiny"
    with pytest.raises(AttackError, match=r"must have an embedding .* as every LPIPS .* 'lpips-tiny' has none"):
        attacks.project_perceptual(wrong, x, x, bound=0.1)

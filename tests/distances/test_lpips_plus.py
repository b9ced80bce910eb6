"""LPIPS+: its weighting of positions in NumPy, and the order of its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import Computation, Convolution, Pool, Sequential
from rlpips_jax.distances.lpips_plus import LpipsPlus
from rlpips_jax.errors import MetricError
from rlpips_jax.images import to_symmetric
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.weights.parameters import unflatten, with_heads

SMALL = Sequential(
    "small",
    (
        *(Convolution(0, 4, 3, padding=1), Pool(1), Convolution(2, 5, 3, padding=1), Pool(3)),
        *(Convolution(4, 6, 3, padding=1), Pool(5), Convolution(6, 4, 3, padding=1)),
    ),
    Pooling("max", 2, 2),
    tapped=(0, 2, 4, 6),
)
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(2, 3, 18, 25, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def small() -> LpipsPlus:
    rng = np.random.default_rng(1)
    tensors = {name: rng.normal(0, 0.3, shape) for name, shape in with_heads(SMALL).shapes.items()}
    tensors = {name: np.abs(tensor) if "heads" in name else tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if "floors" not in name}
    parameters = unflatten(tensors, with_heads(SMALL), "drawn")
    return LpipsPlus(jax.tree.map(jnp.asarray, parameters), "drawn-lpips+", SMALL)


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel centres; positions beyond the outermost centres take their values."""

    def along(values: np.ndarray, count: int) -> np.ndarray:
        centres = (np.arange(count) + 0.5) * len(values) / count - 0.5
        whole = np.arange(len(values))
        return np.stack([np.interp(centres, whole, column) for column in values.T], axis=1)

    return along(along(values, height).T, width).T


def in_numpy(reference: np.ndarray, other: np.ndarray, metric: LpipsPlus) -> float:
    def taps(image: np.ndarray) -> list[np.ndarray]:
        shift, scale = np.array((-0.030, -0.088, -0.188)), np.array((0.458, 0.448, 0.450))
        scaled = (np.asarray(to_symmetric(image, (0, 1))) - shift) / scale
        found = SMALL.taps(metric.parameters["backbone"], jnp.asarray(scaled[None], jnp.float32), Computation())
        return [np.asarray(tap[0], np.float64) for tap in found]

    distance, activations = 0.0, taps(reference)
    strength = activations[2].sum(axis=-1)
    for f, g, head in zip(activations, taps(other), metric.parameters["heads"], strict=True):
        f, g = (tap / (np.linalg.norm(tap, axis=-1, keepdims=True) + 1e-10) for tap in (f, g))
        counts = bilinear(strength, *f.shape[:2])
        distance += np.sum((f - g) ** 2 @ np.asarray(head, np.float64) * counts) / np.sum(counts)
    return distance


@pytest.mark.slow
def test_positions_count_as_the_reference_is_active_there(small: LpipsPlus) -> None:
    expected = np.array([[in_numpy(x, y, small) for y in Y] for x in X])
    np.testing.assert_allclose(rl.distance(X, Y, small), expected.diagonal(), rtol=1e-5)
    np.testing.assert_allclose(rl.layer_distances(X, Y, small).sum(axis=-1), expected.diagonal(), rtol=1e-5)
    np.testing.assert_allclose(rl.pairwise(X, Y, small), expected, rtol=1e-5)
    np.testing.assert_allclose(rl.pairwise(X, Y[:2], small), expected[:, :2], rtol=1e-5)
    np.testing.assert_allclose(rl.pairwise(X[:2], Y, small), expected[:2], rtol=1e-5)
    backwards = [in_numpy(y, x, small) for x, y in zip(X, Y, strict=True)]
    np.testing.assert_allclose(rl.distance(Y, X, small), backwards, rtol=1e-5)
    assert np.all(np.abs(backwards - expected.diagonal()) > 1e-4 * expected.diagonal())


def test_images_of_several_sizes_are_refused(small: LpipsPlus) -> None:
    with pytest.raises(MetricError, match="compares images of one size"):
        small.padded_distance(X, Y, np.array([(18, 25)] * 3))


def test_a_mask_counts_beside_the_activations(small: LpipsPlus) -> None:
    everything = np.ones(X.shape[1:3], bool)
    np.testing.assert_allclose(rl.distance(X, Y, small, mask=everything), rl.distance(X, Y, small), rtol=1e-5)
    assert np.all(rl.distance(X, Y, small, mask=~everything) == 0)


@pytest.mark.slow
def test_without_activations_every_position_counts_alike(small: LpipsPlus) -> None:
    features = small.features(X)
    silent = (*features[:2], jnp.zeros_like(features[2]), features[3])
    layers = small.layers_between(silent, small.features(Y))
    assert np.all(layers > 0)
    # Inactive inside the mask alone.
    half = (*features[:2], features[2].at[..., :3, :].set(0), features[3])
    mask = np.zeros(X.shape[:3], bool)
    mask[:, :, :8] = True
    found = small.masked_between(half, small.features(Y), jnp.asarray(mask))
    expected = small.masked_between(silent, small.features(Y), jnp.asarray(mask))
    np.testing.assert_array_equal(found, expected)
    assert np.all(expected > 0)
    gradient = jax.grad(lambda f: small.between((*features[:2], f, features[3]), small.features(Y)).sum())(silent[2])
    assert np.all(np.isfinite(gradient))

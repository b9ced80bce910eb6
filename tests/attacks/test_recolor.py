"""`recolor`: how grids are interpolated, that a map is one of colours, and that it is bounded and smooth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.ndimage import map_coordinates

from rlpips_jax.attacks import recolor
from rlpips_jax.attacks.recolor import NODES, interpolated
from rlpips_jax.errors import AttackError

KEY = jax.random.key(0)


def by_scipy(grid: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """One image, interpolated by other code."""
    positions = np.moveaxis(colours * (len(grid) - 1), -1, 0)
    return np.stack([map_coordinates(values, positions, order=1) for values in np.moveaxis(grid, -1, 0)], axis=-1)


def test_interpolation_is_that_of_scipy_and_its_gradient_the_transpose() -> None:
    rng = np.random.default_rng(0)
    grid, colours = rng.normal(size=(2, 4, 4, 4, 3)), rng.uniform(size=(2, 6, 5, 3))
    colours[0, 0, :2] = [[0, 0, 1], [1, 1, 1]]
    colours[0, 1, 0] = 1 / 3
    with jax.enable_x64(True):
        found, pull = jax.vjp(lambda grid: interpolated(grid, jnp.asarray(colours)), jnp.asarray(grid))
        for one in range(2):
            np.testing.assert_allclose(found[one], by_scipy(grid[one], colours[one]), atol=1e-12)
        # Interpolation is linear in the grid.
        cotangent = rng.normal(size=found.shape)
        np.testing.assert_allclose(np.sum(pull(jnp.asarray(cotangent))[0] * grid), np.sum(cotangent * found))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Sixteen colours, each at four places."""
    colours = np.random.default_rng(1).uniform(size=(3, 16, 3)).astype(np.float32)
    return np.tile(colours, (1, 4, 1)).reshape(3, 8, 8, 3)


def contrast(weights: Any, images: Any) -> Any:
    return jnp.sum(weights * jnp.sin(9 * images), axis=(1, 2, 3))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_equal_colours_change_alike_within_the_bound(images: np.ndarray, value_range: tuple[float, float]) -> None:
    black, white = value_range
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(8, 8, 3)), jnp.float32)
    scaled = black + (white - black) * images
    epsilon = np.array([0.02, 0.1, 0.0], np.float32)
    result = recolor(
        Partial(contrast, weights), scaled, key=KEY, epsilon=epsilon, steps=6, restarts=2, value_range=value_range
    )
    change = np.asarray(result.adversarial - scaled).reshape(3, 4, 16, 3)
    np.testing.assert_allclose(change, change[:, :1].repeat(4, axis=1), atol=1e-6)
    np.testing.assert_array_equal(result.adversarial[2], scaled[2])
    assert np.all(result.success[:2])
    assert result.flow.shape == (3, NODES, NODES, NODES, 3)
    largest = np.abs(result.flow).max(axis=(1, 2, 3, 4))
    assert np.all(largest <= epsilon * (1 + 1e-5))
    # Of a mean of numbers within epsilon, moved by one node, no more than this can change.
    most = 2 * np.sqrt(2 / np.pi)
    assert all(np.all(np.abs(np.diff(result.flow[0], axis=axis)) <= most * 0.02) for axis in range(3))


def test_bad_smoothness(images: np.ndarray) -> None:
    with pytest.raises(AttackError, match="smoothness must be one number of nodes"):
        recolor(Partial(contrast, 1.0), images, key=KEY, epsilon=0.1, steps=2, smoothness=np.ones(3))

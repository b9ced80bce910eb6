"""`shift`: images move as said, all shifts are tried where there are few, and different ones where there are many."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rlpips_jax.attacks import shift
from rlpips_jax.attacks.shift import translated

KEY = jax.random.key(0)


def brightest(images: Any) -> Any:
    """The value of one pixel."""
    return images[..., 3, 4, 0].reshape(len(images), -1).max(axis=1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(4, 9, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("by", [(0, 0), (2, -3), (-8, 7), (20, -25)])
def test_what_comes_in_is_reflected(images: np.ndarray, by: tuple[int, int]) -> None:
    reach = max(map(abs, by)) + 1
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    y, x = (reach + one for one in by)
    expected = padded[:, y : y + 9, x : x + 8]
    np.testing.assert_array_equal(translated(jnp.asarray(images), jnp.asarray([by] * 4)), expected)


def test_few_shifts_are_all_tried(images: np.ndarray) -> None:
    epsilon = np.array([0, 1, 2.9, 3], np.float32)
    result = shift(Partial(brightest), images, key=KEY, epsilon=epsilon, steps=60)
    windows = [images[i, 3 - r : 4 + r, 4 - r : 5 + r, 0] for i, r in enumerate((0, 1, 2, 3))]
    np.testing.assert_array_equal(result.after, [window.max() for window in windows])
    np.testing.assert_array_equal(result.adversarial, translated(jnp.asarray(images), result.shift))
    # 49 shifts are there, and no more steps are made.
    assert len(result.trajectory) == 49


def test_of_many_shifts_different_ones_are_tried(images: np.ndarray) -> None:
    # Each shift shows another pixel.
    values = np.arange(17 * 17, dtype=np.float32).reshape(17, 17) / 289
    image = np.broadcast_to(values[..., None], (2, 17, 17, 3))

    def middle(images: Any) -> Any:
        return images[:, 8, 8, 0]

    result = shift(Partial(middle), image, key=KEY, epsilon=8, steps=40)
    tried = np.rint(np.asarray(result.trajectory) * 289).T
    assert all(len(set(of_one)) == 40 for of_one in tried)
    assert set(tried[0]) != set(tried[1])
    # Two neighbours are less than two strides of 289 / 40 apart.
    assert np.diff(np.sort(tried), axis=1).max() < 2 * 289 / 40
    np.testing.assert_allclose(result.after, result.trajectory.max(axis=0))


def test_the_images_of_an_example_move_together(images: np.ndarray) -> None:
    pairs = images.reshape(2, 2, 9, 8, 3)
    result = shift(Partial(brightest), pairs, key=KEY, epsilon=2, steps=25)
    assert result.shift.shape == (2, 2)
    for place in (0, 1):
        moved = translated(jnp.asarray(pairs[:, place]), result.shift)
        np.testing.assert_array_equal(result.adversarial[:, place], moved)

"""The Square attack's windows and pyramids, against the paper's own formulas."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.attacks import square
from rlpips_jax.errors import AttackError

random_search = importlib.import_module("rlpips_jax.attacks.square")


def test_windows_shrink_as_published() -> None:
    sides = random_search.window_sides(10_000, 0.05, 224, 224)
    # sqrt(p) * 224, where p = 0.05 is halved at each of these steps.
    for halvings, step in enumerate((0, 10, 50, 200, 1000, 2000, 4000, 6000, 8000)):
        assert sides[step] == round(224 * (0.05 / 2**halvings) ** 0.5)
        assert step == 0 or sides[step - 1] > sides[step]


def test_the_schedule_is_stretched_to_the_steps() -> None:
    published = random_search.window_sides(10_000, 0.8, 64, 64)
    assert np.array_equal(random_search.window_sides(100, 0.8, 64, 64), published[::100])


def test_windows_fit_images() -> None:
    sides = random_search.window_sides(10_000, 1.0, 4, 50)
    assert sides[0] == 4
    assert sides[-1] == 1
    assert random_search.window_sides(1000, 0.1, 2, 2).tolist() == [1] * 1000


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 5), (7, 3), (8, 4)])
def test_pyramids_are_the_papers(height: int, width: int) -> None:
    """eta_rs = sum over k = 0..M of 1 / (n + 1 - k)^2, M = n - max(|r - h1 // 2 - 1|, |s - h2 // 2 - 1|), from 1."""
    n = height // 2
    expected = [
        [
            sum(1 / (n + 1 - k) ** 2 for k in range(n - max(abs(r - n - 1), abs(s - width // 2 - 1)) + 1))
            for s in range(1, width + 1)
        ]
        for r in range(1, height + 1)
    ]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    got = random_search._pyramid(rows, columns, jnp.asarray(height), jnp.asarray(width), 20)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def brightness(images: jax.Array) -> jax.Array:
    return images.sum((1, 2, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_search_climbs_and_the_ball_stays_full(norm: str) -> None:
    images = np.full((3, 12, 10, 3), 0.5, np.float32)
    epsilon = np.asarray([0.02, 0.05, 0.1], np.float32)
    result = square(brightness, images, key=jax.random.key(0), epsilon=epsilon, norm=norm, steps=400)
    np.testing.assert_allclose(getattr(result, norm), epsilon, rtol=1e-3)
    limit = epsilon * (360 if norm == "linf" else np.sqrt(360))
    gain = np.asarray(result.after - result.before)
    # A drawn start has about a tenth.
    assert np.all(gain > limit / 3)
    assert np.all(gain <= limit * (1 + 1e-4))
    if norm == "linf":
        change = np.abs(np.asarray(result.adversarial) - 0.5)
        np.testing.assert_allclose(change, np.broadcast_to(epsilon[:, None, None, None], change.shape), rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none(share: float) -> None:
    images = np.full((1, 4, 4, 3), 0.5, np.float32)
    with pytest.raises(AttackError, match="initial_share must be above 0 and at most 1"):
        square(brightness, images, key=jax.random.key(0), epsilon=0.1, steps=5, initial_share=share)

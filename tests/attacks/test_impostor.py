"""`impostor`: the bound holds, and what it finds is far away."""

import importlib
from typing import Any, cast

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.errors import AttackError
from tests.attacks.conftest import pictures

KEY = jax.random.key(0)


def length(change: np.ndarray | jax.Array) -> np.ndarray:
    """The length for each image, in float64."""
    return np.sqrt(np.square(np.float64(change)).sum(axis=(1, 2, 3)))


def programs() -> int:
    """How many the attack has been compiled to."""
    return cast(Any, importlib.import_module("rlpips_jax.attacks.impostor"))._impostor._cache_size()


@pytest.mark.slow
def test_it_is_within_the_bound_and_farther_than_noise_there(metric) -> None:
    images = (pictures(3) / 255).astype(np.float32)
    bound = np.array([0.02, 0.05, 0.1])
    result = rl.attacks.impostor(metric, images, key=KEY, bound=bound, steps=80)
    distance = np.asarray(rl.distance(result.adversarial, images, metric))
    assert np.all(distance <= bound)
    assert np.all(result.distance <= bound)
    np.testing.assert_allclose(result.distance, distance, rtol=1e-4)
    np.testing.assert_allclose(result.l2, length(result.adversarial - images), rtol=1e-5)
    np.testing.assert_array_equal(result.after, result.l2)
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    assert result.success.all()
    # Noise that moves pixels less is beyond the bound already.
    noise = np.random.default_rng(1).standard_normal(images.shape)
    noisy = np.clip(images + noise * (0.8 * np.asarray(result.l2) / length(noise))[:, None, None, None], 0, 1)
    assert np.all(rl.distance(noisy, images, metric) > bound)


@pytest.mark.slow
def test_where_no_iterate_is_within_the_bound_the_segment_to_the_image_ends_there(metric) -> None:
    images = (pictures(2) / 255).astype(np.float32)
    bound = 1e-3
    result = rl.attacks.impostor(metric, images, key=KEY, bound=bound, steps=3, starts=images[::-1])
    assert np.all(result.trajectory < 0)
    np.testing.assert_allclose(rl.distance(result.adversarial, images, metric), bound, rtol=0.01)
    assert np.all(rl.distance(result.adversarial, images, metric) <= bound)
    assert np.all(result.l2 > 0)


@pytest.mark.slow
def test_it_is_no_nearer_than_a_shift_of_brightness(metric) -> None:
    images = (pictures(3) / 255).astype(np.float32)
    result = rl.attacks.impostor(metric, images, key=KEY, bound=0.02, steps=2)
    shifts = np.linspace(-0.2, 0.2, 17).reshape(-1, 1, 1, 1, 1)
    shifted = np.clip(images + shifts, 0, 1).astype(np.float32)
    within = np.asarray(rl.distance(np.broadcast_to(images, shifted.shape), shifted, metric)) <= 0.02
    lengths = np.where(within, [length(one - images) for one in shifted], 0)
    assert np.all(result.l2 >= lengths.max(axis=0))
    assert np.all(lengths.max(axis=0) > 0)


@pytest.mark.slow
def test_a_bound_of_0_leaves_the_image(metric) -> None:
    images = pictures(2)
    result = rl.attacks.impostor(metric, images, key=KEY, bound=0, steps=3)
    np.testing.assert_allclose(result.adversarial, images / 255, atol=1e-6)
    assert result.distance.max() < 1e-9


@pytest.mark.slow
def test_more_restarts_get_as_far_or_farther(metric) -> None:
    images = pictures(2)
    one, several = (
        np.asarray(
            rl.attacks.impostor(metric, images, key=KEY, bound=0.1, starts=images, steps=20, restarts=restarts).l2
        )
        for restarts in (1, 3)
    )
    assert np.all(several >= one * (1 - 1e-5))
    assert np.any(several > one * (1 + 1e-5))


@pytest.mark.slow
def test_it_starts_where_it_is_told(metric) -> None:
    images, others = pictures(3), pictures(3, seed=5)
    result = rl.attacks.impostor(metric, images, key=KEY, bound=np.full(3, 0.1), steps=80, starts=others)
    assert np.all(rl.distance(result.adversarial, (images / 255).astype(np.float32), metric) <= 0.1)
    # It looks like what it began as.
    assert np.all(length(result.adversarial - others / 255) < length(result.adversarial - images / 255))


@pytest.mark.slow
def test_the_range_is_a_matter_of_units(metric) -> None:
    images = (pictures(2) / 255).astype(np.float32)
    unit = rl.attacks.impostor(metric, images, key=KEY, bound=0.05, steps=20)
    wide = rl.attacks.impostor(metric, 255 * images, key=KEY, bound=0.05, steps=20, value_range=(0, 255))
    np.testing.assert_allclose(wide.l2, 255 * unit.l2, rtol=0.1)


@pytest.mark.slow
def test_all_batches_are_one_program(metric) -> None:
    before = None
    for seed in range(3):
        rl.attacks.impostor(metric, pictures(2, seed), key=jax.random.key(seed), bound=0.01 * seed, steps=3)
        if seed == 0:
            before = programs()
    assert programs() == before


def test_bad_arguments(metric) -> None:
    images = pictures(3)
    with pytest.raises(AttackError, match="bound must be finite and 0 or more"):
        rl.attacks.impostor(metric, images, key=KEY, bound=-1)
    with pytest.raises(AttackError, match="bound must be one number or one for each of the 3"):
        rl.attacks.impostor(metric, images, key=KEY, bound=np.ones(2))
    with pytest.raises(AttackError, match="one start for each image"):
        rl.attacks.impostor(metric, images, key=KEY, bound=0.1, starts=images[:2])
    with pytest.raises(AttackError, match="steps must be a whole number"):
        rl.attacks.impostor(metric, images, key=KEY, bound=0.1, steps=0)

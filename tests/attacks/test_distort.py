"""`distort`: what looks the same measures far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.errors import AttackError, ImageError
from tests.attacks.conftest import pictures, programs

KEY = jax.random.key(0)

STEPS = 10
"""With three images and a radius for each, most tests share one program."""


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.03), ("l2", 0.8)])
def test_it_stays_in_the_ball_and_measures_farther_than_noise_there(metric, norm: str, epsilon: float) -> None:
    images = pictures(3)
    radii = np.full(3, epsilon)
    result = rl.attacks.distort(metric, images, key=KEY, epsilon=radii, norm=norm, steps=STEPS)
    change = np.float64(result.adversarial) - images / 255
    length = np.abs(change).max(axis=(1, 2, 3)) if norm == "linf" else np.sqrt(np.square(change).sum(axis=(1, 2, 3)))
    assert np.all(length <= epsilon * (1 + 1e-5))
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    np.testing.assert_allclose(result.after, rl.distance(result.adversarial, images / 255, metric), rtol=1e-4)
    noise = np.random.default_rng(1).standard_normal(images.shape)
    noise = np.sign(noise) if norm == "linf" else noise / np.sqrt(np.square(noise).sum(axis=(1, 2, 3), keepdims=True))
    noisy = np.clip(images / 255 + epsilon * noise, 0, 1)
    assert np.all(result.after > 3 * rl.distance(noisy, images / 255, metric))
    assert np.all(result.before == 0)
    assert np.all(result.success)


def test_a_ball_of_no_size_holds_the_image_alone(metric) -> None:
    images = pictures(3)
    result = rl.attacks.distort(metric, images, key=KEY, epsilon=np.array([0, 0.02, 0]), steps=STEPS)
    np.testing.assert_allclose(result.adversarial[::2], images[::2] / 255, atol=1e-7)
    assert np.all(np.asarray(result.after)[::2] == 0)
    np.testing.assert_array_equal(result.success, [False, True, False])


@pytest.mark.slow
def test_the_range_is_a_matter_of_units(metric) -> None:
    images, radii = (pictures(3) / 255).astype(np.float32), np.full(3, 0.03)
    unit = rl.attacks.distort(metric, images, key=KEY, epsilon=radii, steps=STEPS)
    wide = rl.attacks.distort(metric, 2 * images - 1, key=KEY, epsilon=2 * radii, steps=STEPS, value_range=(-1, 1))
    np.testing.assert_allclose(wide.after, unit.after, rtol=0.02)
    np.testing.assert_allclose(wide.linf, 2 * unit.linf, rtol=1e-4)


def test_all_batches_are_one_program(metric) -> None:
    def attack(seed: int) -> None:
        epsilon = np.full(3, 0.01 * (seed + 1))
        images = jnp.asarray(pictures(3, seed))
        rl.attacks.distort(metric, images, key=jax.random.key(seed), epsilon=epsilon, steps=STEPS)

    attack(0)
    before = programs()
    for seed in range(1, 3):
        attack(seed)
    assert programs() == before


def test_bad_arguments(metric) -> None:
    images = pictures(2)
    with pytest.raises(AttackError, match="norm must be one of linf, l2"):
        rl.attacks.distort(metric, images, key=KEY, epsilon=0.1, norm="l1")
    with pytest.raises(AttackError, match="epsilon must be finite and 0 or more"):
        rl.attacks.distort(metric, images, key=KEY, epsilon=-0.1)
    with pytest.raises(ImageError, match=r"pass images\[None\]"):
        rl.attacks.distort(metric, images[0], key=KEY, epsilon=0.1)

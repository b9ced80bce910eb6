"""`spatial`: how images are resampled, how long and how smooth flows are, and that they raise an objective."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import rlpips_jax as rl
from rlpips_jax.attacks.spatial import resample
from rlpips_jax.attacks.warp import smooth
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import AttackError
from tests.attacks.conftest import pictures, programs

KEY = jax.random.key(0)


def lengths(flow: Any) -> np.ndarray:
    return np.sqrt(np.square(np.float64(flow)).sum(axis=-1))


def objective_and_images(metric: Lpips, seed: int = 0) -> tuple[Any, np.ndarray]:
    """The objective of triplets whose farther image is a little noisier, and the closer images."""
    reference = pictures(3, seed)
    noise = np.random.default_rng(1).standard_normal(reference.shape)
    closer, farther = (np.clip(np.rint(reference + amount * noise), 0, 255).astype(np.uint8) for amount in (8, 9))
    return rl.attacks.ranking(metric, reference, closer, farther), closer


@pytest.fixture(scope="module")
def triplets(metric) -> tuple[Any, np.ndarray]:
    return objective_and_images(metric)


def by_scipy(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """One image, sampled by other code."""
    positions = np.indices(image.shape[:2]) + np.moveaxis(flow, -1, 0)
    return np.stack(
        [map_coordinates(channel, positions, order=1, mode="nearest") for channel in np.moveaxis(image, -1, 0)], -1
    )


@pytest.mark.parametrize("size", [(7, 5), (1, 4), (16, 16)])
@pytest.mark.parametrize("reach", [0.4, 3.0, 40.0])
def test_resampling_is_that_of_scipy(size: tuple[int, int], reach: float) -> None:
    rng = np.random.default_rng(0)
    images, flow = rng.uniform(size=(2, 3, *size, 3)), rng.uniform(-reach, reach, (2, 3, *size, 2))
    flow[0, 0] = np.rint(flow[0, 0])
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(resample)(jnp.asarray(images), jnp.asarray(flow)))
        mapped = np.asarray(jax.vmap(jax.vmap(resample))(jnp.asarray(images), jnp.asarray(flow)))
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(found[index], by_scipy(images[index], flow[index]), atol=1e-12)
    np.testing.assert_allclose(mapped, found, atol=1e-15)


def test_its_gradient_is_the_slope() -> None:
    rng = np.random.default_rng(0)
    images, flow, weights = (rng.uniform(-1, 1, (2, 6, 7, axis)) for axis in (3, 2, 3))
    # A cell away from its borders, where the slope has a kink; some positions are outside the image.
    flow = 2 * np.rint(2 * flow) + 0.1 + 0.8 * rng.uniform(size=flow.shape)
    with jax.enable_x64(True):

        def total(flow: Any) -> Any:
            return jnp.sum(resample(jnp.asarray(images), flow) * weights)

        gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(flow)))
        total = jax.jit(total)
        step = 1e-5
        for index in np.ndindex(flow.shape):
            change = np.zeros_like(flow)
            change[index] = step
            slope = (total(flow + change) - total(flow - change)) / (2 * step)
            np.testing.assert_allclose(gradient[index], slope, atol=1e-9)
    assert (gradient == 0).any()
    assert (gradient != 0).sum() > gradient.size / 4


def test_smoothing_is_a_mean() -> None:
    constant = np.full((9, 12, 2), 0.7, np.float32)
    np.testing.assert_allclose(smooth(jnp.asarray(constant), jnp.float32(2)), constant, rtol=1e-6)
    field = np.random.default_rng(0).uniform(-1, 1, (2, 9, 12, 2)).astype(np.float32)
    np.testing.assert_array_equal(smooth(jnp.asarray(field), jnp.float32(0)), field)
    impulse = np.zeros((21, 21, 2), np.float32)
    impulse[10, 10, 0] = 1
    found = np.asarray(smooth(jnp.asarray(impulse), jnp.float32(1.5)))
    squared = np.square(np.indices((21, 21)) - 10).sum(axis=0)
    expected = np.exp(-squared / (2 * 1.5**2))
    np.testing.assert_allclose(found[..., 0], expected / expected.sum(), atol=1e-6)
    assert not found[..., 1].any()


@pytest.mark.parametrize("smoothness", [0.0, 2.0])
def test_flows_are_short_smooth_and_raise_the_objective(triplets, smoothness: float) -> None:
    objective, closer = triplets
    epsilon = np.array([0.3, 0.6, 1.2])
    result = rl.attacks.spatial(objective, closer, key=KEY, epsilon=epsilon, smoothness=smoothness, steps=8)
    assert np.all(lengths(result.flow).max(axis=(1, 2)) <= epsilon * (1 + 1e-5))
    assert np.all(lengths(result.flow).max(axis=(1, 2)) > 0.3 * epsilon)
    if smoothness:
        # Of a mean of vectors no longer than epsilon, moved by one pixel, no more than this can change.
        most = np.sqrt(2 / np.pi) / smoothness
        steps = [lengths(np.diff(result.flow, axis=axis)).max(axis=(1, 2)) for axis in (1, 2)]
        assert np.all(np.array(steps) <= 1.05 * 2 * most * epsilon)
        assert np.all(np.array(steps) < epsilon)
    images = (closer / 255).astype(np.float32)
    np.testing.assert_allclose(result.adversarial, resample(jnp.asarray(images), result.flow), atol=1e-6)
    np.testing.assert_allclose(result.after, objective(result.adversarial), atol=1e-6)
    assert np.all(result.after > result.before)
    span = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    assert np.all(result.adversarial.min(axis=(1, 2)) >= span[0] - 1e-6)
    assert np.all(result.adversarial.max(axis=(1, 2)) <= span[1] + 1e-6)


def test_no_displacement_leaves_the_image(triplets) -> None:
    objective, closer = triplets
    images = (closer / 255).astype(np.float32)
    result = rl.attacks.spatial(objective, images, key=KEY, epsilon=np.zeros(3), steps=8)
    np.testing.assert_array_equal(result.adversarial, images)
    np.testing.assert_array_equal(result.flow, 0)


@pytest.mark.slow
def test_each_image_of_an_example_has_its_flow(metric) -> None:
    reference, closer, farther = pictures(2), pictures(2, seed=1), pictures(2, seed=2)
    objective = rl.attacks.ranking(metric, reference, closer, farther, attacked="both")
    both = rl.attacks.attacked_images(reference, closer, farther, "both")
    result = rl.attacks.spatial(objective, both, key=KEY, epsilon=1, steps=4, restarts=2)
    assert result.flow.shape == (2, 2, 32, 32, 2)
    assert np.all(result.after > result.before)
    assert np.all(lengths(result.flow).max(axis=(2, 3)) > 0)


def test_without_a_random_start_the_key_is_of_no_account(triplets) -> None:
    objective, closer = triplets
    found = [
        rl.attacks.spatial(objective, closer, key=jax.random.key(seed), epsilon=0.5, steps=3, random_start=False)
        for seed in (0, 1)
    ]
    np.testing.assert_array_equal(found[0].flow, found[1].flow)
    np.testing.assert_allclose(found[0].trajectory[0], found[0].before, atol=1e-6)


def test_all_batches_are_one_program(metric) -> None:
    before = None
    for seed in range(3):
        objective, closer = objective_and_images(metric, seed)
        options = {"epsilon": np.full(3, 0.1 * seed), "smoothness": 0.5 * seed}
        rl.attacks.spatial(objective, closer, key=jax.random.key(seed), steps=8, **options)
        if seed == 0:
            before = programs()
    assert programs() == before


def test_bad_arguments(triplets) -> None:
    objective, closer = triplets
    with pytest.raises(AttackError, match="smoothness must be one number of pixels"):
        rl.attacks.spatial(objective, closer, key=KEY, epsilon=1, smoothness=np.ones(3), steps=2)
    with pytest.raises(AttackError, match="smoothness must be finite and 0 or more"):
        rl.attacks.spatial(objective, closer, key=KEY, epsilon=1, smoothness=-1, steps=2)
    with pytest.raises(AttackError, match="restarts must be a whole number"):
        rl.attacks.spatial(objective, closer, key=KEY, epsilon=1, steps=2, restarts=0)

"""SSIM agrees with scikit-image; pixel distances are metrics of this library."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

import rlpips_jax as rl
from benchmarks.pixel_metrics import L2, SSIM


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.uniform(0, 0.05, (20, 23, 3)), axis=1).astype(np.float32)
    x /= x.max()
    return x, np.clip(x + 0.1 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)


def test_ssim_is_that_of_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (np.float64(image) for image in pair)
    options = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similarity: Any = structural_similarity(x, y, data_range=1, **options)
    np.testing.assert_allclose(rl.distance(*pair, SSIM()), 1 - similarity, rtol=1e-4)


@pytest.mark.parametrize("metric", [L2(), SSIM()], ids=lambda metric: metric.name)
def test_identical_images_have_distance_0_and_a_finite_gradient(metric: rl.Metric) -> None:
    for image in (jnp.full((16, 16, 3), 0.5), jnp.zeros((16, 16, 3))):
        value, gradient = jax.value_and_grad(rl.distance, argnums=1)(image, image, metric)
        assert value == 0
        assert np.isfinite(gradient).all()

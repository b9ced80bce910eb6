"""A metric of resized images: the metric itself after a resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.distances.resized import Resized
from rlpips_jax.errors import MetricError


def test_it_is_the_metric_of_resized_images() -> None:
    metric = rl.load("lpips-tiny")
    x, y = (jax.random.uniform(jax.random.key(seed), (2, 16, 16, 3)) for seed in (0, 1))
    larger = jax.image.resize(jnp.stack([x, y]), (2, 2, 32, 32, 3), "bilinear", precision=jax.lax.Precision.HIGHEST)
    resized = Resized(metric, 32, 32)
    np.testing.assert_allclose(rl.distance(x, y, resized), rl.distance(larger[0], larger[1], metric), rtol=1e-5)
    x, y = (np.asarray(image * 255, np.uint8) for image in (x, y))
    of_floats = rl.distance(x / np.float32(255), y / np.float32(255), resized)
    np.testing.assert_allclose(rl.distance(x, y, resized), of_floats, rtol=1e-5)
    assert "lpips-tiny" in resized.signature


def test_a_size_that_the_metric_refuses() -> None:
    metric = rl.load("lpips-tiny")
    assert metric.minimum_size == 31
    with pytest.raises(MetricError, match="cannot resize them to 30x30"):
        Resized(metric, 30, 30)
    assert jnp.isfinite(rl.distance(jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 4, 4, 3)), Resized(metric, 32, 32)))[0]

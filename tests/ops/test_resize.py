"""Bilinear enlargement."""

import jax.numpy as jnp
import numpy as np

from rlpips_jax.ops.resize import resize_bilinear


def test_enlargement_is_linear_between_pixel_centres() -> None:
    x = jnp.array([[[0.0, 1.0]]])
    np.testing.assert_allclose(resize_bilinear(x, 1, 4)[0, 0], [0, 0.25, 0.75, 1], atol=1e-7)

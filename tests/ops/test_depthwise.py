"""Depthwise convolution is what XLA's grouped one is, with its derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlpips_jax.ops.depthwise import depthwise

RANDOM = np.random.default_rng(0)
X, KERNEL, COTANGENT = (
    jnp.asarray(RANDOM.normal(size=shape), jnp.float32) for shape in ((2, 6, 5, 3), (7, 3, 1, 3), (2, 6, 5, 3))
)


def grouped(x: Any, kernel: Any) -> Any:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=3, precision="highest"
    )


@pytest.mark.parametrize("forward_mode", [False, True])
def test_it_is_the_grouped_convolution(forward_mode: bool) -> None:
    def ours(x: Any, kernel: Any) -> Any:
        return depthwise(x, kernel, forward_mode=forward_mode)

    (found, transpose), (expected, transposed) = (jax.vjp(f, X, KERNEL) for f in (ours, grouped))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(transpose(COTANGENT), transposed(COTANGENT), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    if forward_mode:
        _, tangent = jax.jvp(ours, (X, KERNEL), (COTANGENT, KERNEL))
        np.testing.assert_allclose(tangent, grouped(COTANGENT, KERNEL) + expected, rtol=1e-5, atol=1e-5)


def test_second_derivatives() -> None:
    def curved(f: Any) -> Any:
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(lambda x: jnp.sum(jnp.sin(f(x, KERNEL))))(x))))(X)

    np.testing.assert_allclose(curved(depthwise), curved(grouped), rtol=1e-4, atol=1e-4)

"""Depthwise convolution: each channel by a kernel of its own.

On CPU XLA computes each channel apart, and takes ten times as long as for a sum of shifted products, which it makes one
loop of (7x7, 128 channels of 56x56 pixels, 512 channels of 14x14).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.reverse_only import reverse_only
from rlpips_jax.ops.varying import varying_alike


@automatic_axes("x")
def depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "i j 1 c"], *, precision: Any = None, forward_mode: bool = False
) -> Float[Array, "n h w c"]:
    """A convolution of each channel with its own kernel and with zeros around the image, whose size it keeps.

    Args:
        x: channels last.
        kernel: of odd height and width.
        precision: as `jax.lax.Precision` names it.
        forward_mode: use the derivative that `jax.jvp` can take, which is slower on CPU.
    """
    if forward_mode:
        return _either(x, kernel, precision)
    return _depthwise(*reverse_only(varying_alike((x, kernel))), precision)


def _plain(x: Array, kernel: Array, precision: Any) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def _padded(x: Array, kernel: Array) -> Array:
    """The images with zeros around them, in float32 or more."""
    around = ((length // 2, length // 2) for length in kernel.shape[:2])
    return jnp.pad(x.astype(jnp.promote_types(x.dtype, jnp.float32)), ((0, 0), *around, (0, 0)))


def _either(x: Array, kernel: Array, precision: Any) -> Array:
    def fast(x: Array, kernel: Array) -> Array:
        (height, width), padded = x.shape[1:3], _padded(x, kernel)
        products = (
            padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        return functools.reduce(jnp.add, products).astype(x.dtype)

    return lax.platform_dependent(x, kernel, cpu=fast, default=functools.partial(_plain, precision=precision))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, kernel: Array, precision: Any) -> Array:
    return _either(x, kernel, precision)


def _forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return _either(x, kernel, precision), (x, kernel)


def _backward(precision: Any, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    def fast(x: Array, kernel: Array, cotangent: Array) -> Array:
        (height, width), padded = x.shape[1:3], _padded(x, kernel)

        def row(i: Array) -> Array:
            seen = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
            sums = [jnp.sum(seen[:, :, j : j + width] * cotangent, axis=(0, 1, 2)) for j in range(kernel.shape[1])]
            return jnp.stack(sums)[:, None]

        return lax.map(row, jnp.arange(kernel.shape[0])).astype(kernel.dtype)

    def plain(x: Array, kernel: Array, cotangent: Array) -> Array:
        return jax.vjp(functools.partial(_plain, x, precision=precision), kernel)[1](cotangent)[0]

    x, kernel = residuals
    by_kernel = lax.platform_dependent(x, kernel, cotangent, cpu=fast, default=plain)
    return _either(cotangent, kernel[::-1, ::-1], precision), by_kernel


_depthwise.defvjp(_forward, _backward)

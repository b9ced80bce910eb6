"""Resizing as PyTorch does it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_bilinear(x: Float[Array, "... i j"], height: Any, width: Any) -> Float[Array, "... h w"]:
    """Bilinear, with half-pixel centres and no smoothing before a reduction (PyTorch's `align_corners=False`)."""
    return jax.image.resize(
        x,
        (*x.shape[:-2], height, width),
        "bilinear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.result_type(x))


def resize_bicubic(x: Float[Array, "n i j c"], height: int, width: int) -> Float[Array, "n h w c"]:
    """Bicubic resizing with antialiasing, as Pillow and PyTorch (`antialias=True`) have it; values may overshoot.

    Cubic convolution with a = -0.5, widened by the factor by which the image shrinks; in float32 or more. An image of
    that size stays as it is.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(wide, shape, "bicubic", precision=jax.lax.Precision.HIGHEST)

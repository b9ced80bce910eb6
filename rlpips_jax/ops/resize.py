"""Bilinear resizing as PyTorch does it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_bilinear(x: Float[Array, "n i j"], height: int, width: int) -> Float[Array, "n h w"]:
    """Bilinear enlargement with half-pixel centres (PyTorch's `align_corners=False`)."""
    return jax.image.resize(
        x,
        (*x.shape[:-2], height, width),
        "bilinear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.result_type(x))

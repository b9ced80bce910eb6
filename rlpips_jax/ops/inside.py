"""Images of several sizes in one batch: what lies outside each of them is 0."""

from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Size = TypeVar("Size", int, Array)
"""A number of pixels, or an array of them."""


def inside(x: Float[Array, "n h w c"], sizes: Int[Array, "n 2"]) -> Float[Array, "n h w c"]:
    """The top left part of each image, of its own height and width, and zeros around it."""

    def along(axis: int) -> Bool[Array, "n _"]:
        return jnp.arange(x.shape[1 + axis]) < sizes[:, axis, None]

    return jnp.where((along(0)[:, :, None] & along(1)[:, None, :])[..., None], x, 0)

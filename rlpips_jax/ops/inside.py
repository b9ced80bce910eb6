"""Images of several sizes in one batch: what lies outside each of them is 0."""

from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Size = TypeVar("Size", bound=Any)
"""A number of pixels, or an array of them; in a program that is exported for any size an expression of JAX's."""


def inside(x: Float[Array, "n h w c"], sizes: Int[Array, "n 2"]) -> Float[Array, "n h w c"]:
    """The top left part of each image, of its own height and width, and zeros around it."""

    def along(axis: int) -> Bool[Array, "n _"]:
        return jnp.arange(x.shape[1 + axis]) < sizes[:, axis, None]

    return jnp.where((along(0)[:, :, None] & along(1)[:, None, :])[..., None], x, 0)

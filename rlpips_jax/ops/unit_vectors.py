"""Unit vectors without infinite slopes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-10


def unit_vectors(vectors: Float[Array, "... c"], floor: Float[Array, ""] | None = None) -> Float[Array, "... c"]:
    """f / (|f| + 1e-10), or with a floor c f / max(sqrt(|f|^2 + c^2), 1e-10).

    The square root never sees 0, where its slope is infinite, so no gradient is NaN.
    """
    square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    if floor is not None:
        return vectors / jnp.sqrt(jnp.maximum(square + jnp.square(floor), EPSILON**2))
    positive = square > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return vectors / (norm + EPSILON)

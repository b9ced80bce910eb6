"""A function of a large batch, applied to a few examples at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


def in_blocks(function: Callable[..., Any], *arrays: Shaped[Array, "n ..."], most: int | None) -> Any:
    """Applies a function of batches to at most so many examples at a time.

    Args:
        function: of arrays with a first axis of n; what it gives for an example depends on that example alone.
        *arrays: its arguments.
        most: examples that are computed together; None for all.
    """
    if most is None or arrays[0].shape[0] <= most:
        return function(*arrays)

    @jax.checkpoint  # or a gradient would keep the activations of every block
    def one(arrays: tuple[Array, ...]) -> Any:
        result = function(*(array[None] for array in arrays))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return jax.lax.map(one, arrays, batch_size=most)


def filled_blocks(array: Shaped[Array, "n ..."], size: int) -> Shaped[Array, "blocks size ..."]:
    """Blocks of a batch; the last one is filled up with its last example."""
    filled = jnp.pad(array, [(0, -len(array) % size), *[(0, 0)] * (array.ndim - 1)], mode="edge")
    return filled.reshape(-1, size, *array.shape[1:])

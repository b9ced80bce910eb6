"""Entries of a matrix of distances that are computed again where matrix products lose their digits."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

TOGETHER = 64
NUMBERS = 1 << 22
"""The largest number of pairs, and of numbers of one set, that are computed again at once."""

Direct = Callable[[Int[Array, " k"], Int[Array, " k"]], Float[Array, " k"]]
"""`rows, columns -> ` the distances of these pairs. Some rows are beyond the last; what these give is not used."""


def close_again(
    products: Float[Array, "n m"], close: Bool[Array, "n m"], direct: Direct, *, length: int
) -> Float[Array, "n m"]:
    """The matrix with those entries computed again that are marked, a few at a time.

    The derivative is that of the products.

    Args:
        products: distances by matrix products.
        close: which of them have lost digits.
        direct: computes some of them again; what it closes over must have no derivative (`jax.lax.stop_gradient`).
        length: numbers that a pair takes of each set.
    """
    value = _again(lax.stop_gradient(products), lax.stop_gradient(close), direct, length)
    return value + (products - lax.stop_gradient(products))


def _again(products: Array, close: Array, direct: Direct, length: int) -> Array:
    n, m = products.shape
    together = max(1, min(TOGETHER, NUMBERS // length))
    (places,) = jnp.nonzero(close.ravel(), size=n * m, fill_value=n * m)
    places = jnp.concatenate([places, jnp.full(together, n * m, places.dtype)])

    def some(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, value = state
        pairs = lax.dynamic_slice(places, (done,), (together,))
        return done + together, value.at[pairs].set(direct(*jnp.divmod(pairs, m)), mode="drop")

    start = jnp.zeros((), places.dtype), products.ravel()
    return lax.while_loop(lambda state: state[0] < jnp.sum(close), some, start)[1].reshape(n, m)

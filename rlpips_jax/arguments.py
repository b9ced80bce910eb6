"""Checks of arguments that functions of every layer share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from rlpips_jax.errors import RlpipsError

Key = PRNGKeyArray | Int[jax.Array | np.ndarray, "..."]
"""A key of `jax.random`, new or old style."""


def whole_number(
    name: str,
    value: Any,
    *,
    minimum: int = 1,
    maximum: int | None = None,
    error: type[RlpipsError],
) -> int:
    """The value as a Python integer.

    Args:
        name: of the argument, for the message.
        value: as the user gave it.
        minimum: the smallest that is allowed.
        maximum: the largest that is allowed; None if there is no limit.
        error: what to raise.

    Raises:
        RlpipsError: of the given type; the value is not a whole number, or not within the bounds.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):
        bounds = f"{minimum} or more" if maximum is None else f"from {minimum} to {maximum}"
        raise error(f"{name} must be a whole number, {bounds}, got {value!r}")
    return int(value)


def check_key(user: str, key: Any, *, error: type[RlpipsError]) -> PRNGKeyArray:
    """The key, in the new style (`jax.random.key`).

    Args:
        user: what draws at random, for the message.
        key: as the user gave it, in either style.
        error: what to raise.

    Raises:
        RlpipsError: of the given type; the value is not one key of `jax.random`.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return key
    # A key of the old style is an array of numbers, as many as the generator in use takes.
    elif (
        isinstance(key, jax.Array | np.ndarray)
        and key.dtype == np.uint32
        and key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape
    ):
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise error(
        f"{user} draws at random and needs one key of jax.random, as in key=jax.random.key(0) (the same key gives the "
        f"same result), got {key!r}"
    )

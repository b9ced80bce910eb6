"""Forward-mode derivatives of what has a backward rule of its own end in an error that says what to do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.errors import MetricError
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.pooling import Pooling, pool
from rlpips_jax.ops.recomputation import recomputed

X = jnp.asarray(np.random.default_rng(0).random((2, 6, 6, 3)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), jnp.float32)

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "convolution": lambda x: jnp.sum(jnp.tanh(convolution(x, KERNEL, (1, 1), ((1, 1), (1, 1))))),
    "pooling": lambda x: jnp.sum(jnp.tanh(pool(x, Pooling("max", 2, 2)))),
    "recomputed": lambda x: jnp.sum(recomputed(lambda scale, x: jnp.tanh(scale * x))(3.0, x)),
}
FORWARD: dict[str, Callable[[Any], Any]] = {
    "jvp": lambda f: jax.jvp(f, (X,), (X,)),
    "jvp, jitted": lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(X),
    "jvp, jitted inside": lambda f: jax.jvp(jax.jit(f), (X,), (X,)),
    "jacfwd": lambda f: jax.jacfwd(f)(X),
    "hessian": lambda f: jax.hessian(jax.jit(f))(X),
    "linearize": lambda f: jax.linearize(f, X)[1](X),
    "jvp under vmap": lambda f: jax.vmap(lambda x: jax.jvp(f, (x[None],), (x[None],)))(X),
}
REVERSE: dict[str, Callable[[Any], Any]] = {
    "jitted": lambda f: jax.jit(jax.grad(f))(X),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda x: f(x[None])))(X),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(lambda x: f(x[None]))(x).sum())(X),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f))(X),
    "scan": lambda f: jax.grad(lambda x: jax.lax.scan(lambda s, _: (s + f(x), None), 0.0, length=1)[0])(X),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("way", FORWARD)
def test_forward_mode_is_an_error_that_names_the_option(way: str, function: str) -> None:
    with pytest.raises(MetricError, match="forward_mode=True"):
        FORWARD[way](FUNCTIONS[function])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("way", REVERSE)
def test_reverse_mode_is_as_ever(way: str, function: str) -> None:
    expected = jax.grad(FUNCTIONS[function])(X)
    np.testing.assert_allclose(REVERSE[way](FUNCTIONS[function]), expected, rtol=1e-5, atol=1e-6)

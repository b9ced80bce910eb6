"""Recomputed activations change no derivative, and are not kept on CPU either."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.ops.recomputation import recomputed

RNG = np.random.default_rng(0)
PARAMETERS = [
    {"kernel": jnp.asarray(RNG.normal(0, 0.1, (32, 32)), jnp.float32), "bias": jnp.zeros(32, jnp.float32)}
    for _ in range(6)
]
X = jnp.asarray(RNG.normal(0, 1, (4096, 32)), jnp.float32)


def layer(parameters: dict, x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jnp.sin(x @ parameters["kernel"] + parameters["bias"])
    return x


def loss(wrap, parameters: list[dict], x: jax.Array) -> jax.Array:
    for each in parameters:
        x = wrap(layer)(each, x)
    return jnp.sum(jnp.cos(x))


def plain(function):
    return function


@pytest.mark.parametrize("argument", [0, 1, (0, 1)])
def test_gradients_are_the_plain_ones(argument) -> None:
    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, wrap), argnums=argument))(PARAMETERS, X[:8])
        for wrap in (recomputed, plain)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_under_vmap_scan_and_twice() -> None:
    def curvature(wrap, x: jax.Array) -> jax.Array:
        gradient = jax.grad(functools.partial(loss, wrap, PARAMETERS[:2]))
        return jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)

    def descent(wrap, x: jax.Array) -> jax.Array:
        gradient = jax.grad(functools.partial(loss, wrap, PARAMETERS[:2]))
        return jax.lax.scan(lambda x, _: (x - 0.1 * gradient(x), None), x, length=3)[0]

    for function in (curvature, descent):
        found, expected = (
            jax.jit(jax.vmap(functools.partial(function, wrap)))(X[:6].reshape(3, 2, 32))
            for wrap in (recomputed, plain)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_less_is_held() -> None:
    def held(wrap) -> int:
        gradient = jax.jit(jax.grad(functools.partial(loss, wrap), argnums=1))
        memory = gradient.lower(PARAMETERS, X).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    # Of 24 activations, the 6 between layers and the 4 within one remain.
    assert held(recomputed) < 0.6 * held(plain)


def test_one_function_has_derivatives_by_parameters_and_by_input_side_by_side() -> None:
    """As in adversarial training, where the slope by the input is taken between the other's two halves."""

    def gradient(wrap) -> list[dict]:
        network = jax.jit(wrap(layer))

        def total(parameters: dict) -> jax.Array:
            natural = network(parameters, X[:8])
            slope = jax.grad(lambda x: network(jax.lax.stop_gradient(parameters), x).sum())(X[:8])
            return jnp.sum(jnp.cos(natural)) + jnp.sum(network(parameters, X[:8] + slope))

        return jax.grad(total)(PARAMETERS[0])

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        *(gradient(wrap) for wrap in (recomputed, plain)),
    )

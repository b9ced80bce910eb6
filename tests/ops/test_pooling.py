"""Pooling has the derivatives that autodiff gives the plain operation, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlpips_jax.ops.pooling import Pooling, pool


def pooled_by_xla(x: jax.Array, pooling: Pooling) -> jax.Array:
    window = (1, pooling.window, pooling.window, 1)
    padding = [(0, 0), *((0, pooling.overhang(size)) for size in x.shape[1:3]), (0, 0)]
    return lax.reduce_window(x, -jnp.inf, lax.max, window, (1, pooling.stride, pooling.stride, 1), padding)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("ceil", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize(
    "size", [(7, 6), pytest.param((3, 8), marks=pytest.mark.slow), pytest.param((9, 3), marks=pytest.mark.slow)]
)
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals(size, window, stride, ceil, ties) -> None:
    """As in XLA's own rule, and in PyTorch."""
    pooling = Pooling("max", window, stride, ceil)
    x = np.random.RandomState(1).standard_normal((2, *size, 3)).astype(np.float32)
    # Zeros beside each other are what a ReLU leaves, and flat images have nothing but ties.
    x = jnp.asarray(np.maximum(np.round(x), 0) if ties else x)
    if pooling.size(min(size)) < 1:
        pytest.skip("no window fits")
    weights = jnp.asarray(np.random.RandomState(2).standard_normal(pool(x, pooling).shape), jnp.float32)
    values, gradients = zip(
        *(
            jax.jit(jax.value_and_grad(lambda x, f=function: jnp.sum(weights * f(x, pooling))))(x)
            for function in (pool, pooled_by_xla)
        ),
        strict=True,
    )
    np.testing.assert_allclose(*values, rtol=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-6)
    assert float(jnp.abs(gradients[1]).max()) > 0


def test_a_maximum_passes_nan_on() -> None:
    x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 2, 0].set(jnp.nan).at[0, 0, 0, 0].set(jnp.nan)
    for function in (pool, pooled_by_xla):
        found = np.isnan(function(x, Pooling("max", 2, 2))[0, :, :, 0])
        np.testing.assert_array_equal(found, [[True, False, False], [False, True, False], [False] * 3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_under_vmap_and_twice_and_jvp(kind: str) -> None:
    pooling = Pooling(kind, 3, 2, ceil=True)  # pyright: ignore[reportArgumentType]
    x = jnp.asarray(np.random.RandomState(3).standard_normal((4, 2, 8, 7, 3)), jnp.float32)
    found = jax.vmap(lambda x: pool(x, pooling))(x)
    np.testing.assert_allclose(found.reshape(8, *found.shape[2:]), pool(x.reshape(8, 8, 7, 3), pooling), rtol=1e-6)
    direction = jnp.asarray(np.random.RandomState(4).standard_normal(x[0].shape), jnp.float32)

    def total(x: jax.Array, forward_mode: bool = False) -> jax.Array:
        return jnp.sum(jnp.sin(pool(x, pooling, forward_mode=forward_mode)))

    _, forward = jax.jvp(functools.partial(total, forward_mode=True), (x[0],), (direction,))
    np.testing.assert_allclose(forward, jnp.vdot(jax.grad(total)(x[0]), direction), rtol=1e-4)
    found, expected = (
        jax.grad(lambda x, mode=mode: jnp.vdot(jax.grad(total)(x, mode), direction))(x[0]) for mode in (False, True)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
    assert float(jnp.abs(expected).max()) > 0


def pooled_by_hand(x: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Windows that start inside the image, cut off at its edge."""
    side, stride = pooling.window, pooling.stride
    starts = [
        [s for s in range(0, n, stride) if s + side <= n or (pooling.ceil and s + side - stride < n)]
        for n in x.shape[1:3]
    ]
    reduce = np.max if pooling.kind == "max" else np.mean
    rows = [
        np.stack([reduce(x[:, i : i + side, j : j + side], axis=(1, 2)) for j in starts[1]], axis=1) for i in starts[0]
    ]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(5, 8), (6, 7), (9, 3)])
def test_pooling_equals_windows_taken_by_hand(kind: str, ceil: bool, window: int, size: tuple[int, int]) -> None:
    x = np.random.RandomState(0).standard_normal((2, *size, 3)).astype(np.float32)
    pooling = Pooling(kind, window, 2, ceil)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(pool(jnp.asarray(x), pooling), pooled_by_hand(x, pooling), atol=1e-6)

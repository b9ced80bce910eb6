"""Blur pooling is the filter that it says, with its transpose as derivative, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.ops.blur_pool import AROUND, Edges, blur_pool, blurred_size
from rlpips_jax.ops.inside import inside

each_edge = pytest.mark.parametrize("edges", ["reflected", "zero"])


def by_hand(x: np.ndarray, edges: Edges) -> np.ndarray:
    around = AROUND[edges]
    mode = "reflect" if edges == "reflected" else "constant"
    x = np.pad(x.astype(np.float64), ((0, 0), (around, around), (around, around), (0, 0)), mode=mode)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return np.einsum("nijcab,ab->nijc", windows, kernel)


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.RandomState(0).standard_normal(shape), jnp.float32)


@each_edge
@pytest.mark.parametrize("size", [(3, 4), (8, 9)])
def test_windows_and_transpose_are_those_of_the_filter(size: tuple[int, int], edges: Edges) -> None:
    images = jnp.eye(size[0] * size[1]).reshape(-1, *size, 1)
    found, transpose = jax.vjp(jax.jit(lambda x: blur_pool(x, edges)), images)
    expected = by_hand(np.asarray(images), edges)
    assert found.shape[1:3] == tuple(blurred_size(length, edges) for length in size)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    # <A x, w> = <x, A' w>
    weights = drawn(*found.shape)
    pulled = transpose(weights)[0]
    flat, matrix = np.asarray(weights).reshape(len(images), -1), expected.reshape(len(images), -1)
    np.testing.assert_allclose(pulled.reshape(len(images), -1), flat @ matrix.T, atol=1e-6)


@each_edge
def test_the_smallest_images(edges: Edges) -> None:
    x = drawn(1, 3, 3, 1) if edges == "reflected" else drawn(1, 1, 2, 1)
    np.testing.assert_allclose(jax.jit(blur_pool, static_argnums=1)(x, edges), by_hand(np.asarray(x), edges), atol=1e-6)


@each_edge
def test_vmap_second_derivatives_and_jvp(edges: Edges) -> None:
    x, direction = drawn(3, 2, 6, 7, 2), drawn(2, 6, 7, 2)

    def total(x: jax.Array, *, forward_mode: bool = False) -> jax.Array:
        return jnp.sum(jnp.sin(blur_pool(x, edges, forward_mode=forward_mode)))

    def forward(x: jax.Array) -> jax.Array:
        return jax.jvp(functools.partial(total, forward_mode=True), (x,), (direction,))[1]

    found = jax.jit(jax.vmap(lambda x: blur_pool(x, edges)))(x)
    expected = by_hand(np.asarray(x).reshape(6, 6, 7, 2), edges)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(forward)(x[0]), jnp.vdot(jax.jit(jax.grad(total))(x[0]), direction), rtol=1e-4)
    twice, expected = (
        jax.jit(jax.grad(lambda x, mode=mode: jnp.vdot(jax.grad(total)(x, forward_mode=mode), direction)))(x[0])
        for mode in (False, True)
    )
    np.testing.assert_allclose(twice, expected, atol=1e-6)


@each_edge
def test_images_of_several_sizes_in_one_batch(edges: Edges) -> None:
    sizes = np.array([[9, 8], [8, 9], [3, 5], [7, 6], [4, 3]])
    x = inside(drawn(len(sizes), 9, 9, 2), jnp.asarray(sizes))
    found = jax.jit(lambda x, sizes: blur_pool(x, edges, sizes=sizes))(x, jnp.asarray(sizes))
    assert found.shape == by_hand(np.asarray(x), edges).shape
    for image, result, (height, width) in zip(x, found, sizes, strict=True):
        alone = by_hand(np.asarray(image)[None, :height, :width], edges)[0]
        np.testing.assert_allclose(result[: alone.shape[0], : alone.shape[1]], alone, atol=1e-6)

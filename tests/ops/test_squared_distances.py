"""Matrix products give the distances that the differences give, small ones included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.ops.close_pairs import TOGETHER
from rlpips_jax.ops.squared_distances import prepared, squared_distances

RNG = np.random.default_rng(0)
LENGTHS = (300, 70)
WEIGHTS = tuple(RNG.uniform(0, 2, length).astype(np.float32) for length in LENGTHS)


def vectors(count: int) -> tuple[np.ndarray, ...]:
    """Far from the origin beside their differences."""
    return tuple((5 + RNG.standard_normal((count, length))).astype(np.float32) for length in LENGTHS)


def by_hand(rows: tuple[np.ndarray, ...], columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """In float64, from the differences."""
    total = np.zeros((len(rows[0]), len(columns[0])))
    for f, g, w in zip(rows, columns, WEIGHTS, strict=True):
        total += np.square(f[:, None].astype(float) - g[None]) @ w.astype(float)
    return total


@jax.jit
def found(rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...]) -> jax.Array:
    return squared_distances(prepared(rows, jax.tree.map(jnp.asarray, WEIGHTS)), columns)


def test_distances_great_and_small() -> None:
    rows, columns = vectors(13), vectors(9)
    for f, g in zip(rows, columns, strict=True):
        for number, step in enumerate((0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)):
            g[number] = f[number] * np.float32(1 + step)
    expected = by_hand(rows, columns)
    assert expected[0, 0] == 0
    assert 0 < expected[1, 1] < 1e-6
    result = np.asarray(found(rows, columns))
    assert result[0, 0] == 0
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_more_close_pairs_than_are_recomputed_together() -> None:
    rows = tuple(np.repeat(f, 20, axis=0) for f in vectors(1))
    columns = tuple(f * np.float32(1.0001) for f in rows)
    assert 2 * TOGETHER < 20 * 20
    np.testing.assert_allclose(found(rows, columns), by_hand(rows, columns), rtol=1e-5)
    assert np.all(np.asarray(found(rows, rows)) == 0)


@pytest.mark.slow
def test_equal_images_are_at_zero_however_their_vectors_were_rounded() -> None:
    rows = jax.tree.map(jnp.asarray, vectors(3))
    columns = tuple(f * np.float32(1 + 1e-6) for f in rows)
    images = jnp.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    result = squared_distances(
        prepared(rows, jax.tree.map(jnp.asarray, WEIGHTS), images), columns, images.at[2, 0].set(1.0)
    )
    assert list(np.diag(result) == 0) == [True, True, False]


@pytest.mark.parametrize("transform", ["jit", "vmap"])
def test_gradients_are_those_of_the_differences(transform: str) -> None:
    rows, columns = vectors(4), vectors(3)
    columns[0][1], columns[1][1] = rows[0][2], rows[1][2]
    cotangent = RNG.standard_normal((4, 3)).astype(np.float32)

    def total(rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.sum(cotangent * found(rows, columns))

    gradient = jax.grad(total, argnums=(0, 1))
    if transform == "vmap":
        stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (rows, columns))
        by_rows, by_columns = jax.tree.map(lambda leaf: leaf[0], jax.vmap(gradient)(*stacked))
    else:
        by_rows, by_columns = jax.jit(gradient)(*jax.tree.map(jnp.asarray, (rows, columns)))
    for f, g, w, of_f, of_g in zip(rows, columns, WEIGHTS, by_rows, by_columns, strict=True):
        each = 2 * cotangent[:, :, None] * w * (f[:, None].astype(float) - g[None])
        np.testing.assert_allclose(of_f, each.sum(axis=1), atol=1e-5 * np.abs(each).max())
        np.testing.assert_allclose(of_g, -each.sum(axis=0), atol=1e-5 * np.abs(each).max())


def test_a_vector_that_is_no_number_spoils_its_own_row_alone() -> None:
    rows, columns = vectors(4), vectors(3)
    expected = by_hand(rows, columns)
    rows[1][2, 5] = np.nan
    result = np.asarray(found(rows, columns))
    assert np.isnan(result[2]).all()
    np.testing.assert_allclose(np.delete(result, 2, axis=0), np.delete(expected, 2, axis=0), rtol=1e-5)


@pytest.mark.parametrize(("count", "others"), [(0, 3), (2, 0)])
def test_an_empty_set_makes_an_empty_matrix(count: int, others: int) -> None:
    assert found(vectors(count), vectors(others)).shape == (count, others)


def test_float32_stays_float32_where_float64_is_enabled() -> None:
    with jax.enable_x64(True):
        assert found(vectors(3), vectors(2)).dtype == jnp.float32

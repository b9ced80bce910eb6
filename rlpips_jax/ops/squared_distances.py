"""Weighted squared distances between all vectors of two sets, by matrix products and without loss of digits.

With weights w and any point m, |f - g|_w^2 = |f - m|_w^2 + |g - m|_w^2 - 2 <f - m, g - m>_w. The right side costs one
matrix product, but where f and g are close it is a small difference of large numbers. The mean of the vectors is a
good m; distances that are still small compared with the norms are recomputed from the differences f - g.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rlpips_jax.ops.close_pairs import Direct, close_again

CLOSE = 0.1
"""A distance below this fraction of the two norms is recomputed; float32 gives the others at least five digits."""

EQUAL = 1e-3
"""So is a distance below this fraction of the norms about the origin: rounding may separate the vectors of equal images
by as much, also in bfloat16."""


class Rows(NamedTuple):
    """A set of vectors, prepared for comparison. Each field except `images` has one entry per group of components.

    Attributes:
        vectors: the vectors, `(n, k)`.
        weights: the weights of the components, `(k,)`, nonnegative.
        centre: the mean of the vectors.
        weighted: the vectors minus the mean, times the weights.
        images: `(n, p)`, the images of which these are the features, if known: equal images get distance 0, however
            their vectors were rounded.
    """

    vectors: tuple[Float[Array, "n _"], ...]
    weights: tuple[Float[Array, " _"], ...]
    centre: tuple[Float[Array, " _"], ...]
    weighted: tuple[Float[Array, "n _"], ...]
    images: Float[Array, "n p"] | None


def prepared(
    vectors: tuple[Float[Array, "n _"], ...],
    weights: tuple[Float[Array, " _"], ...],
    images: Float[Array, "n p"] | None = None,
) -> Rows:
    """Prepares the rows of `squared_distances`."""
    centre = tuple(lax.stop_gradient(_mean(f)) for f in vectors)
    weighted = tuple((f - m[None]) * w[None] for f, m, w in zip(vectors, centre, weights, strict=True))
    return Rows(vectors, weights, centre, weighted, images)


def _mean(vectors: Float[Array, "n k"]) -> Float[Array, " k"]:
    """The mean of the finite vectors, so that one that is not finite affects no other distance."""
    return jnp.mean(jnp.where(jnp.all(jnp.isfinite(vectors), axis=1, keepdims=True), vectors, 0), axis=0)


def squared_distances(
    rows: Rows, columns: tuple[Float[Array, "m _"], ...], images: Float[Array, "m p"] | None = None
) -> Float[Array, "n m"]:
    """sum_l sum_k w_lk (f_lk - g_lk)^2 for each row f and each column g; 0 if they or their images are equal.

    Args:
        rows: from `prepared`.
        columns: vectors of the same lengths as those of the rows.
        images: the images of the columns, if the rows have theirs.

    Differentiable with respect to rows and columns; the derivative is that of the products.
    """
    shape, dtype = (rows.vectors[0].shape[0], columns[0].shape[0]), columns[0].dtype
    if 0 in shape:
        return jnp.zeros(shape, dtype)
    products = scale = whole = jnp.zeros((), dtype)
    for f, w, m, weighted, g in zip(rows.vectors, rows.weights, rows.centre, rows.weighted, columns, strict=True):
        whole += jnp.sum(jnp.square(m) * w)
        f, g = f - m[None], g - m[None]
        norms = jnp.sum(f * weighted, axis=1)[:, None] + jnp.sum(jnp.square(g) * w[None], axis=1)[None, :]
        inner = lax.dot_general(weighted, g, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
        products += norms - 2 * inner
        scale += norms
    close = products < jnp.maximum(CLOSE * scale, EQUAL * (scale + whole))
    length = sum(column.shape[1] for column in columns)
    return close_again(products, close, _direct(*lax.stop_gradient((rows, columns, images))), length=length)


def _direct(rows: Rows, columns: tuple[Array, ...], images: Array | None) -> Direct:
    """Distances from the differences of the vectors."""

    def distances(i: Array, j: Array) -> Array:
        total = jnp.zeros((), columns[0].dtype)
        for f, w, g in zip(rows.vectors, rows.weights, columns, strict=True):
            total += jnp.sum(jnp.square(f.at[i].get(mode="clip") - g[j]) * w[None], axis=1)
        if rows.images is None or images is None:
            return total
        return jnp.where(jnp.all(rows.images.at[i].get(mode="clip") == images[j], axis=1), 0, total)

    return distances

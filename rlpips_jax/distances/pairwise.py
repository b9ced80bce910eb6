"""Distances of all images of one set to all of another, by one pass through the network per image."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.arguments import Key, whole_number
from rlpips_jax.distances.distance import check_metric, zero_where_identical
from rlpips_jax.distances.named import DEFAULT, named
from rlpips_jax.distances.protocol import Features, Metric, PairwiseMetric, RandomMetric, is_random
from rlpips_jax.errors import ImageError, MetricError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import filled_blocks

TOGETHER = 64
"""Most images whose features are computed at once."""


def pairwise(
    xs: Images,
    ys: Images,
    metric: Metric | RandomMetric | str | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    max_memory: int = 1 << 30,
    key: Key | None = None,
    samples: int | None = None,
) -> Float[Array, "n m"]:
    """`distance` of every image of one set to every image of another.

    The features of each image are computed once, n + m passes through the network, while those of the smaller set fit
    `max_memory`; else those of one set are computed again for each block of the other. Where the metric can, distances
    are matrix products of features, and small ones are computed again from their differences, so that no digits are
    lost; identical images are at exactly 0.

    Args:
        xs: images `(n, h, w, 3)`, uint8 or floats in `value_range`.
        ys: images `(m, h, w, 3)` of the same size.
        metric: as in `distance`.
        value_range: as in `distance`.
        max_memory: bytes that features and activations may take, roughly; images and result are not counted.
        key: of a random metric, a key of `jax.random`; all pairs are compared under the same draws.
        samples: of a random metric, the number of draws; the features of an image take so many times the memory.

    Returns:
        The matrix of distances, float32 (float64 if the metric is). Differentiable.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, are not two batches, or differ in size.
        MetricError: `max_memory` is not a positive number of bytes.
        EnsembleError: a random metric without a key.
    """
    value_range = check_value_range(value_range)
    if isinstance(metric, str):
        metric = named(metric)
    if is_random(metric) and key is not None:
        metric = metric.under(key, samples=samples)
    metric = check_metric(DEFAULT if metric is None else metric)
    limits = {"minimum_size": metric.minimum_size, "user": metric.name}
    (xs,), (ys,) = (check_images(value_range, **{name: a}, **limits) for name, a in (("xs", xs), ("ys", ys)))
    if xs.ndim != 4 or ys.ndim != 4:
        raise ImageError(f"two batches (n, h, w, 3) and (m, h, w, 3) are needed, got {xs.shape} and {ys.shape}")
    if xs.shape[1:] != ys.shape[1:]:
        raise ImageError(f"images differ in size: xs {xs.shape} and ys {ys.shape}; resize or crop them to one first")
    max_memory = whole_number("max_memory", max_memory, minimum=1, error=MetricError)
    image = jax.ShapeDtypeStruct((1, *xs.shape[1:]), xs.dtype)
    one = _features_jit.eval_shape(metric, image, value_range=value_range)
    if not (len(xs) and len(ys)):
        return jnp.zeros((len(xs), len(ys)), jax.tree.leaves(one)[0].dtype)
    each = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    # Of a row, features and a weighted copy are held; of a column all activations too, for the moment.
    columns = int(np.clip(max_memory // (32 * each), 1, getattr(metric, "max_batch", None) or TOGETHER))
    rows = max(1, (max_memory - 8 * columns * each) // (2 * each))
    swap = len(ys) + -(-len(ys) // rows) * len(xs) < len(xs) + -(-len(xs) // rows) * len(ys)
    if swap:
        xs, ys = ys, xs
    rows, columns = min(rows, len(xs)), min(columns, len(xs), len(ys))
    matrix = _pairwise(metric, xs, ys, value_range=value_range, rows=rows, columns=columns, swapped=swap)
    return matrix.T if swap else matrix


def _features(metric: Metric, images: Images, value_range: ValueRange) -> Features:
    return metric.features(images, value_range=value_range)


_features_jit = jax.jit(_features, static_argnames="value_range")
"""For its shapes alone: they are traced once for all calls with images of one size."""


@functools.partial(jax.jit, static_argnames=("value_range", "rows", "columns", "swapped"))
@automatic_axes("xs")
def _pairwise(
    metric: Metric, xs: Images, ys: Images, *, value_range: ValueRange, rows: int, columns: int, swapped: bool
) -> Float[Array, "n m"]:
    """Blocks of `rows` whose features are kept, beside which `columns` pass, a few at a time."""

    xs, ys = jnp.asarray(xs), jnp.asarray(ys)

    def prepare(images: Array) -> Any:
        compute = jax.checkpoint(functools.partial(_features, metric, value_range=value_range))
        features = jax.lax.map(compute, filled_blocks(images, min(columns, len(images))))
        features = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(images)], features)
        return metric.rows(features, images, value_range) if isinstance(metric, PairwiseMetric) else (features, images)

    def beside(rows: Any, images: Array) -> Float[Array, "n m"]:
        features = _features(metric, images, value_range)
        if isinstance(metric, PairwiseMetric):
            return metric.rows_between(rows, features, images, value_range)
        options = {"value_range": value_range, "swapped": swapped}
        return jax.lax.map(lambda row: _between(metric, row, (features, images), **options), rows)

    # Checkpoints, or a gradient would keep all activations, and the features of all blocks.
    @jax.checkpoint
    def block(images: Array) -> Float[Array, "n m"]:
        ready = prepare(images)
        passing = jax.checkpoint(functools.partial(beside, ready))
        matrix = jax.lax.map(passing, filled_blocks(ys, columns))
        return jnp.moveaxis(matrix, 0, 1).reshape(len(images), -1)[:, : len(ys)]

    return jax.lax.map(block, filled_blocks(xs, rows)).reshape(-1, len(ys))[: len(xs)]


def _between(
    metric: Metric, one: tuple[Features, Array], many: tuple[Features, Array], *, value_range: ValueRange, swapped: bool
) -> Float[Array, " m"]:
    """Distances of one image from others; `swapped` tells that it is the second argument of the metric."""
    (features, image), (others, images) = one, many
    pair = (others, features) if swapped else (features, others)
    image = jnp.broadcast_to(image, images.shape)
    return zero_where_identical(metric.between(*pair), image, images, value_range)


def pairwise_between(metric: Metric, features: Features, others: Features) -> Float[Array, "n m"]:
    """The matrix of distances of two batches whose features are at hand, by any metric.

    Args:
        metric: which made the features.
        features: of n images.
        others: of m images of the same size.
    """
    if isinstance(metric, PairwiseMetric):
        return metric.pairwise_between(features, others)
    return jax.lax.map(lambda feature: metric.between(feature, others), features)

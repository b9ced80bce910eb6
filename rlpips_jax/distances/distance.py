"""Distances of pairs of images by any metric: `distance`, its layers and its map."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rlpips_jax.arguments import Key
from rlpips_jax.distances.named import DEFAULT, named
from rlpips_jax.distances.protocol import (
    LayeredMetric,
    MappedMetric,
    MaskedMetric,
    Metric,
    RandomMetric,
    is_random,
)
from rlpips_jax.distances.tiles import pairs_at_once, tiled_layers, tiling_of
from rlpips_jax.errors import EnsembleError, ImageError, MetricError
from rlpips_jax.images import (
    UNIT_RANGE,
    Images,
    ValueRange,
    check_arrays,
    check_images,
    check_value_range,
    to_symmetric,
)
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import in_blocks
from rlpips_jax.ops.total import total

Mask = Bool[Array | np.ndarray, "..."]
"""`(..., h, w)`, True where a pixel counts."""


def distance(
    x: Images,
    y: Images,
    metric: Metric | RandomMetric | str | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    mask: Mask | None = None,
    key: Key | None = None,
    samples: int | None = None,
) -> Float[Array, "..."]:
    """Perceptual distance of each pair of images: 0 for identical ones, about 0.7 for unrelated ones (LPIPS).

    Args:
        x: images `(..., h, w, 3)`, uint8 or floats in `value_range`.
        y: images of the same shape. One image `(h, w, 3)`, x or y, is compared with all of the other, and goes through
            the network once.
        metric: from `rlpips_jax.load`, or any object with the members of `rlpips_jax.Metric`; or a name, such as
            "lpips-vgg", by which it is loaded once; None for "lpips-alex". In a function that you jit, pass the metric
            through as an argument: one that is loaded or closed over there becomes constants of the program. A random
            metric, such as "elpips-squeeze", needs `key`.
        value_range: black and white of floating-point images; under `jit` a static argument.
        mask: `(..., h, w)` or `(h, w)`, True where pixels count. Outside it the second image is replaced by the first,
            so that nothing there matters, and the mean of each layer is weighted by the mask, averaged down to the
            layer's size. A mask that is True everywhere gives the plain distance, one that is False everywhere 0.
        key: of a random metric, a key of `jax.random`: the same key gives the same number. `jax.vmap` over keys is
            right, but with few samples computes every scale level.
        samples: of a random metric, the number of draws that are averaged, by default 32; `rlpips_jax.estimate` finds
            out how many are needed.

    Returns:
        The distance, with the leading axes of the images and nothing else; float32 (float64 if the metric is).
        Differentiable, with finite gradients everywhere, also at x == y.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape; or the mask does not
            fit them.
        MetricError: `metric` is not a metric, or cannot leave out parts of an image, or not of one that its
            `max_memory` has computed in tiles; or that is too little.
        WeightsNotFound: `metric` is None, and its weights are not on this machine and cannot be downloaded.
        EnsembleError: a random metric without a key, or one with a mask; or a key for a metric that is not random.
    """
    if isinstance(metric, str):
        metric = named(metric)
    if is_random(metric):
        if mask is not None:
            raise EnsembleError(f"{metric.name} is random: masks are for metrics that are not")
        x, y = _alike(x, y)
        return metric.distance(x, y, key=key, samples=samples, value_range=value_range)
    metric = check_metric(DEFAULT if metric is None else metric)
    if key is not None or samples is not None:
        raise EnsembleError(f"{metric.name} is not random: key and samples are for ensembles such as 'elpips-squeeze'")
    x, y, value_range = _checked(x, y, metric, value_range)
    if mask is not None:
        _check_whole(metric, x, "mask")
        layers = _masked_layers(_able(metric, MaskedMetric, "mask"), x, y, _mask(mask, x, y), value_range=value_range)
        return total([layers[..., index] for index in range(layers.shape[-1])])
    return _distance(metric, x, y, value_range=value_range)


class Called:
    """Lets `m(x, y)` mean `distance(x, y, m)`."""

    def __call__(self, x: Images, y: Images, **options: Any) -> Float[Array, "..."]:
        """`rlpips_jax.distance` of two images by this metric; options as there."""
        return distance(x, y, cast(Any, self), **options)


def layer_distances(
    x: Images,
    y: Images,
    metric: Metric | str | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    mask: Mask | None = None,
) -> Float[Array, "... layers"]:
    """The share of each layer in `distance`: `(..., layers)`, summing to the distance. Arguments and errors as there.

    Raises:
        MetricError: the metric is not a sum over layers.
    """
    able = _able(check_metric(DEFAULT if metric is None else metric), LayeredMetric, "layer_distances")
    x, y, value_range = _checked(x, y, able, value_range)
    if mask is not None:
        _check_whole(able, x, "mask")
        return _masked_layers(_able(able, MaskedMetric, "mask"), x, y, _mask(mask, x, y), value_range=value_range)
    return _layers(able, x, y, value_range=value_range)


def distance_map(
    x: Images,
    y: Images,
    metric: Metric | str | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    mask: Mask | None = None,
) -> Float[Array, "... h w"]:
    """Where two images differ: the map of each layer, enlarged bilinearly to the size of the images, summed.

    Its mean is near the distance, but not equal, as the enlargement weighs the borders differently. Arguments and
    errors as in `distance`; the result has the shape of the images without the channels. It is 0 outside the mask.

    Raises:
        MetricError: the metric has no map.
    """
    able = _able(check_metric(DEFAULT if metric is None else metric), MappedMetric, "distance_map")
    x, y, value_range = _checked(x, y, able, value_range)
    _check_whole(able, x, "distance_map")
    if mask is None:
        return _map(able, x, y, value_range=value_range)
    mask = _mask(mask, x, y)
    x, y = _alike_outside(x, y, mask, value_range)
    return jnp.where(mask, _map(able, x, y, value_range=value_range), 0)


def check_metric(metric: Any) -> Metric:
    """The metric, if it is one that is not random, or the name of one.

    Raises:
        MetricError: it is not a metric; says which members it lacks.
        EnsembleError: it is random, where one that is not is needed.
    """
    if isinstance(metric, str):
        metric = named(metric)
    if is_random(metric):
        raise EnsembleError(
            f"{metric.name} is random, and has layers, maps and the like only under a given transformation: transform "
            "both images by rlpips_jax.ensemble.transform and compare them by ensemble.metric"
        )
    if not isinstance(metric, Metric):
        raise MetricError(
            f"metric must come from rlpips_jax.load, or have the members name, signature, minimum_size, features and "
            f"between; got {type(metric).__name__}"
        )
    return metric


def _able(metric: Any, ability: type, what: str) -> Any:
    """The metric, if it can do something that not every metric can."""
    if not isinstance(metric, ability):
        (needed,) = (name for name in vars(ability) if name.endswith("between"))
        raise MetricError(f"{metric.name} does not support {what}: it has no {needed}")
    return metric


def _check_whole(metric: Metric, images: Images, what: str) -> None:
    """Raises a MetricError for what tiles cannot do, where the metric has to cut the images."""
    height, width = images.shape[-3:-1]
    if tiling_of(metric, height, width) is not None:
        raise MetricError(
            f"{what} needs whole images, but max_memory of {metric.name} has images of {height}x{width} computed in "
            "tiles: load the metric with a larger max_memory or without it"
        )


def _checked(x: Any, y: Any, metric: Metric, value_range: Any) -> tuple[Any, Any, ValueRange]:
    """Images that the metric can compare."""
    value_range = check_value_range(value_range)
    x, y = check_arrays(x=x, y=y)
    # One image that is compared with many is checked alone.
    checked = [{"x": x}, {"y": y}] if _is_lone(x, y) else [{"x": x, "y": y}]
    for images in checked:
        check_images(value_range, minimum_size=metric.minimum_size, user=metric.name, **images)
    return x, y, value_range


def _is_lone(x: Any, y: Any) -> bool:
    """Whether one of two arrays is an image `(h, w, 3)` and the other a batch of images of its size."""
    return x.ndim != y.ndim and min(x.ndim, y.ndim) == 3 and x.shape[-3:] == y.shape[-3:]


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """The images; a lone one as often as there are others."""
    x, y = check_arrays(x=x, y=y)
    if not _is_lone(x, y):
        return x, y
    shape = max(x.shape, y.shape, key=len)
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)


def _mask(mask: Any, *images: Images) -> Bool[Array, "... h w"]:
    """The mask, with the leading axes of the images."""
    x = max(images, key=np.ndim)
    if isinstance(mask, np.ma.MaskedArray) or getattr(mask, "dtype", None) != np.bool_:
        got = "a masked array" if isinstance(mask, np.ma.MaskedArray) else getattr(mask, "dtype", type(mask).__name__)
        raise ImageError(f"mask must be an array of booleans, True where pixels count, got {got}: use .astype(bool)")
    if mask.shape not in (x.shape[:-1], x.shape[-3:-1]):
        raise ImageError(
            f"mask has shape {tuple(mask.shape)}; for these images it must be {tuple(x.shape[:-1])} or "
            f"{tuple(x.shape[-3:-1])}"
        )
    return jnp.broadcast_to(jnp.asarray(mask), x.shape[:-1])


def _alike_outside(x: Images, y: Images, mask: Bool[Array, "... h w"], value_range: ValueRange) -> tuple[Any, Any]:
    """The images, the second replaced by the first outside the mask."""
    if x.dtype != y.dtype:  # uint8 and floats have ranges of their own
        x, y = (_in_range(image, value_range) for image in (x, y))
    return x, jnp.where(mask[..., None], y, x)


def _in_range(image: Images, value_range: ValueRange) -> Array:
    """Floats in the range, of a uint8 image too."""
    if image.dtype != np.uint8:
        return jnp.asarray(image)
    black, white = value_range
    return jnp.asarray(image, jnp.float32) * ((white - black) / 255) + black


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _distance(metric: Metric, x: Images, y: Images, *, value_range: ValueRange) -> Float[Array, "..."]:
    if not isinstance(metric, LayeredMetric):
        return of_pairs(metric, metric.between, x, y, value_range)
    # By the program of the layers, so that these sum to the distance to the last digit.
    layers = _layers(metric, x, y, value_range=value_range)
    return total([layers[..., index] for index in range(layers.shape[-1])])


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _layers(metric: Any, x: Images, y: Images, *, value_range: ValueRange) -> Float[Array, "... layers"]:
    tiling = tiling_of(metric, *x.shape[-3:-1])
    if tiling is not None:
        leading = max(x.shape, y.shape, key=len)[:-3]
        x, y = (image.reshape(-1, *image.shape[-3:]) for image in (x, y))
        layers = tiled_layers(metric, x, y, tiling, value_range)
        return zero_where_identical(layers, x, y, value_range).reshape(*leading, layers.shape[-1])
    return of_pairs(metric, metric.layers_between, x, y, value_range)


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _map(metric: Any, x: Images, y: Images, *, value_range: ValueRange) -> Float[Array, "... h w"]:
    height, width = x.shape[-3:-1]
    return of_pairs(metric, functools.partial(metric.map_between, height=height, width=width), x, y, value_range)


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _masked_layers(
    metric: Any, x: Images, y: Images, mask: Bool[Array, "... h w"], *, value_range: ValueRange
) -> Float[Array, "... layers"]:
    x, y = _alike_outside(x, y, mask, value_range)
    return of_pairs(metric, metric.masked_between, x, y, value_range, mask)


def of_pairs(
    metric: Metric,
    between: Callable[..., Float[Array, "n ..."]],
    x: Images,
    y: Images,
    value_range: ValueRange,
    *others: Array,
) -> Float[Array, "..."]:
    """The result of a function of two images' features for each pair; exactly 0 for identical images.

    Args:
        metric: whose features are compared, as many at a time as its `max_batch` and `max_memory` allow.
        between: of the features of n images and n others, and of n further arguments.
        x: `(..., h, w, 3)`.
        y: of the same shape; or one of both is `(h, w, 3)`, and its features are computed once.
        value_range: black and white of floating-point images.
        *others: the further arguments, with the same leading axes.
    """
    leading = max(x.shape, y.shape, key=len)[:-3]
    lone = [
        (image[None], metric.features(image[None], value_range=value_range)) if image.ndim - 3 < len(leading) else None
        for image in (x, y)
    ]

    def block(*arrays: Array) -> Float[Array, "n ..."]:
        rest = iter(arrays)
        images, features = [], []
        for one in lone:
            image = next(rest) if one is None else one[0]
            images.append(image)
            features.append(metric.features(image, value_range=value_range) if one is None else one[1])
        return zero_where_identical(between(*features, *rest), images[0], images[1], value_range)

    many = [image for image, one in zip((x, y), lone, strict=True) if one is None]
    arrays = (jnp.asarray(array).reshape(-1, *array.shape[len(leading) :]) for array in (*many, *others))
    result = in_blocks(block, *arrays, most=pairs_at_once(metric, *x.shape[-3:-1]))
    return result.reshape(*leading, *result.shape[1:])


def zero_where_identical(
    result: Float[Array, "n ..."], x: Images, y: Images, value_range: ValueRange = UNIT_RANGE
) -> Float[Array, "n ..."]:
    """The result of each pair of images, 0 for identical ones.

    The compiler may round the networks of two identical images differently. Taking that difference away as a constant
    leaves every derivative as it is.
    """
    if x.dtype != y.dtype:  # uint8 and floats have ranges of their own
        wide = np.float64 in (x.dtype, y.dtype)
        x, y = (to_symmetric(image, value_range, jnp.float64 if wide else jnp.float32) for image in (x, y))
    identical = jnp.all(x == y, axis=(1, 2, 3)).reshape(-1, *(1,) * (result.ndim - 1))
    return result - jax.lax.stop_gradient(jnp.where(identical, result, jnp.zeros((), result.dtype)))

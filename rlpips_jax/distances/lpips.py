"""LPIPS: the distance between images as the weighted difference of a network's activations.

With image x in [-1, 1], f_l the activations at tap l, and h = f / (|f| + 1e-10) their unit vectors over channels,

    d(x, y) = sum_l mean_ij sum_c w_lc (h_l(x)_ijc - h_l(y)_ijc)^2,        w >= 0

(Zhang et al. 2018). This h makes as much of a faint activation as of a strong one, and so of noise in flat regions.
A metric may have floors c_l >= 0, one a tap and learned as w is, that damp the faint:

    h = f / max(sqrt(|f|^2 + c_l^2), 1e-10)

At c_l = 0 the slope by c_l is 0, so learning starts above. A `Metric` is a pytree whose leaves are the parameters:
pass it to a jitted function as an argument. A Metric that a jitted function closes over is baked into the program as
constants, which makes the program large and slow to compile.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rlpips_jax._version import __version__
from rlpips_jax.backbones import Backbone, Computation, Dropout, StagedBackbone
from rlpips_jax.ensemble.transformations import Transformation, transform_units
from rlpips_jax.errors import EnsembleError, ImageError, MetricError, WeightsMismatch, WeightsNotFound
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_symmetric, to_unit
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.recomputation import recomputed
from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.ops.squared_distances import Rows, prepared, squared_distances
from rlpips_jax.weights import native, registry, store
from rlpips_jax.weights.parameters import SCALE, SHIFT, Parameters, digest

DEFAULT = "lpips-alex"
EPSILON = 1e-10
DTYPES = ("float32", "bfloat16", "float64")
PRECISIONS = ("default", "high", "highest")

Features = tuple[Float[Array, "..."], ...]
"""Unit-normalised activations (shorter where floors damp them), one array `(..., h_l, w_l, c_l)` a tap."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters"],
    meta_fields=["name", "architecture", "version", "dtype", "precision", "max_batch", "remat", "forward_mode"],
)
@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """A perceptual distance: parameters and how to use them. Made by `rlpips_jax.load`.

    Attributes:
        parameters: `{"backbone": {...}, "heads": (w_0, w_1, ...)}`, float32; the leaves of the pytree. With
            `"floors": (c_0, c_1, ...)` beside them, each of shape `()`, faint activations are damped.
        name: what it was loaded as.
        architecture: backbone, pooling and taps.
        version: LPIPS version: "0.1" scales the channels of the image first, "0.0" does not.
        dtype: what the network computes in; norms, differences and sums are never below float32.
        precision: of the convolutions, as `jax.lax.Precision` names it.
        max_batch: most images that are in the network at once; None for no limit.
        remat: whether the gradient recomputes activations instead of keeping them.
        forward_mode: whether `jax.jvp` works, at the price of slower gradients on CPU.

    Metrics are compared by identity; `signature` tells whether two give the same numbers.
    """

    parameters: Parameters
    name: str
    architecture: Backbone
    version: str = "0.1"
    dtype: str = "float32"
    precision: str = "highest"
    max_batch: int | None = None
    remat: bool = False
    forward_mode: bool = False

    def __repr__(self) -> str:
        names = ("version", "dtype", "precision", "max_batch", "remat", "forward_mode")
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"Metric({self.name!r}, backbone={self.architecture.name!r}, {options})"

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """Unit-normalised activations, to compare one image with many by `between`.

        Args:
            images: `(..., h, w, 3)`, uint8 or floats in `value_range`.
            value_range: black and white of floating-point images.

        Returns:
            One array `(..., h_l, w_l, c_l)` a tap, float32 (float64 if the metric is).

        Raises:
            ImageError: the images break the convention of `rlpips_jax.images`.
        """
        value_range = check_value_range(value_range)
        (images,) = check_images(value_range, images=images, **self._limits)
        return _features(self, images, value_range)

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """Distances between images whose features are at hand; leading axes broadcast.

        Args:
            features: from `features`.
            others: from `features` of images of the same size.

        Returns:
            The distance, with the leading axes, in the units of `distance`.

        Raises:
            MetricError: the features are of different sizes, or of a metric with other taps. Features of the same
                network with other weights cannot be told apart: compare only what one Metric made.
        """
        return _sum(self._layers_between(features, others))

    def layers_between(self, features: Features, others: Features) -> Float[Array, "... layers"]:
        """The part of each tap in `between`: `(..., layers)`, summing to it. Arguments as there."""
        return jnp.stack(self._layers_between(features, others), axis=-1)

    def pairwise_between(self, features: Features, others: Features) -> Float[Array, "n m"]:
        """Distances of all images of one set to all of another, whose features are at hand.

        Args:
            features: from `features`, with one leading axis.
            others: from `features` of images of the same size, with one leading axis.

        Returns:
            The matrix of distances, as `rlpips_jax.pairwise` has it, but exactly 0 only where features are equal.

        Raises:
            MetricError: as `between`, or there is not exactly one leading axis.
        """
        self._check_pair(features, others)
        if any(feature.ndim != 4 for feature in (*features, *others)):
            raise MetricError("features of two batches (n, h, w, 3) and (m, h, w, 3) are needed: one leading axis")
        return _pairwise_between(self, features, others)

    def embedded(self, features: Features) -> Features:
        """Features scaled so that their squared Euclidean distance is `between`: sqrt(w_lc / (h_l w_l)) f_lijc."""
        return tuple(
            feature * jnp.sqrt(head.astype(feature.dtype) / (feature.shape[-3] * feature.shape[-2]))
            for feature, head in zip(features, self.parameters["heads"], strict=True)
        )

    @property
    def signature(self) -> str:
        """A line that pins a number: library version, metric, network, parameters, dtype, precision.

        Raises:
            MetricError: the parameters are traced or abstract, and so have no values to hash.
        """
        leaves = jax.tree.leaves(self.parameters)
        if not all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves) or any(
            isinstance(leaf, Tracer) for leaf in leaves
        ):
            raise MetricError("a signature needs the parameters' values: take it outside jit, grad and eval_shape")
        floors = f" floors={len(self.parameters['floors'])}" if self.parameters.get("floors") else ""
        return (
            f"rlpips-jax {__version__} {self.name} {self.architecture.signature}{floors} v{self.version} "
            f"parameters={digest(self.parameters)[:12]} dtype={self.dtype} precision={self.precision}"
        )

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return self.architecture.minimum_size

    @property
    def _limits(self) -> dict[str, Any]:
        return {"minimum_size": self.minimum_size, "user": self.name}

    def _layers_between(self, features: Features, others: Features) -> list[Float[Array, "..."]]:
        self._check_pair(features, others)
        return _layer_distances(self, features, others)

    def _check_pair(self, features: Features, others: Features) -> None:
        self._check_features(features)
        self._check_features(others)
        for tap, (f, g) in enumerate(zip(features, others, strict=True)):
            if f.shape[-3:] != g.shape[-3:]:
                raise MetricError(
                    f"features differ at tap {tap}: {f.shape[-3:]} and {g.shape[-3:]}; compare images of one size"
                )

    def _check_features(self, features: Features) -> None:
        channels = tuple(feature.shape[-1] for feature in features)
        if channels != self.architecture.channels:
            raise MetricError(
                f"features have {channels} channels at their taps, but {self.name} has {self.architecture.channels}: "
                "they come from another metric"
            )


class RandomDistance:
    """Base of what is a distance in expectation: `rlpips_jax.ensemble.Ensemble`.

    Attributes:
        metric: the distance that is drawn at random.
    """

    metric: Metric

    @property
    def name(self) -> str:
        """What it was loaded as."""
        raise NotImplementedError

    def distance(
        self, x: Images, y: Images, *, key: Any, samples: int | None, value_range: ValueRange
    ) -> Float[Array, "..."]:
        """The expectation, estimated."""
        raise NotImplementedError


def assemble(
    name: str | os.PathLike[str],
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    unweighted: bool = False,
    dtype: DTypeLike = "float32",
    precision: str = "highest",
    max_batch: int | None = None,
    remat: bool = False,
    forward_mode: bool = False,
) -> tuple[registry.Recipe, Metric]:
    """What `rlpips_jax.load` loads, and the recipe by which it is put together. Arguments and errors as there."""
    dtype = _check_dtype(dtype)
    if precision not in PRECISIONS:
        raise MetricError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not isinstance(name, str | os.PathLike):
        raise MetricError(f"a metric is named by a string or by a file's path, got {name!r}")
    if max_batch is not None and (
        isinstance(max_batch, bool) or not isinstance(max_batch, int | np.integer) or max_batch < 1
    ):
        raise MetricError(f"max_batch must be a whole number of images, 1 or more, or None, got {max_batch!r}")
    recipe, parameters = _read(name, weights_dir)
    if unweighted or "heads" not in parameters:
        parameters = parameters | {
            "heads": tuple(np.ones(channels, np.float32) for channels in recipe.architecture.channels)
        }
    with jax.ensure_compile_time_eval():
        parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters)
    return recipe, Metric(
        parameters=parameters,
        name=f"{recipe.name} (unweighted)" if unweighted and recipe.heads else recipe.name,
        architecture=recipe.architecture,
        version=recipe.version,
        dtype=dtype,
        precision=precision,
        max_batch=None if max_batch is None else int(max_batch),
        remat=remat,
        forward_mode=forward_mode,
    )


def distance(
    x: Images,
    y: Images,
    metric: Metric | RandomDistance | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    transformation: Transformation | None = None,
    key: Any = None,
    samples: int | None = None,
) -> Float[Array, "..."]:
    """Perceptual distance of each pair of images: 0 for identical ones, about 0.7 for unrelated ones (LPIPS).

    Args:
        x: images `(..., h, w, 3)`, uint8 or floats in `value_range`.
        y: images of the same shape.
        metric: from `rlpips_jax.load`; None for "lpips-alex", which is loaded once. In a function that you jit, pass
            the metric through as an argument: one that is loaded or closed over there becomes constants of the program.
            An Ensemble, such as "elpips-squeeze", is random and needs `key`, or a `transformation`.
        value_range: black and white of floating-point images; under `jit` a static argument.
        transformation: compare both images under this one of E-LPIPS's transformations, without dropout: of n images
            `(n, h, w, 3)`, or of one for all.
        key: of an ensemble, a key of `jax.random`: the same key gives the same number. `jax.vmap` over keys is right,
            but with few samples computes every scale level.
        samples: of an ensemble, transformations that are averaged, by default 32; `rlpips_jax.estimate` finds out how
            many it takes.

    Returns:
        The distance, with the leading axes of the images and nothing else; float32 (float64 if the metric is).
        Differentiable, with finite gradients everywhere, also at x == y.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
        WeightsNotFound: `metric` is None, and the weights are not to be had.
        EnsembleError: an ensemble without a key, a metric with one, or a transformation that does not fit.
    """
    if isinstance(metric, RandomDistance) and transformation is None:
        return metric.distance(x, y, key=key, samples=samples, value_range=value_range)
    if key is not None or samples is not None:
        who = "a distance under a given transformation" if transformation is not None else _metric(metric).name
        raise EnsembleError(f"{who} is not random: key and samples are for ensembles such as 'elpips-squeeze'")
    metric, x, y, value_range = _checked(x, y, metric, value_range, transformation)
    return _distance(metric, x, y, value_range)


def layer_distances(
    x: Images,
    y: Images,
    metric: Metric | RandomDistance | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    transformation: Transformation | None = None,
) -> Float[Array, "... layers"]:
    """The part of each tap in `distance`: `(..., layers)`, summing to the distance. Arguments as there.

    Of an ensemble, under a given transformation.
    """
    metric, x, y, value_range = _checked(x, y, metric, value_range, transformation)
    return _distance_by_layer(metric, x, y, value_range)


def distance_map(
    x: Images,
    y: Images,
    metric: Metric | RandomDistance | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    transformation: Transformation | None = None,
) -> Float[Array, "... h w"]:
    """Where two images differ: every tap's map, enlarged bilinearly to the size of the images, summed.

    Its mean is near the distance, but not equal, as the enlargement weighs the borders differently.
    Arguments as in `distance`; the result has the shape of the images without the channels. Of an ensemble, it is a map
    of the images under a given transformation, and has their shape.
    """
    metric, x, y, value_range = _checked(x, y, metric, value_range, transformation)
    return _distance_map(metric, x, y, value_range)


def pairwise(
    xs: Images,
    ys: Images,
    metric: Metric | RandomDistance | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
    max_memory: int = 1 << 30,
    transformation: Transformation | None = None,
) -> Float[Array, "n m"]:
    """`distance` of every image of one set to every image of another.

    The features of each image are computed once, n + m passes through the network, while those of the smaller set fit
    `max_memory`; else those of one set are computed again for each block of the other. Distances are matrix products
    of features, and small ones are computed again from their differences, so that no digits are lost; identical images
    are at exactly 0.

    Args:
        xs: images `(n, h, w, 3)`, uint8 or floats in `value_range`.
        ys: images `(m, h, w, 3)` of the same size.
        metric: as in `distance`.
        value_range: as in `distance`.
        max_memory: bytes that features and activations may take, roughly; images and result are not counted.
        transformation: of one image: compare all under this one of E-LPIPS's transformations, without dropout.

    Returns:
        The matrix of distances, float32 (float64 if the metric is). Differentiable.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, are not two batches, or differ in size.
        MetricError: `max_memory` is not a positive number of bytes.
    """
    value_range = check_value_range(value_range)
    if transformation is not None and transformation.flip.shape != (1,):
        raise EnsembleError("pairwise distances need a transformation of one image, which all share")
    metric = _metric(metric, transformation)
    limits = metric._limits if transformation is None else {}
    (xs,), (ys,) = (check_images(value_range, **{name: a}, **limits) for name, a in (("xs", xs), ("ys", ys)))
    if xs.ndim != 4 or ys.ndim != 4:
        raise ImageError(f"two batches (n, h, w, 3) and (m, h, w, 3) are needed, got {xs.shape} and {ys.shape}")
    if xs.shape[1:] != ys.shape[1:]:
        raise ImageError(f"images differ in size: xs {xs.shape} and ys {ys.shape}; resize or crop them to one first")
    if isinstance(max_memory, bool) or not isinstance(max_memory, int | np.integer) or max_memory < 1:
        raise MetricError(f"max_memory must be a whole number of bytes, got {max_memory!r}")
    if transformation is not None:
        xs, ys = (_transformed(metric, images, transformation, value_range) for images in (xs, ys))
        value_range = UNIT_RANGE
    if not (len(xs) and len(ys)):
        return jnp.zeros((len(xs), len(ys)), _accumulator_dtype(metric))
    one = jax.eval_shape(functools.partial(_features, value_range=value_range), metric, xs[:1])
    each = sum(feature.size * feature.dtype.itemsize for feature in one)
    # Of a row, features and a weighted copy are held; of a column all activations too, for the moment.
    columns = int(np.clip(max_memory // (32 * each), 1, metric.max_batch or 64))
    rows = max(1, (max_memory - 8 * columns * each) // (2 * each))
    swap = len(ys) + -(-len(ys) // rows) * len(xs) < len(xs) + -(-len(xs) // rows) * len(ys)
    if swap:
        xs, ys = ys, xs
    matrix = _pairwise(metric, xs, ys, value_range, min(rows, len(xs)), min(columns, len(xs), len(ys)))
    return matrix.T if swap else matrix


def padded_distance(
    x: Images,
    y: Images,
    sizes: Int[Array | np.ndarray, "n 2"],
    metric: Metric | None = None,
    *,
    value_range: ValueRange = UNIT_RANGE,
) -> Float[Array, " n"]:
    """`distance` of pairs of different sizes in one batch, and so in one compiled program.

    Activations are set to 0 outside each image after every layer and means are over what is inside, so that each
    distance is that of the pair alone, but for rounding (1e-6). `remat` has no effect here.

    Args:
        x: images `(n, h, w, 3)`, each in the top left corner; what lies outside it is not looked at, but must be
            values that an image may have.
        y: images of the same shape.
        sizes: height and width of each pair, in pixels; at most `(h, w)`, at least the metric's `minimum_size`.
        metric: as in `distance`.
        value_range: as in `distance`.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or a size is out of bounds.
    """
    metric, x, y, value_range = _checked(x, y, metric, value_range)
    if x.ndim != 4 or np.shape(sizes) != (x.shape[0], 2):
        raise ImageError(
            f"a batch (n, h, w, 3) needs sizes (n, 2), got images {tuple(x.shape)} and sizes {np.shape(sizes)}"
        )
    if not isinstance(sizes, Tracer):
        low, high = np.min(sizes, axis=0, initial=metric.minimum_size), np.max(sizes, axis=0, initial=0)
        if np.any(low < metric.minimum_size) or np.any(high > x.shape[1:3]):
            raise ImageError(
                f"sizes must lie between {metric.minimum_size}x{metric.minimum_size} ({metric.name}) and the images' "
                f"{x.shape[1]}x{x.shape[2]}, got heights and widths from {low.tolist()} to {high.tolist()}"
            )
    return _padded_distance(metric, x, y, jnp.asarray(sizes, jnp.int32), value_range)


def _checked(
    x: Any, y: Any, metric: Metric | RandomDistance | None, value_range: Any, transformation: Any = None
) -> tuple[Metric, Array | np.ndarray, Array | np.ndarray, ValueRange]:
    """A metric and images that it can compare; with a transformation, images in [0, 1] after it."""
    metric = _metric(metric, transformation)
    value_range = check_value_range(value_range)
    if transformation is None:
        x, y = check_images(value_range, x=x, y=y, **metric._limits)
        return metric, x, y, value_range
    x, y = check_images(value_range, x=x, y=y)
    x, y = (_transformed(metric, images, transformation, value_range) for images in (x, y))
    return metric, x, y, UNIT_RANGE


def _transformed(
    metric: Metric, images: Images, transformation: Transformation, value_range: ValueRange
) -> Float[Array, "n h w 3"]:
    if images.ndim != 4:
        raise ImageError(f"a transformation takes a batch (n, h, w, 3), got {images.shape}: pass images[None]")
    transformed = _transform(images, transformation, value_range, jnp.dtype(_accumulator_dtype(metric)).name)
    if min(transformed.shape[1:3]) < metric.minimum_size:
        raise ImageError(
            f"images of {images.shape[1]}x{images.shape[2]} are {transformed.shape[1]}x{transformed.shape[2]} after "
            f"the transformation; {metric.name} needs at least {metric.minimum_size}x{metric.minimum_size}"
        )
    return transformed


@functools.partial(jax.jit, static_argnums=(2, 3))
def _transform(
    images: Images, transformation: Transformation, value_range: ValueRange, dtype: str
) -> Float[Array, "n h w 3"]:
    return transform_units(to_unit(images, value_range, dtype), transformation)


def _metric(metric: Any, transformation: Any = None) -> Metric:
    if metric is None:
        return _default()
    if isinstance(metric, RandomDistance):
        if transformation is None:
            raise EnsembleError(
                f"of the ensemble {metric.name} there are features, maps, layers and pairwise distances only under a "
                "given transformation: pass transformation=, from rlpips_jax.ensemble.sample_transformations, or "
                "ensemble.metric alone"
            )
        return metric.metric
    if not isinstance(metric, Metric):
        raise MetricError(f"metric must come from rlpips_jax.load, got {type(metric).__name__}")
    return metric


@functools.cache
def _default() -> Metric:
    return assemble(DEFAULT)[1]


def _check_dtype(dtype: DTypeLike) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise MetricError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise MetricError(
            "dtype float64 needs 64-bit mode: jax.config.update('jax_enable_x64', True), before any array"
        )
    return name


def _read(
    name: str | os.PathLike[str], weights_dir: str | os.PathLike[str] | None
) -> tuple[registry.Recipe, Parameters]:
    """The recipe and all parameters of a metric, from the store or from a file."""
    if isinstance(name, os.PathLike) or name.endswith(native.SUFFIX):
        recipe, parameters = _read_file(Path(name))
    else:
        recipe = registry.find(name)
        parameters = store.obtain(recipe.heads, weights_dir)[0] if recipe.heads else {}
    if "backbone" not in parameters and recipe.backbone:
        parameters = parameters | {"backbone": store.obtain(recipe.backbone, weights_dir)[0]["backbone"]}
    return recipe, parameters


def _read_file(path: Path) -> tuple[registry.Recipe, Parameters]:
    if not path.is_file():
        raise WeightsNotFound(f"no weight file {os.fspath(path)!r}")
    metadata = native.read_metadata(path)
    if "metric" not in metadata:
        raise WeightsMismatch(
            f"{path} is one part of a metric, not a whole one; load the metric by name, with weights_dir={path.parent}"
        )
    recipe = registry.find(metadata["metric"])
    parameters, _ = native.read(path, recipe.architecture)
    return replace(recipe, name=path.stem), parameters


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _pairwise(
    metric: Metric, xs: Images, ys: Images, value_range: ValueRange, rows: int, columns: int
) -> Float[Array, "n m"]:
    """Blocks of `rows` whose features are kept, beside which `columns` pass, a few at a time."""

    def prepare(images: Images) -> Rows:
        scaled = _scaled(metric, images, value_range)
        compute = jax.checkpoint(functools.partial(_normalised, metric))
        features = jax.lax.map(compute, _blocks(scaled, min(columns, len(images))))
        vectors = tuple(feature.reshape(-1, *feature.shape[2:])[: len(images)] for feature in features)
        return _rows(metric, vectors, scaled)

    def beside(rows: Rows, images: Images) -> Float[Array, "n m"]:
        scaled = _scaled(metric, images, value_range)
        return squared_distances(rows, _flat(_normalised(metric, scaled)), _flat((scaled,))[0])

    # Checkpoints, or a gradient would keep all activations, and the features of all blocks.
    @jax.checkpoint
    def block(images: Images) -> Float[Array, "n m"]:
        ready = prepare(images)
        passing = jax.checkpoint(functools.partial(beside, ready))
        matrix = jax.lax.map(passing, _blocks(ys, columns))
        return jnp.moveaxis(matrix, 0, 1).reshape(len(images), -1)[:, : len(ys)]

    return jax.lax.map(block, _blocks(xs, rows)).reshape(-1, len(ys))[: len(xs)]


def _blocks(images: Images, size: int) -> Images:
    """Blocks of a batch, filled up with its last image."""
    filled = jnp.pad(images, [(0, -len(images) % size), *[(0, 0)] * (images.ndim - 1)], mode="edge")
    return filled.reshape(-1, size, *images.shape[1:])


def _flat(arrays: tuple[Float[Array, "n ..."], ...]) -> tuple[Float[Array, "n _"], ...]:
    return tuple(array.reshape(array.shape[0], -1) for array in arrays)


def _rows(metric: Metric, features: Features, images: Float[Array, "n h w 3"] | None = None) -> Rows:
    """Features, weighted as a distance weighs them."""
    weights = tuple(
        jnp.tile(head.astype(feature.dtype) / np.prod(feature.shape[1:3]), int(np.prod(feature.shape[1:3])))
        for feature, head in zip(features, metric.parameters["heads"], strict=True)
    )
    return prepared(_flat(features), weights, None if images is None else _flat((images,))[0])


@jax.jit
def _pairwise_between(metric: Metric, features: Features, others: Features) -> Float[Array, "n m"]:
    return squared_distances(_rows(metric, features), _flat(others))


@functools.partial(jax.jit, static_argnums=4)
def _padded_distance(
    metric: Metric, x: Images, y: Images, sizes: Int[Array, "n 2"], value_range: ValueRange
) -> Float[Array, " n"]:
    def block(x: Images, y: Images, sizes: Int[Array, "n 2"]) -> Float[Array, " n"]:
        x, y = (inside(_scaled(metric, images, value_range), sizes) for images in (x, y))
        both = (_activations(metric, images, sizes) for images in (x, y))
        layers = []
        for (features, extent), (others, _), head in zip(*both, metric.parameters["heads"], strict=True):
            assert extent is not None
            # Outside its extent an activation is 0, and so is the difference of two.
            total = jnp.sum(_weighted_difference(features, others, head), axis=(-2, -1))
            layers.append(total / jnp.prod(extent, axis=-1))
        return _zero_where_identical(_sum(layers), x, y)

    return _in_blocks(metric, block, x, y, sizes)


@functools.partial(jax.jit, static_argnums=2)
def _features(metric: Metric, images: Images, value_range: ValueRange) -> Features:
    leading = images.shape[:-3]
    features = _in_blocks(
        metric,
        lambda block: _normalised(metric, _scaled(metric, block, value_range)),
        images.reshape(-1, *images.shape[-3:]),
    )
    return tuple(feature.reshape(*leading, *feature.shape[1:]) for feature in features)


@functools.partial(jax.jit, static_argnums=3)
def _distance_by_layer(metric: Metric, x: Images, y: Images, value_range: ValueRange) -> Float[Array, "... layers"]:
    def of_features(features: Features, others: Features) -> Float[Array, "n layers"]:
        return jnp.stack(_layer_distances(metric, features, others), axis=-1)

    return _of_pairs(metric, of_features, x, y, value_range)


@functools.partial(jax.jit, static_argnums=3)
def _distance(metric: Metric, x: Images, y: Images, value_range: ValueRange) -> Float[Array, "..."]:
    layers = _distance_by_layer(metric, x, y, value_range)
    return _sum([layers[..., index] for index in range(layers.shape[-1])])


@functools.partial(jax.jit, static_argnums=3)
def _distance_map(metric: Metric, x: Images, y: Images, value_range: ValueRange) -> Float[Array, "... h w"]:
    height, width = x.shape[-3:-1]

    def of_features(features: Features, others: Features) -> Float[Array, "n h w"]:
        layers = zip(features, others, metric.parameters["heads"], strict=True)
        return _sum([resize_bilinear(_weighted_difference(*layer), height, width) for layer in layers])

    return _of_pairs(metric, of_features, x, y, value_range)


def _of_pairs(
    metric: Metric,
    of_features: Callable[[Features, Features], Float[Array, "n ..."]],
    x: Images,
    y: Images,
    value_range: ValueRange,
) -> Float[Array, "..."]:
    """What a function of two images' features says of each pair; exactly 0 for identical images."""

    def block(x: Images, y: Images) -> Float[Array, "n ..."]:
        x, y = (_scaled(metric, images, value_range) for images in (x, y))
        return _zero_where_identical(of_features(_normalised(metric, x), _normalised(metric, y)), x, y)

    result = _in_blocks(metric, block, x.reshape(-1, *x.shape[-3:]), y.reshape(-1, *y.shape[-3:]))
    return result.reshape(*x.shape[:-3], *result.shape[1:])


def _in_blocks(metric: Metric, function: Callable[..., Any], *images: Images) -> Any:
    """Applies a function of batches of images, at most `max_batch` images at a time."""
    if metric.max_batch is None or images[0].shape[0] <= metric.max_batch:
        return function(*images)

    @jax.checkpoint  # or a gradient would keep the activations of every block
    def one(images: tuple[Images, ...]) -> Any:
        result = function(*(image[None] for image in images))
        return jax.tree.map(lambda leaf: leaf[0], result)

    return jax.lax.map(one, images, batch_size=metric.max_batch)


def _accumulator_dtype(metric: Metric) -> DTypeLike:
    """What images, norms, differences and sums are computed in."""
    return jnp.float64 if metric.dtype == "float64" else jnp.float32


def _scaled(metric: Metric, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """Images as the network expects them."""
    images = to_symmetric(images, value_range, _accumulator_dtype(metric))
    if metric.version == "0.0":
        return images
    return (images - np.asarray(SHIFT, np.float32)) / np.asarray(SCALE, np.float32)


def _zero_where_identical(
    result: Float[Array, "n ..."], x: Float[Array, "n h w 3"], y: Float[Array, "n h w 3"]
) -> Float[Array, "n ..."]:
    """The compiler may round the networks of two identical images differently.

    Taking that difference away as a constant leaves every derivative as it is.
    """
    identical = jnp.all(x == y, axis=(1, 2, 3)).reshape(-1, *(1,) * (result.ndim - 1))
    return result - jax.lax.stop_gradient(jnp.where(identical, result, 0))


def _normalised(metric: Metric, x: Float[Array, "n h w 3"], dropout: Dropout | None = None) -> Features:
    """Unit-normalised activations of a batch of scaled images."""
    return tuple(unit for unit, _ in _activations(metric, x, None, dropout))


def _activations(
    metric: Metric,
    x: Float[Array, "n h w 3"],
    sizes: Int[Array, "n 2"] | None,
    dropout: Dropout | None = None,
) -> list[tuple[Float[Array, "n i j c"], Int[Array, "n 2"] | None]]:
    """At each tap the unit-normalised activations, and their sizes where the batch has images of several."""
    backbone, computation = metric.architecture, Computation(metric.dtype, metric.precision, metric.forward_mode)
    recompute = jax.checkpoint if metric.forward_mode else recomputed
    if not isinstance(backbone, StagedBackbone):
        if sizes is not None or dropout is not None:
            raise MetricError(
                f"{metric.name} has a backbone without stages ({backbone.name}), so images in a batch must be of one "
                "size, and there is no dropout"
            )

        def whole(parameters: Any, x: Array) -> Features:
            kernels, floors = parameters
            activations = backbone.taps(kernels, x, computation)
            return tuple(
                _unit(activation.astype(_accumulator_dtype(metric)), floor)
                for activation, floor in zip(activations, floors, strict=True)
            )

        parameters = (metric.parameters["backbone"], _floors(metric))
        return [(unit, None) for unit in (recompute(whole) if metric.remat else whole)(parameters, x)]

    def stage(layers: Any, sizes: Array | None, parameters: Any, x: Array) -> tuple[Array, Array, Array | None]:
        kernels, floor, dropout = parameters
        activation, sizes = backbone.stage(layers, kernels, x, computation=computation, sizes=sizes, dropout=dropout)
        return activation, _unit(activation.astype(_accumulator_dtype(metric)), floor), sizes

    x = x.astype(metric.dtype)
    taps = []
    for layers, floor in zip(backbone.stages(), _floors(metric), strict=True):
        compute = functools.partial(stage, layers, sizes)
        x, unit, sizes = (recompute(compute) if metric.remat and sizes is None else compute)(
            (metric.parameters["backbone"], floor, dropout), x
        )
        taps.append((unit, sizes))
    return taps


def _floors(metric: Metric) -> tuple[Float[Array, ""] | None, ...]:
    """The floor of each tap; None where the metric has none."""
    taps = len(metric.architecture.channels)
    floors = metric.parameters.get("floors")
    if floors is None:
        return (None,) * taps
    shapes = [jnp.shape(floor) for floor in floors]
    if shapes != [()] * taps:
        # A longer one would broadcast, and damp each channel or position differently.
        raise MetricError(f"{metric.name} has {taps} taps and needs one floor of shape () for each, got {shapes}")
    return tuple(jnp.asarray(floor, _accumulator_dtype(metric)) for floor in floors)


def _unit(activation: Float[Array, "n h w c"], floor: Float[Array, ""] | None) -> Float[Array, "n h w c"]:
    """f / (|f| + 1e-10), or with a floor f / max(sqrt(|f|^2 + c^2), 1e-10).

    The square root never sees 0, where its slope is infinite, so no gradient is NaN.
    """
    square = jnp.sum(jnp.square(activation), axis=-1, keepdims=True)
    if floor is not None:
        return activation / jnp.sqrt(jnp.maximum(square + jnp.square(floor), EPSILON**2))
    positive = square > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return activation / (norm + EPSILON)


def _weighted_difference(
    features: Float[Array, "... h w c"], others: Float[Array, "... h w c"], head: Float[Array, " c"]
) -> Float[Array, "... h w"]:
    return jnp.sum(jnp.square(features - others) * head.astype(features.dtype), axis=-1)


def _layer_distances(metric: Metric, features: Features, others: Features) -> list[Float[Array, "..."]]:
    layers = zip(features, others, metric.parameters["heads"], strict=True)
    return [jnp.mean(_weighted_difference(*layer), axis=(-2, -1)) for layer in layers]


def _sum(terms: list[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Sum in a fixed order, so that every path to a distance rounds alike."""
    return functools.reduce(jnp.add, terms)

"""E-LPIPS's expectation, computed sample by sample."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

from rlpips_jax.backbones import Dropout
from rlpips_jax.distances.lpips import (
    Features,
    Metric,
    RandomDistance,
    _accumulator_dtype,
    _in_blocks,
    _layer_distances,
    _normalised,
    _scaled,
    _sum,
    _zero_where_identical,
    distance,
)
from rlpips_jax.ensemble import sampling as estimators
from rlpips_jax.ensemble.expectation import Draws, summed
from rlpips_jax.ensemble.sampling import ESTIMATORS, Samples
from rlpips_jax.ensemble.transformations import (
    FIELDS,
    SHIFTS,
    Transformation,
    check_key,
    from_uniform,
    level_probabilities,
    sample_transformations,
    transform,
    transform_units,
)
from rlpips_jax.errors import EnsembleError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_unit

__all__ = [
    "ESTIMATORS",
    "KEEP",
    "SAMPLES",
    "Ensemble",
    "Transformation",
    "distance_under",
    "level_probabilities",
    "sample_transformations",
    "transform",
]

KEEP = 0.99
"""Share of the inputs of each convolution that dropout keeps."""
SAMPLES = 32
"""Samples of a distance where nothing is said."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["metric"], meta_fields=["keep", "estimator"])
@dataclass(frozen=True, eq=False)
class Ensemble(RandomDistance):
    """A distance under random transformations. Made by `rlpips_jax.load("elpips-squeeze")`, or from any Metric.

    A pytree: pass it to a jitted function as an argument.

    Attributes:
        metric: its network and heads.
        keep: share of the inputs of each convolution that dropout keeps; 1 for none.
        estimator: how samples are drawn, one of `ESTIMATORS`; they differ in variance alone.
    """

    metric: Metric
    keep: float = KEEP
    estimator: str = "stratified"

    def __post_init__(self) -> None:
        if isinstance(self.keep, int | float) and not 0 < self.keep <= 1:
            raise EnsembleError(f"keep must be a share above 0 and at most 1, got {self.keep}")
        if self.estimator not in ESTIMATORS:
            raise EnsembleError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")

    @property
    def name(self) -> str:
        """Of the metric; after "ensemble:" if that is not E-LPIPS's own."""
        name = self.metric.name
        return name if name.startswith("elpips-") else f"ensemble:{name}"

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return max(SHIFTS, self.metric.minimum_size - (SHIFTS - 1))

    @property
    def signature(self) -> str:
        """A line that pins a number, together with key and samples; `Metric.signature` says more."""
        return f"{self.metric.signature} ensemble keep={self.keep:g} estimator={self.estimator}"

    def features(self, images: Images, **options: Any) -> Features:
        """An ensemble has none: always raises EnsembleError."""
        raise EnsembleError(
            f"the ensemble {self.name} has no features of its own: take ensemble.metric.features(transform(images, t)) "
            "for a transformation t of rlpips_jax.ensemble.sample_transformations. An attack's objectives of an "
            "ensemble are rlpips_jax.attacks.expected_ranking and expected_distance_from"
        )

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """The mean over draws of the distance of images whose features are at hand: as `features`, always an error."""
        raise EnsembleError(f"the ensemble {self.name} has no features of its own")

    def expectation(self, function: "Function", arguments: Any, *, key: Any, samples: int) -> Array:
        """The mean over draws of a function of images' features; see `rlpips_jax.distances.protocol.RandomMetric`."""
        return expectation(self, function, arguments, key, samples)

    def distance(
        self, x: Images, y: Images, *, key: Any, samples: int | None, value_range: ValueRange
    ) -> Float[Array, "..."]:
        """What `rlpips_jax.distance` does with an ensemble."""
        value_range = check_value_range(value_range)
        x, y = check_images(value_range, x=x, y=y, minimum_size=self.minimum_size, user=self.name)
        samples = check_samples(samples)
        check_key(key, self.name)
        return _distance(self, x, y, key, samples, value_range)


def check_samples(samples: Any, name: str = "samples") -> int:
    """The number of samples; `SAMPLES` for None.

    Raises:
        EnsembleError: it is no whole number of 1 or more.
    """
    if samples is None:
        return SAMPLES
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 1:
        raise EnsembleError(f"{name} must be a whole number, 1 or more, got {samples!r}")
    return int(samples)


def distance_under(
    x: Images, y: Images, metric: Metric, t: Transformation, *, value_range: ValueRange = UNIT_RANGE
) -> Float[Array, " n"]:
    """The distance of each pair under a given transformation, without dropout.

    Args:
        x: images `(n, h, w, 3)`, uint8 or floats in `value_range`.
        y: images of the same shape.
        metric: the network and heads, such as `ensemble.metric`.
        t: of n images, or of one for all.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
        EnsembleError: the transformation is not of these images.
    """
    return distance(x, y, metric, transformation=t, value_range=value_range)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _distance(
    ensemble: Ensemble, x: Images, y: Images, key: Any, samples: int, value_range: ValueRange
) -> Float[Array, "..."]:
    leading = x.shape[:-3]
    images = tuple(unit_images(ensemble, image, value_range)[:, None] for image in (x, y))
    return expectation(ensemble, _between_pairs, images, key, samples).reshape(leading)


def unit_images(ensemble: Ensemble, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """Images in [0, 1], their leading axes in one."""
    return to_unit(images, value_range, _accumulator_dtype(ensemble.metric)).reshape(-1, *images.shape[-3:])


FeaturesOf = Callable[[Float[Array, "n k h w 3"]], Features]
"""Features `(n, k, ...)` of images in [0, 1], under a transformation for each of n, shared by its k images."""


def _between_pairs(
    metric: Metric, features_of: FeaturesOf, images: tuple[Float[Array, "n 1 h w 3"], ...]
) -> Float[Array, " n"]:
    x, y = images
    return distances(metric, features_of(x), features_of(y), x, y)[:, 0]


def distances(
    metric: Metric,
    features: Features,
    others: Features,
    images: Float[Array, "n j h w 3"],
    other_images: Float[Array, "n k h w 3"],
) -> Float[Array, "n _"]:
    """Distances of images from others, whose features are at hand; exactly 0 for identical ones. One k may be 1."""
    result = _sum(_layer_distances(metric, features, others))
    flat = (jnp.broadcast_to(each, (*result.shape, *each.shape[2:])) for each in (images, other_images))
    flat = (each.reshape(-1, *each.shape[2:]) for each in flat)
    return _zero_where_identical(result.reshape(-1), *flat).reshape(result.shape)


Function = Callable[[Metric, FeaturesOf, Any], Array]
"""`metric, features_of, arguments -> (n, ...)`: what is averaged over draws."""


def expectation(ensemble: Ensemble, function: Function, arguments: Any, key: Any, samples: int) -> Array:
    """The mean over samples of a function of images' features under transformations.

    Args:
        ensemble: whose estimator draws.
        function: which closes over nothing that is traced; what it gives for an example depends on it alone.
        arguments: a pytree of images `(n, k, h, w, 3)` in [0, 1], all of one n, h and w. What is drawn does not depend
            on k.
        key: a key of `jax.random`.
        samples: draws.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(arguments)]
    n, _, height, width, _ = shapes[0]
    images = n * max(shape[1] for shape in shapes)
    probabilities = level_probabilities(height, width)
    counts = estimators.allocation(samples, height, width) if ensemble.estimator == "stratified" else None
    forward_mode = ensemble.metric.forward_mode

    def of_level(level: int) -> Callable[[Metric, Any, Samples], Array]:
        return _Chunk(function, level, ensemble.keep)

    if counts is None:
        drawn, levels = estimators.drawn_samples(key, samples, n, height, width, ensemble.estimator)
        functions = tuple(of_level(level) for level in range(1, len(probabilities) + 1))
        draws = Draws(drawn, levels if len(functions) > 1 else None)
        return summed(functions, ensemble.metric, arguments, draws, forward_mode=forward_mode) / samples
    levels = range(1, len(counts) + 1)
    chunks = tuple(
        estimators.together(count, n, level, height, width) for level, count in zip(levels, counts, strict=True)
    )
    parts = []
    for level, drawn in zip(levels, estimators.stratified_samples(key, counts, n, chunks), strict=True):
        most = estimators.at_once(level, height, width, ensemble.metric.max_batch)
        draws = Draws(estimators.cut(drawn, images, most))
        part = summed((of_level(level),), ensemble.metric, arguments, draws, forward_mode=forward_mode)
        # A number of Python's own leaves the type as it is in 64-bit mode too.
        parts.append(part * float(probabilities[level - 1] / counts[level - 1]))
    return functools.reduce(jnp.add, parts)


@dataclass(frozen=True)
class _Chunk:
    """`metric, arguments, samples -> (n, ...)`, the sum over a chunk of samples at one scale level.

    Attributes:
        function: of each sample.
        level: of all.
        keep: share that dropout keeps.
    """

    function: Function
    level: int
    keep: float

    def __call__(self, metric: Metric, arguments: Any, samples: Samples) -> Array:
        metric = _with_transposed_kernels(metric, samples.transposed)

        def one(numbers: Float[Array, "n 9"], seeds: UInt32[Array, "n 2"]) -> Array:
            transformation = from_uniform(numbers, self.level, False)
            dropout = None if self.keep == 1 else Dropout(seeds, self.keep)
            features_of = functools.partial(self._features, metric, transformation, dropout)
            return self.function(metric, features_of, arguments)

        return jax.vmap(one)(samples.numbers, samples.seeds).sum(axis=0)

    def _features(
        self,
        metric: Metric,
        transformation: Transformation,
        dropout: Dropout | None,
        images: Float[Array, "n k h w 3"],
    ) -> Features:
        """Features of images in [0, 1], of which each k share a transformation and masks."""

        def block(images: Float[Array, "n k h w 3"], *parts: Array) -> Features:
            n, k, *size = images.shape
            of_images = {name: jnp.repeat(part, k, axis=0) for name, part in zip(FIELDS, parts, strict=False)}
            transformed = transform_units(images.reshape(n * k, *size), replace(transformation, **of_images))
            masks = None if dropout is None else replace(dropout, seeds=parts[-1])
            features = _normalised(metric, _scaled(metric, transformed, UNIT_RANGE), masks)
            return tuple(feature.reshape(n, k, *feature.shape[1:]) for feature in features)

        parts = [getattr(transformation, name) for name in FIELDS]
        if dropout is not None:
            parts.append(dropout.seeds)
        if metric.max_batch is None:
            return block(images, *parts)
        n, k, *size = images.shape
        if k <= metric.max_batch:
            return _in_blocks(replace(metric, max_batch=metric.max_batch // k), block, images, *parts)
        # Each image alone, with its own copy of what it shares.
        alone = images.reshape(n * k, 1, *size)
        features = _in_blocks(metric, block, alone, *(jnp.repeat(part, k, axis=0) for part in parts))
        return tuple(feature.reshape(n, k, *feature.shape[2:]) for feature in features)


def _with_transposed_kernels(metric: Metric, transposed: Bool[Array, ""]) -> Metric:
    """The metric whose distances are those of the transposed images, where that is asked for."""
    backbone = jax.tree.map(
        lambda leaf: jnp.where(transposed, leaf.swapaxes(0, 1), leaf) if leaf.ndim == 4 else leaf,
        metric.parameters["backbone"],
    )
    return replace(metric, parameters=metric.parameters | {"backbone": backbone})

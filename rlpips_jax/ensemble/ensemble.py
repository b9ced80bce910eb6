"""E-LPIPS's expectation, computed sample by sample."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt32

from rlpips_jax.arguments import Key, check_key, whole_number
from rlpips_jax.backbones import ELPIPS_SQUEEZE, ELPIPS_VGG, Dropout
from rlpips_jax.distances import lpips
from rlpips_jax.distances.distance import Called, distance, zero_where_identical
from rlpips_jax.distances.family import Family
from rlpips_jax.distances.lpips import elpips_heads, heads_part
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.protocol import DropoutMetric, Features, LayeredMetric, Metric, TransposableMetric
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.ensemble import sampling
from rlpips_jax.ensemble.expectation import Draws, summed
from rlpips_jax.ensemble.sampling import ESTIMATORS, Samples
from rlpips_jax.ensemble.transformations import (
    FIELDS,
    SHIFTS,
    Transformation,
    from_uniform,
    level_probabilities,
    transform,
    transform_units,
)
from rlpips_jax.errors import EnsembleError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_unit
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import in_blocks
from rlpips_jax.weights.parameters import Parameters
from rlpips_jax.weights.registry import Recipe

KEEP = 0.99
"""Share of the inputs of each convolution that dropout keeps."""
SAMPLES = 32
"""Samples of a distance where nothing is said."""


AnyMetric = TypeVar("AnyMetric", bound=Metric)


@dataclass(frozen=True, eq=False)
class Ensemble(Called, Generic[AnyMetric]):
    """A distance under random transformations. Made by `rlpips_jax.load("elpips-squeeze")`, or from any metric.

    A pytree: pass it to a jitted function as an argument.

    Attributes:
        metric: the distance that is averaged; any `rlpips_jax.Metric`.
        keep: share of the inputs of each convolution that dropout keeps; 1 for no dropout. Dropout is left out where
            the metric has no network to put it into.
        estimator: how samples are drawn, one of `ESTIMATORS`; they differ in variance alone.
    """

    metric: AnyMetric
    keep: float = KEEP
    estimator: str = "stratified"

    def __post_init__(self) -> None:
        if isinstance(self.keep, int | float) and not 0 < self.keep <= 1:
            raise EnsembleError(f"keep must be a share above 0 and at most 1, got {self.keep}")
        if self.estimator not in ESTIMATORS:
            raise EnsembleError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}")

    @property
    def name(self) -> str:
        """The name of the metric; after "ensemble:" if it is not one of E-LPIPS's own."""
        name = self.metric.name
        return name if name.startswith("elpips-") else f"ensemble:{name}"

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return max(SHIFTS, self.metric.minimum_size - (SHIFTS - 1))

    @property
    def signature(self) -> str:
        """A line that pins a number, together with key and samples: the metric's, with `keep` and `estimator`."""
        keep = self.keep if _drops(self.metric) else 1
        return f"{self.metric.signature} ensemble keep={keep:g} estimator={self.estimator}"

    def distance(
        self, x: Images, y: Images, *, value_range: ValueRange = UNIT_RANGE, key: Key | None, samples: int | None = None
    ) -> Float[Array, "..."]:
        """The mean distance over draws; `rlpips_jax.distance` documents it."""
        value_range = check_value_range(value_range)
        x, y = check_images(value_range, x=x, y=y, minimum_size=self.minimum_size, user=self.name)
        samples = check_samples(samples)
        key = check_key(self.name, key, error=EnsembleError)
        return _distance(self, x, y, key, samples=samples, value_range=value_range)

    def expectation(self, function: "Function", arguments: PyTree[Array], *, key: Key, samples: int) -> Array:
        """The mean over draws of a function of images' features under transformations.

        Args:
            function: `metric, features_of, arguments -> (n, ...)`; it closes over nothing that is traced, and what it
                gives for an example depends on that example alone.
            arguments: a pytree of images `(n, k, h, w, 3)` in [0, 1], all of one n, h and w. What is drawn does not
                depend on k: the k images of an example share a transformation.
            key: a key of `jax.random`.
            samples: draws.
        """
        return expectation(self, function, arguments, key, samples)

    def under(self, key: Key, *, samples: int | None = None) -> "EnsembleDraws":
        """The metric of the draws of one key, which are the same for all images.

        Its features can be computed once and compared with many, in `samples` times the memory of the metric's own.
        For n pairs, `distance` draws anew for each pair and so averages out more; this gives the same expectation.

        Args:
            key: a key of `jax.random`.
            samples: draws, by default 32.

        Raises:
            EnsembleError: the key is not one key of `jax.random`, or the number of samples makes no sense.
        """
        return EnsembleDraws(self, check_key(self.name, key, error=EnsembleError), check_samples(samples))


register_metric(Ensemble, ("metric",))


def build(recipe: Recipe, parameters: Parameters, options: Options) -> Ensemble[lpips.Lpips]:
    """E-LPIPS of a recipe and its parameters as they were read."""
    return Ensemble(lpips.build(recipe, parameters, options))


HEADS = {
    part.name: part
    for part in (
        heads_part(
            "elpips-squeeze",
            ELPIPS_SQUEEZE,
            "cdd3cdb0e98ac1f847520054f86b619f6e73c74d899eff5207b7db5c54865e95",
            elpips_heads(
                "squeeze_full_maxpool.npy",
                "bcaae2eb93410893fb2f97b5fc57854ef9cc8ebb813304a617a5416b68bedc22",
                14_259,
            ),
        ),
        heads_part(
            "elpips-vgg",
            ELPIPS_VGG,
            "07d65227cf636b47a4ae048b5dc150c0d9d5707ed551720a967267ad8107d354",
            elpips_heads(
                "vgg_full_avg.npy", "2f9171c0fb542223efc240fed40c0e56ad3014d5a9153e4a3fdc00cf7b1bb16e", 23_948
            ),
        ),
    )
}
"""The heads of E-LPIPS by name."""

UNTAPPED = ("alex", "tiny")
"""Networks for which E-LPIPS's authors trained no heads. Their ensembles use LPIPS's heads and taps."""

RECIPES = {
    name: lpips.recipe(name, heads, heads.backbone)
    for name, heads in (HEADS | {f"elpips-{name}": lpips.HEADS[f"lpips-{name}"] for name in UNTAPPED}).items()
}
"""Every E-LPIPS by name."""

FAMILY = Family(RECIPES, build, Ensemble)
"""E-LPIPS."""


@dataclass(frozen=True, eq=False)
class EnsembleDraws:
    """An ensemble under the draws of one key: a `rlpips_jax.Metric`. Made by `Ensemble.under`.

    Features have two axes after the images' leading ones in each array: first samples, then as the metric has them.
    There is one such tree per scale level.

    Attributes:
        ensemble: what is averaged.
        key: of `jax.random`.
        samples: draws.
    """

    ensemble: Ensemble
    key: Key
    samples: int

    @property
    def name(self) -> str:
        """The name of the ensemble."""
        return self.ensemble.name

    @property
    def signature(self) -> str:
        """That of the ensemble, with the key and the number of samples."""
        key = np.asarray(jax.random.key_data(self.key)).tolist()
        return f"{self.ensemble.signature} samples={self.samples} key={key}"

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return self.ensemble.minimum_size

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """Features of the metric under each draw. Arguments as everywhere."""
        value_range = check_value_range(value_range)
        (images,) = check_images(value_range, images=images, minimum_size=self.minimum_size, user=self.name)
        return _features_of_draws(self, images, value_range=value_range)

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """The mean over draws; leading axes broadcast."""
        return self._mean(self.ensemble.metric.between, features, others, 0)

    def layers_between(self, features: Features, others: Features) -> Float[Array, "... layers"]:
        """The mean over draws of each layer's share, if the metric has layers."""
        metric = self.ensemble.metric
        if not isinstance(metric, LayeredMetric):
            raise EnsembleError(f"{metric.name} is not a sum over layers")
        return self._mean(metric.layers_between, features, others, 1)

    def _mean(self, between: Callable[..., Array], features: Features, others: Features, after: int) -> Array:
        """Over samples, an axis with so many after it, and then over levels."""
        probabilities = level_probabilities(*features.size)
        levels = zip(probabilities, features.levels, others.levels, strict=True)
        means = [between(f, g).mean(axis=-1 - after) * float(probability) for probability, f, g in levels]
        return functools.reduce(jnp.add, means)


register_metric(EnsembleDraws, ("ensemble", "key"))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["levels"], meta_fields=["size"])
@dataclass(frozen=True)
class DrawnFeatures:
    """Features of images under draws.

    Attributes:
        levels: per scale level, the features under its samples.
        size: height and width of the images, which decide how likely each level is.
    """

    levels: tuple[Any, ...]  # of Features; abstract ones under jax.eval_shape
    size: tuple[int, int]


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("images")
def _features_of_draws(draws: EnsembleDraws, images: Images, *, value_range: ValueRange) -> DrawnFeatures:
    ensemble, leading = draws.ensemble, images.shape[:-3]
    size = images.shape[-3], images.shape[-2]
    probabilities = level_probabilities(*size)
    # At least one sample per level: a level that is never drawn would leave its part of the expectation out.
    counts = sampling.allocation(draws.samples, *size) or tuple(
        max(1, round(draws.samples * float(probability))) for probability in probabilities
    )
    units = unit_images(ensemble, images, value_range)[None]
    found = []
    samples = sampling.stratified_samples(draws.key, counts, 1, (1,) * len(counts))
    for level, sample in enumerate(samples, start=1):
        chunk = _Chunk(_all_features, level, ensemble.keep)
        one = functools.partial(_first_example, chunk, ensemble.metric, units)

        features = jax.lax.map(one, sample)
        found.append(
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(*leading, len(leaf), *leaf.shape[2:]), features)
        )
    return DrawnFeatures(tuple(found), size)


def _first_example(chunk: "_Chunk", metric: Metric, images: Float[Array, "1 k h w 3"], sample: Samples) -> Features:
    return jax.tree.map(lambda leaf: leaf[0, 0], chunk.each(metric, images, sample))


def _all_features(metric: Metric, features_of: "FeaturesOf", images: Float[Array, "1 k h w 3"]) -> Features:
    return features_of(images)


def check_samples(samples: object, name: str = "samples") -> int:
    """The number of samples; `SAMPLES` for None.

    Raises:
        EnsembleError: it is not a whole number of 1 or more.
    """
    if samples is None:
        return SAMPLES
    return whole_number(name, samples, minimum=1, error=EnsembleError)


def distance_under(
    x: Images, y: Images, metric: Metric, t: Transformation, *, value_range: ValueRange = UNIT_RANGE
) -> Float[Array, " n"]:
    """The distance of each pair under a given transformation, without dropout.

    Args:
        x: images `(n, h, w, 3)`, uint8 or floats in `value_range`.
        y: images of the same shape.
        metric: any metric, such as `ensemble.metric`.
        t: of n images, or of one for all.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
        EnsembleError: the transformation is not of these images.
    """
    x, y = check_images(check_value_range(value_range), x=x, y=y)
    one, other = (transform(each, t, value_range=value_range) for each in (x, y))
    return distance(one, other, metric)


@functools.partial(jax.jit, static_argnames=("samples", "value_range"))
@automatic_axes("x", "y")
def _distance(
    ensemble: Ensemble, x: Images, y: Images, key: Key, *, samples: int, value_range: ValueRange
) -> Float[Array, "..."]:
    leading = x.shape[:-3]
    images = tuple(unit_images(ensemble, image, value_range)[:, None] for image in (x, y))
    return expectation(ensemble, _between_pairs, images, key, samples).reshape(leading)


def unit_images(ensemble: Ensemble, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """Images in [0, 1], their leading axes in one; float32, or float64 if the metric computes in that."""
    dtype = jnp.float64 if getattr(ensemble.metric, "dtype", None) == "float64" else jnp.float32
    return to_unit(images, value_range, dtype).reshape(-1, *images.shape[-3:])


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
    result = metric.between(features, others)
    one, other = (
        jnp.broadcast_to(each, (*result.shape, *each.shape[2:])).reshape(-1, *each.shape[2:])
        for each in (images, other_images)
    )
    return zero_where_identical(result.reshape(-1), one, other).reshape(result.shape)


Function = Callable[[Metric, FeaturesOf, PyTree[Array]], Array]
"""`metric, features_of, arguments -> (n, ...)`: what is averaged over draws."""


def expectation(ensemble: Ensemble, function: Function, arguments: Any, key: Key, samples: int) -> Array:
    shapes = [leaf.shape for leaf in jax.tree.leaves(arguments)]
    n, _, height, width, _ = shapes[0]
    images = n * max(shape[1] for shape in shapes)
    probabilities = level_probabilities(height, width)
    counts = sampling.allocation(samples, height, width) if ensemble.estimator == "stratified" else None
    forward_mode = getattr(ensemble.metric, "forward_mode", False)

    def of_level(level: int) -> Callable[[Metric, Any, Samples], Array]:
        return _Chunk(function, level, ensemble.keep)

    if counts is None:
        drawn, levels = sampling.drawn_samples(key, samples, n, height, width, ensemble.estimator)
        functions = tuple(of_level(level) for level in range(1, len(probabilities) + 1))
        draws = Draws(drawn, levels if len(functions) > 1 else None)
        return summed(functions, ensemble.metric, arguments, draws, forward_mode=forward_mode) / samples
    levels = range(1, len(counts) + 1)
    chunks = tuple(
        sampling.together(count, n, level, height, width) for level, count in zip(levels, counts, strict=True)
    )
    parts = []
    for level, drawn in zip(levels, sampling.stratified_samples(key, counts, n, chunks), strict=True):
        most = sampling.at_once(level, height, width, getattr(ensemble.metric, "max_batch", None))
        draws = Draws(sampling.cut(drawn, images, most))
        part = summed((of_level(level),), ensemble.metric, arguments, draws, forward_mode=forward_mode)
        # A number of Python's own leaves the type as it is in 64-bit mode too.
        parts.append(part * float(probabilities[level - 1] / counts[level - 1]))
    return functools.reduce(jnp.add, parts)


@dataclass(frozen=True)
class _Chunk:
    """`metric, arguments, samples -> (n, ...)`, the sum over a chunk of samples at one scale level.

    Attributes:
        function: of each sample.
        level: the scale level of all samples.
        keep: share that dropout keeps.
    """

    function: Function
    level: int
    keep: float

    def __call__(self, metric: Metric, arguments: Any, samples: Samples) -> Array:
        return self.each(metric, arguments, samples).sum(axis=0)

    def each(self, metric: Metric, arguments: Any, samples: Samples) -> Any:
        """What the function gives for each sample: a pytree of arrays with a first axis of samples."""
        height, width = jax.tree.leaves(arguments)[0].shape[-3:-1]
        if isinstance(metric, TransposableMetric):
            return self._under(metric.transposed(samples.transposed), arguments, samples, False)
        if height == width:
            return self._under(metric, arguments, samples, samples.transposed)
        branches = (functools.partial(self._under, turned=turned) for turned in (True, False))
        return jax.lax.cond(samples.transposed, *branches, metric, arguments, samples)

    def _under(self, metric: Metric, arguments: Any, samples: Samples, turned: bool | Bool[Array, ""]) -> Any:
        def one(numbers: Float[Array, "n 9"], seeds: UInt32[Array, "n 2"]) -> Any:
            transformation = from_uniform(numbers, self.level, False)
            dropout = None if self.keep == 1 or not _drops(metric) else Dropout(seeds, self.keep)
            features_of = functools.partial(_features, metric, transformation, dropout, turned)
            return self.function(metric, features_of, arguments)

        return jax.vmap(one)(samples.numbers, samples.seeds)


def _drops(metric: Metric) -> bool:
    """Whether inputs of its network's convolutions can be dropped out."""
    return isinstance(metric, DropoutMetric) and metric.can_drop


def _features(
    metric: Any,
    transformation: Transformation,
    dropout: Dropout | None,
    turned: bool | Bool[Array, ""],
    images: Float[Array, "n k h w 3"],
) -> Features:
    """Features of images in [0, 1], of which each k share a transformation and masks.

    Args:
        metric: which computes the features.
        transformation: of n images, without a transposition.
        dropout: masks of n images, or None.
        turned: whether images are transposed; a flag that is traced can be True only of square images.
        images: to be transformed.
    """

    def block(images: Float[Array, "n k h w 3"], *parts: Array) -> Features:
        n, k, *size = images.shape
        of_images = {name: jnp.repeat(part, k, axis=0) for name, part in zip(FIELDS, parts, strict=False)}
        transformed = transform_units(images.reshape(n * k, *size), replace(transformation, **of_images))
        if turned is not False:
            swapped = transformed.swapaxes(1, 2)
            transformed = swapped if turned is True else jnp.where(turned, swapped, transformed)
        if dropout is None:
            features = metric.features(transformed)
        else:
            features = metric.features_under(transformed, replace(dropout, seeds=parts[-1]))
        return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[1:]), features)

    parts = [getattr(transformation, name) for name in FIELDS]
    if dropout is not None:
        parts.append(dropout.seeds)
    n, k, *size = images.shape
    most = getattr(metric, "max_batch", None)
    if most is None or k <= most:
        return in_blocks(block, images, *parts, most=None if most is None else most // k)
    # Each image alone, with its own copy of what it shares.
    alone = images.reshape(n * k, 1, *size)
    features = in_blocks(block, alone, *(jnp.repeat(part, k, axis=0) for part in parts), most=most)
    return jax.tree.map(lambda leaf: leaf.reshape(n, k, *leaf.shape[2:]), features)

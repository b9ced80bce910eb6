"""What metrics over a network have in common: parameters, options, features, masks, images of several sizes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax._version import __version__
from rlpips_jax.backbones import Backbone, Computation, Dropout, LocalBackbone, Locality, StagedBackbone
from rlpips_jax.distances.distance import Called
from rlpips_jax.distances.family import pinned
from rlpips_jax.errors import ImageError, MetricError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import in_blocks
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.recomputation import recomputed
from rlpips_jax.ops.total import total
from rlpips_jax.weights.parameters import Parameters

Features = tuple[Float[Array, "..."], ...]
"""What is kept of each tap, one array `(..., h_l, w_l, c_l)` per tap."""

Tap = tuple[Float[Array, "n i j c"], Int[Array, "n 2"] | None]
"""What is kept of a tap, and the sizes where the batch has images of several."""

Weights = Sequence[Float[Array, "..."] | None]
"""Per tap, how much each position counts in a mean; None where all count alike."""


@dataclass(frozen=True, eq=False, repr=False)
class ParameterMetric(Called):
    """A metric with parameters, and how to use them. Made by `rlpips_jax.load`.

    A pytree whose leaves are the parameters: pass it to a jitted function as an argument. A metric that a jitted
    function closes over is baked into the program as constants, which makes the program large and slow to compile. Its
    name is not part of what is compiled, so that two metrics of one network share programs; a metric that a jitted
    function *returns* has the name that the function was first traced with (`dataclasses.replace` changes it).

    Attributes:
        parameters: `{"backbone": {...}}` and what stands beside it, float32; the leaves of the pytree.
        name: what it was loaded as.
        backbone: the network.
        dtype: what the network computes in; norms, differences and sums are never below float32.
        precision: of the convolutions and products, as `jax.lax.Precision` names it.
        max_batch: most images that are in the network at once; None for no limit.
        remat: whether the gradient recomputes activations instead of keeping them.
        forward_mode: whether `jax.jvp` works, at the price of slower gradients on CPU.
        frozen: whether gradients by the parameters are 0, for a metric that is a field of a model which is trained.

    Metrics are compared by identity; `signature` tells whether two give the same numbers.
    """

    parameters: Parameters
    name: str
    backbone: Any
    dtype: str = "float32"
    precision: str = "highest"
    max_batch: int | None = None
    remat: bool = False
    forward_mode: bool = False
    frozen: bool = False

    def __repr__(self) -> str:
        options = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)[3:])
        return f"{type(self).__name__}({self.name!r}, backbone={self.backbone.name!r}, {options})"

    @property
    def signature(self) -> str:
        """A line that pins a number: library version, metric, network, parameters, dtype, precision.

        The parameters are followed by "unofficial" where those published under the metric's name are others.

        Raises:
            MetricError: the parameters are traced or abstract, and so have no values to hash.
        """
        return (
            f"rlpips-jax {__version__} {self.name} {self.backbone.signature}{self._details} "
            f"{pinned(self.name, self.parameters)} dtype={self.dtype} precision={self.precision}"
        )

    @property
    def _details(self) -> str:
        """What else pins a number, beginning with a space."""
        return ""


@dataclass(frozen=True, eq=False, repr=False)
class NetworkMetric(ParameterMetric):
    """A metric over the activations of a backbone. `ParameterMetric` has the other attributes.

    A kind of metric is a subclass that says what goes into the network (`_prepared`), what is kept of it (`_taps`), and
    what each tap has of the distance (`_parts`).

    Attributes:
        backbone: the network and its taps.
        max_memory: bytes that activations may take, roughly; larger images are computed in tiles. None for no limit.
    """

    backbone: Backbone
    max_memory: int | None = None

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """What is compared, to compare one image with many by `between`.

        Args:
            images: `(..., h, w, 3)`, uint8 or floats in `value_range`.
            value_range: black and white of floating-point images.

        Returns:
            One array `(..., h_l, w_l, c_l)` per tap, float32 (float64 if the metric is).

        Raises:
            ImageError: the images break the convention of `rlpips_jax.images`.
        """
        return self.features_under(images, None, value_range=value_range)

    def features_under(
        self, images: Images, dropout: Dropout | None, *, value_range: ValueRange = UNIT_RANGE
    ) -> Features:
        """`features` under masks of dropout on the input of every convolution; None for no masks."""
        value_range = check_value_range(value_range)
        (images,) = check_images(value_range, images=images, minimum_size=self.minimum_size, user=self.name)
        return _features(self, images, dropout, value_range=value_range)

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """Distances between images whose features are at hand; leading axes broadcast.

        Args:
            features: from `features`.
            others: from `features` of images of the same size.

        Returns:
            The distance, with the leading axes, in the units of `distance`.

        Raises:
            MetricError: the features are of different sizes, or of a metric with other taps. Features of the same
                network with other weights cannot be told apart: compare only what one metric made.
        """
        self._check_pair(features, others)
        return total(self._parts(features, others, [None] * len(features)))

    def layers_between(self, features: Features, others: Features) -> Float[Array, "... layers"]:
        """The share of each tap in `between`: `(..., layers)`, summing to it. Arguments as there."""
        self._check_pair(features, others)
        return jnp.stack(self._parts(features, others, [None] * len(features)), axis=-1)

    def masked_between(
        self, features: Features, others: Features, mask: Bool[Array, "... h w"]
    ) -> Float[Array, "... layers"]:
        """`layers_between`, with means over positions weighted by the mask, averaged down to the tap's size."""
        self._check_pair(features, others)
        weights = [_covered(mask, feature.shape[-3:-1], feature.dtype) for feature in features]
        return jnp.stack(self._parts(features, others, weights), axis=-1)

    @property
    def can_pad(self) -> bool:
        """Whether `padded_distance` works: the backbone runs in stages, and memory has no bound."""
        return isinstance(self.backbone, StagedBackbone) and self.max_memory is None

    @property
    def can_drop(self) -> bool:
        """Whether `features_under` takes masks: the backbone runs in stages."""
        return isinstance(self.backbone, StagedBackbone)

    @property
    def locality(self) -> Locality | None:
        """On which part of the image each tap's activations depend; None where the backbone does not say."""
        return self.backbone.locality if isinstance(self.backbone, LocalBackbone) else None

    def padded_distance(
        self, x: Images, y: Images, sizes: Int[Array | np.ndarray, "n 2"], *, value_range: ValueRange = UNIT_RANGE
    ) -> Float[Array, " n"]:
        """`rlpips_jax.distance` of pairs of different sizes in one batch, and so in one compiled program.

        Activations are set to 0 outside each image after every layer and means are over what is inside, so that each
        distance is that of the pair alone, but for rounding (1e-6). `remat` has no effect here.

        Args:
            x: images `(n, h, w, 3)`, each in the top left corner; what lies outside it is not looked at, but must be
                values that an image may have.
            y: images of the same shape.
            sizes: height and width of each pair, in pixels; at most `(h, w)`, at least `minimum_size`.
            value_range: black and white of floating-point images.

        Raises:
            ImageError: the images break the convention of `rlpips_jax.images`, or a size is out of bounds.
            MetricError: `can_pad` is False.
        """
        if not self.can_pad:
            raise MetricError(
                f"{self.name} compares images of one size in a batch (can_pad is False): call rlpips_jax.distance for "
                "each size"
            )
        value_range = check_value_range(value_range)
        x, y = check_images(value_range, x=x, y=y, minimum_size=self.minimum_size, user=self.name)
        if x.ndim != 4 or np.shape(sizes) != (x.shape[0], 2):
            raise ImageError(
                f"a batch (n, h, w, 3) needs sizes (n, 2), got images {tuple(x.shape)} and sizes {np.shape(sizes)}"
            )
        smallest = self.minimum_size
        if not isinstance(sizes, Tracer):
            low, high = np.min(sizes, axis=0, initial=smallest), np.max(sizes, axis=0, initial=0)
            if np.any(low < smallest) or np.any(high > x.shape[1:3]):
                raise ImageError(
                    f"sizes must lie between {smallest}x{smallest} ({self.name}) and the images' {x.shape[1]}x"
                    f"{x.shape[2]}, got heights and widths from {low.tolist()} to {high.tolist()}"
                )
        return _padded_distance(self, x, y, jnp.asarray(sizes, jnp.int32), value_range=value_range)

    def transposed(self, where: Bool[Array, ""]) -> "NetworkMetric":
        """The metric whose distances are those of the transposed images, where the flag is True."""
        backbone = jax.tree.map(
            lambda leaf: jnp.where(where, leaf.swapaxes(0, 1), leaf) if leaf.ndim == 4 else leaf,
            self.parameters["backbone"],
        )
        return replace(self, parameters=self.parameters | {"backbone": backbone})

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return self.backbone.minimum_size

    @property
    def _channels(self) -> tuple[int, ...]:
        """Channels of each array of features."""
        return self.backbone.channels

    def _prepared(self, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
        """Images as floats of `accumulator_dtype`, in the units that `_taps` takes."""
        raise NotImplementedError

    def _taps(
        self, x: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None, dropout: Dropout | None
    ) -> Sequence[Tap]:
        """Features of images as `_prepared` gives them; sizes and dropout need a backbone that runs in stages."""
        raise NotImplementedError

    def _parts(self, features: Features, others: Features, weights: Weights) -> list[Float[Array, "..."]]:
        """What each tap has of the distance."""
        raise NotImplementedError

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
        if channels != self._channels:
            raise MetricError(
                f"features have {channels} channels at their taps, but {self.name} has {self._channels}: "
                "they come from another metric"
            )


def accumulator_dtype(metric: ParameterMetric) -> DTypeLike:
    """What images, norms, differences and sums are computed in."""
    return jnp.promote_types(metric.dtype, jnp.float32)


def parameters_of(metric: ParameterMetric) -> Parameters:
    """The parameters, without gradients if the metric is frozen."""
    return jax.lax.stop_gradient(metric.parameters) if metric.frozen else metric.parameters


def as_arrays(parameters: Parameters) -> Parameters:
    """Parameters as they were read, as float32 arrays of JAX, also where a metric is built inside `jax.jit`."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters)


def activations(
    metric: NetworkMetric,
    x: Float[Array, "n h w 3"],
    keep: Callable[..., Float[Array, "n i j c"]] = lambda activation: activation,
    *,
    arguments: Sequence[tuple[Any, ...]] | None = None,
    sizes: Int[Array, "n 2"] | None = None,
    dropout: Dropout | None = None,
) -> list[Tap]:
    """Runs the backbone, and keeps something of each tap.

    Args:
        metric: how to compute.
        x: images as the network expects them.
        keep: what is kept, of the activations in `accumulator_dtype` and of the tap's arguments; by default all.
        arguments: further arguments of `keep` per tap.
        sizes: of the images, where the batch has several.
        dropout: masks on the inputs of convolutions.
    """
    backbone, bounded = metric.backbone, metric.remat or metric.max_memory is not None
    computation = Computation(metric.dtype, metric.precision, metric.forward_mode, bounded)
    kernels, dtype = parameters_of(metric)["backbone"], accumulator_dtype(metric)
    recompute = jax.checkpoint if metric.forward_mode else recomputed
    arguments = [()] * len(backbone.channels) if arguments is None else arguments
    x = x.astype(metric.dtype)
    if not isinstance(backbone, StagedBackbone):
        if dropout is not None:
            raise MetricError(f"{metric.name} has a backbone without stages ({backbone.name}): there is no dropout")

        def whole(parameters: Any, x: Array) -> list[Array]:
            kernels, arguments = parameters
            found = backbone.taps(kernels, x, computation)
            return [keep(each.astype(dtype), *others) for each, others in zip(found, arguments, strict=True)]

        kept = (recompute(whole) if metric.remat else whole)((kernels, arguments), x)
        return [(each, None) for each in kept]

    def stage(layers: Any, sizes: Array | None, parameters: Any, x: Array) -> tuple[Array, Array, Array | None]:
        kernels, others, dropout = parameters
        found, sizes = backbone.stage(layers, kernels, x, computation=computation, sizes=sizes, dropout=dropout)
        return found, keep(found.astype(dtype), *others), sizes

    taps = []
    for layers, others in zip(backbone.stages(), arguments, strict=True):
        compute = functools.partial(stage, layers, sizes)
        x, kept, sizes = (recompute(compute) if metric.remat and sizes is None else compute)(
            (kernels, others, dropout), x
        )
        taps.append((kept, sizes))
    return taps


def position_mean(values: Float[Array, "... i j c"], weights: Float[Array, "... i j"] | None) -> Float[Array, "... c"]:
    """The mean over positions, weighted if there are weights; 0 where these are all 0."""
    if weights is None:
        return jnp.mean(values, axis=(-3, -2))
    area = jnp.sum(weights, axis=(-2, -1))[..., None]
    summed = jnp.sum(values * weights[..., None], axis=(-3, -2))
    return jnp.where(area > 0, summed / jnp.where(area > 0, area, 1), 0)


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("images")
def _features(metric: NetworkMetric, images: Images, dropout: Dropout | None, *, value_range: ValueRange) -> Features:
    leading = images.shape[:-3]
    # Masks belong to the batch as a whole, which whoever draws them cuts into blocks.
    features = in_blocks(
        lambda block: tuple(kept for kept, _ in metric._taps(metric._prepared(block, value_range), None, dropout)),
        jnp.asarray(images).reshape(-1, *images.shape[-3:]),
        most=metric.max_batch if dropout is None else None,
    )
    return tuple(feature.reshape(*leading, *feature.shape[1:]) for feature in features)


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _padded_distance(
    metric: NetworkMetric, x: Images, y: Images, sizes: Int[Array, "n 2"], *, value_range: ValueRange
) -> Float[Array, " n"]:
    def block(x: Images, y: Images, sizes: Int[Array, "n 2"]) -> Float[Array, " n"]:
        x, y = (inside(metric._prepared(images, value_range), sizes) for images in (x, y))
        taps, other_taps = (metric._taps(images, sizes, None) for images in (x, y))
        weights: list[Array | None] = []
        for kept, extent in taps:
            assert extent is not None
            weights.append(inside(jnp.ones_like(kept[..., :1]), extent)[..., 0])
        features, others = (tuple(kept for kept, _ in each) for each in (taps, other_taps))
        result = total(metric._parts(features, others, weights))
        identical = jnp.all(x == y, axis=(1, 2, 3))
        return result - jax.lax.stop_gradient(jnp.where(identical, result, jnp.zeros((), result.dtype)))

    return in_blocks(block, jnp.asarray(x), jnp.asarray(y), sizes, most=metric.max_batch)


def _covered(mask: Bool[Array, "... h w"], size: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "... i j"]:
    """The share of each position's area that the mask covers."""
    rows, columns = (_overlaps(here, there, dtype) for here, there in zip(size, mask.shape[-2:], strict=True))
    return jnp.einsum("ih,...hw,jw->...ij", rows, mask.astype(dtype), columns, precision="highest")


def _overlaps(here: int, there: int, dtype: DTypeLike) -> Float[np.ndarray, "here there"]:
    """The share of each of `here` equal parts of an axis that each of `there` equal parts covers."""
    ends = np.arange(here)[:, None] * there / here
    covered = np.minimum(ends + there / here, np.arange(there) + 1) - np.maximum(ends, np.arange(there))
    return (np.maximum(covered, 0) * here / there).astype(dtype)

"""LPIPS: the distance between images as the weighted difference of a network's activations.

With image x in [-1, 1], f_l the activations at tap l, and h = f / (|f| + 1e-10) their unit vectors over channels,

    d(x, y) = sum_l mean_ij sum_c w_lc (h_l(x)_ijc - h_l(y)_ijc)^2,        w >= 0

(Zhang et al. 2018). This h gives a faint activation the same length as a strong one, and so amplifies noise in flat
regions. A metric may have floors c_l >= 0, one per tap and learned like w, that damp faint activations:

    h = f / max(sqrt(|f|^2 + c_l^2), 1e-10)

At c_l = 0 the derivative by c_l is 0, so learning starts above 0.
"""

import functools
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax._version import __version__
from rlpips_jax.backbones import (
    ALEX,
    SQUEEZE,
    SQUEEZE_FLOOR,
    TINY,
    VGG,
    Backbone,
    Computation,
    Dropout,
    StagedBackbone,
)
from rlpips_jax.distances.family import Family, read_parameters
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.errors import ImageError, MetricError
from rlpips_jax.files.official import Official
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_symmetric
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import in_blocks
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.recomputation import recomputed
from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.ops.squared_distances import Rows, prepared, squared_distances
from rlpips_jax.ops.unit_vectors import unit_vectors
from rlpips_jax.weights.parameters import Parameters, digest, with_heads
from rlpips_jax.weights.registry import BACKBONE_PARTS, Part, Recipe

DEFAULT = "lpips-alex"

Features = tuple[Float[Array, "..."], ...]
"""Unit-normalised activations (shorter where floors damp them), one array `(..., h_l, w_l, c_l)` per tap."""


@dataclass(frozen=True, eq=False, repr=False)
class Lpips:
    """LPIPS over a backbone: parameters and how to use them. Made by `rlpips_jax.load`.

    A pytree whose leaves are the parameters: pass it to a jitted function as an argument. A metric that a jitted
    function closes over is baked into the program as constants, which makes the program large and slow to compile. Its
    name is not part of what is compiled, so that two metrics of one network share programs; a metric that a jitted
    function *returns* has the name that the function was first traced with (`dataclasses.replace` changes it).

    Attributes:
        parameters: `{"backbone": {...}, "heads": (w_0, w_1, ...)}`, float32; the leaves of the pytree. With
            `"floors": (c_0, c_1, ...)` beside them, each of shape `()`, faint activations are damped.
        name: what it was loaded as.
        backbone: the network and its taps.
        version: LPIPS version: "0.1" scales the channels of the image first, "0.0" does not.
        dtype: what the network computes in; norms, differences and sums are never below float32.
        precision: of the convolutions, as `jax.lax.Precision` names it.
        max_batch: most images that are in the network at once; None for no limit.
        remat: whether the gradient recomputes activations instead of keeping them.
        forward_mode: whether `jax.jvp` works, at the price of slower gradients on CPU.
        frozen: whether gradients by the parameters are 0, for a metric that is a field of a model which is trained.

    Metrics are compared by identity; `signature` tells whether two give the same numbers.
    """

    parameters: Parameters
    name: str
    backbone: Backbone
    version: str = "0.1"
    dtype: str = "float32"
    precision: str = "highest"
    max_batch: int | None = None
    remat: bool = False
    forward_mode: bool = False
    frozen: bool = False

    def __repr__(self) -> str:
        options = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)[3:])
        return f"Lpips({self.name!r}, backbone={self.backbone.name!r}, {options})"

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """Unit-normalised activations, to compare one image with many by `between`.

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
        return total(self._layers(features, others))

    def layers_between(self, features: Features, others: Features) -> Float[Array, "... layers"]:
        """The share of each tap in `between`: `(..., layers)`, summing to it. Arguments as there."""
        return jnp.stack(self._layers(features, others), axis=-1)

    def map_between(self, features: Features, others: Features, *, height: int, width: int) -> Float[Array, "... h w"]:
        """The map of each tap, enlarged bilinearly to this size, summed. Other arguments as in `between`."""
        maps = self._differences(features, others)
        return total([resize_bilinear(each, height, width) for each in maps])

    def masked_between(
        self, features: Features, others: Features, mask: Bool[Array, "... h w"]
    ) -> Float[Array, "... layers"]:
        """`layers_between`, with the mean over positions weighted by the mask, averaged down to the tap's size."""
        return jnp.stack([_weighted_mean(each, mask) for each in self._differences(features, others)], axis=-1)

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
        """Features so scaled that the square of their Euclidean distance is `between`."""
        self._check_features(features)
        return tuple(
            feature * jnp.sqrt(head.astype(feature.dtype) / (feature.shape[-3] * feature.shape[-2]))
            for feature, head in zip(features, _parameters(self)["heads"], strict=True)
        )

    def rows(self, features: Features, images: Images, value_range: ValueRange) -> Rows:
        """Features of a batch, prepared for `rows_between`; `images` are what they were computed from."""
        return _rows(self, features, _flat((_scaled(self, images, value_range),))[0])

    def rows_between(
        self, rows: Rows, others: Features, images: Images, value_range: ValueRange
    ) -> Float[Array, "n m"]:
        """Distances of prepared rows from the features of other images; exactly 0 for equal images."""
        return squared_distances(rows, _flat(others), _flat((_scaled(self, images, value_range),))[0])

    @property
    def can_pad(self) -> bool:
        """Whether `padded_distance` works: the backbone runs in stages."""
        return isinstance(self.backbone, StagedBackbone)

    @property
    def can_drop(self) -> bool:
        """Whether `features_under` takes masks: the backbone runs in stages."""
        return isinstance(self.backbone, StagedBackbone)

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
        """
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

    def transposed(self, where: Bool[Array, ""]) -> "Lpips":
        """The metric whose distances are those of the transposed images, where the flag is True."""
        backbone = jax.tree.map(
            lambda leaf: jnp.where(where, leaf.swapaxes(0, 1), leaf) if leaf.ndim == 4 else leaf,
            self.parameters["backbone"],
        )
        return replace(self, parameters=self.parameters | {"backbone": backbone})

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
            f"rlpips-jax {__version__} {self.name} {self.backbone.signature}{floors} v{self.version} "
            f"parameters={digest(self.parameters)[:12]} dtype={self.dtype} precision={self.precision}"
        )

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels."""
        return self.backbone.minimum_size

    def _layers(self, features: Features, others: Features) -> list[Float[Array, "..."]]:
        return [jnp.mean(each, axis=(-2, -1)) for each in self._differences(features, others)]

    def _differences(self, features: Features, others: Features) -> list[Float[Array, "... h w"]]:
        """sum_c w_lc (f_lc - g_lc)^2 per tap and position."""
        self._check_pair(features, others)
        return [_weighted_difference(*each) for each in zip(features, others, _parameters(self)["heads"], strict=True)]

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
        if channels != self.backbone.channels:
            raise MetricError(
                f"features have {channels} channels at their taps, but {self.name} has {self.backbone.channels}: "
                "they come from another metric"
            )


register_metric(Lpips)


def build(recipe: Recipe, parameters: Parameters, options: Options) -> Lpips:
    """An LPIPS of a recipe and its parameters as they were read; heads that are absent are 1.

    Args:
        recipe: name, network and version.
        parameters: backbone, and heads and floors where there are any.
        options: how it is to be computed.
    """
    backbone = recipe.backbone
    if options.unweighted or "heads" not in parameters:
        parameters = parameters | {"heads": tuple(np.ones(channels, np.float32) for channels in backbone.channels)}
    with jax.ensure_compile_time_eval():
        parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters)
    name = (
        f"{recipe.name} (unweighted)"
        if options.unweighted and any("heads" in part.holds for part in recipe.parts)
        else recipe.name
    )
    return Lpips(parameters, name, backbone, **recipe.settings, **options.of_network)


CITATION = "Zhang et al.: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018"
ELPIPS = (
    "Kettunen, Härkönen, Lehtinen: E-LPIPS: Robust Perceptual Image Similarity via Random Transformation "
    "Ensembles, arXiv:1906.03973"
)


def _official(path: str, sha256: str, size: int) -> Official:
    url = f"https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/{path}"
    return Official(path, url, sha256, size, "BSD-2-Clause", CITATION)


def elpips_heads(file: str, sha256: str, size: int) -> Official:
    url = f"https://raw.githubusercontent.com/mkettune/elpips/master/elpips/{file}"
    return Official(f"elpips/{file}", url, sha256, size, "BSD-2-Clause", ELPIPS)


def heads_part(name: str, backbone: Backbone, official: Official | None = None) -> Part:
    """The file of heads over a backbone; those that were trained with it bring it along."""
    return Part(name, with_heads(backbone), ("heads",), official)


HEADS = {
    part.name: part
    for part in (
        heads_part(
            "lpips-alex",
            ALEX,
            _official("v0.1/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", 6_009),
        ),
        heads_part(
            "lpips-vgg",
            VGG,
            _official("v0.1/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", 7_289),
        ),
        heads_part(
            "lpips-squeeze",
            SQUEEZE,
            _official("v0.1/squeeze.pth", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76", 10_811),
        ),
        heads_part(
            "lpips-alex@0.0",
            ALEX,
            _official("v0.0/alex.pth", "18720f55913d0af89042f13faa7e536a6ce1444a0914e6db9461355ece1e8cd5", 5_455),
        ),
        heads_part(
            "lpips-vgg@0.0",
            VGG,
            _official("v0.0/vgg.pth", "b9e4236260c3dd988fc79d2a48d645d885afcbb21f9fd595e6744cf7419b582c", 6_735),
        ),
        heads_part(
            "lpips-squeeze@0.0",
            SQUEEZE,
            _official("v0.0/squeeze.pth", "c27abd3a0145541baa50990817df58d3759c3f8154949f42af3b59b4e042d0bf", 10_057),
        ),
        heads_part(
            "lpips-squeeze@elpips",
            SQUEEZE_FLOOR,
            elpips_heads("squeeze.npy", "9cf7e036dbcac9e8134b45641e5efd32c5e97681f7c3b08b911ab3c78236a4b9", 13_135),
        ),
        heads_part(
            "lpips-vgg@elpips",
            VGG,
            elpips_heads("vgg_maxpool.npy", "0466232a296381ec27a580a1e8977dd8bc3bd552f36644b03de41189a8afc03e", 8_542),
        ),
        heads_part("lpips-tiny", TINY),
        heads_part("rlpips-alex", ALEX),
        heads_part("rlpips-vgg", VGG),
        heads_part("rlpips-squeeze", SQUEEZE),
        heads_part("rlpips-tiny", TINY),
    )
}
"""The heads of LPIPS and R-LPIPS by name."""


def recipe(name: str, heads: Part | None, backbone: Backbone, *, version: str = "0.1") -> Recipe:
    """A metric of heads, or of none, over a backbone, whose official file is read where the heads bring none."""
    parts = tuple(part for part in (heads, BACKBONE_PARTS.get(backbone.name)) if part)
    return Recipe(name, with_heads(backbone), parts, {"version": version})


def baselines(backbone: Backbone) -> dict[str, Recipe]:
    """The metrics without heads over a backbone that has an official file, by name."""
    names = {f"baseline-{backbone.name}": "0.1", f"baseline-{backbone.name}@0.0": "0.0"}
    return {name: recipe(name, None, backbone, version=version) for name, version in names.items()}


RECIPES = {
    name: recipe(name, heads, heads.backbone, version="0.0" if name.endswith("@0.0") else "0.1")
    for name, heads in HEADS.items()
}
"""Every LPIPS, R-LPIPS and baseline by name."""

for _part in BACKBONE_PARTS.values():
    RECIPES |= baselines(_part.backbone)

FAMILY = Family(RECIPES, build, Lpips)
"""LPIPS, R-LPIPS and baselines."""


@functools.cache
def default() -> Lpips:
    """The metric that is used where none is named, loaded once."""
    recipe = RECIPES[DEFAULT]
    return build(recipe, read_parameters(recipe), Options())


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("images")
def _features(metric: Lpips, images: Images, dropout: Dropout | None, *, value_range: ValueRange) -> Features:
    leading = images.shape[:-3]
    # Masks belong to the batch as a whole, which whoever draws them cuts into blocks.
    features = in_blocks(
        lambda block: tuple(
            unit for unit, _ in _activations(metric, _scaled(metric, block, value_range), None, dropout)
        ),
        jnp.asarray(images).reshape(-1, *images.shape[-3:]),
        most=metric.max_batch if dropout is None else None,
    )
    return tuple(feature.reshape(*leading, *feature.shape[1:]) for feature in features)


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("x", "y")
def _padded_distance(
    metric: Lpips, x: Images, y: Images, sizes: Int[Array, "n 2"], *, value_range: ValueRange
) -> Float[Array, " n"]:
    def block(x: Images, y: Images, sizes: Int[Array, "n 2"]) -> Float[Array, " n"]:
        x, y = (inside(_scaled(metric, images, value_range), sizes) for images in (x, y))
        both = (_activations(metric, images, sizes) for images in (x, y))
        layers = []
        for (features, extent), (others, _), head in zip(*both, _parameters(metric)["heads"], strict=True):
            assert extent is not None
            # Outside its extent an activation is 0, and so is the difference of two.
            summed = jnp.sum(_weighted_difference(features, others, head), axis=(-2, -1))
            layers.append(summed / jnp.prod(extent, axis=-1))
        identical = jnp.all(x == y, axis=(1, 2, 3))
        result = total(layers)
        return result - jax.lax.stop_gradient(jnp.where(identical, result, jnp.zeros((), result.dtype)))

    return in_blocks(block, jnp.asarray(x), jnp.asarray(y), sizes, most=metric.max_batch)


@jax.jit
@automatic_axes("features")
def _pairwise_between(metric: Lpips, features: Features, others: Features) -> Float[Array, "n m"]:
    return squared_distances(_rows(metric, features), _flat(others))


def _flat(arrays: tuple[Float[Array, "n ..."], ...]) -> tuple[Float[Array, "n _"], ...]:
    return tuple(array.reshape(array.shape[0], -1) for array in arrays)


def _rows(metric: Lpips, features: Features, images: Float[Array, "n _"] | None = None) -> Rows:
    """Features, weighted as a distance weighs them."""
    weights = tuple(
        jnp.tile(head.astype(feature.dtype) / float(np.prod(feature.shape[1:3])), int(np.prod(feature.shape[1:3])))
        for feature, head in zip(features, _parameters(metric)["heads"], strict=True)
    )
    return prepared(_flat(features), weights, images)


def _accumulator_dtype(metric: Lpips) -> DTypeLike:
    """What images, norms, differences and sums are computed in."""
    return jnp.float64 if metric.dtype == "float64" else jnp.float32


def _scaled(metric: Lpips, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """Images as the network expects them."""
    images = to_symmetric(images, value_range, _accumulator_dtype(metric))
    if metric.version == "0.0":
        return images
    # What the network expects of images in [0, 1], for those in [-1, 1].
    scaling = metric.backbone.scaling
    constants = 2 * np.array([[[scaling.mean]]]) - 1, 2 * np.array([[[scaling.deviation]]])
    shift, scale = (constant.astype(np.float32).astype(images.dtype) for constant in constants)
    return (images - shift) / scale


def _parameters(metric: Lpips) -> Parameters:
    return jax.lax.stop_gradient(metric.parameters) if metric.frozen else metric.parameters


Tap = tuple[Float[Array, "n i j c"], Int[Array, "n 2"] | None]
"""Unit-normalised activations, and their sizes where the batch has images of several."""


def _activations(
    metric: Lpips, x: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None, dropout: Dropout | None = None
) -> list[Tap]:
    """The taps of scaled images; sizes and dropout need a backbone that runs in stages."""
    backbone, computation = metric.backbone, Computation(metric.dtype, metric.precision, metric.forward_mode)
    kernels, floors = _parameters(metric)["backbone"], _floors(metric)
    recompute = jax.checkpoint if metric.forward_mode else recomputed
    x, dtype = x.astype(metric.dtype), _accumulator_dtype(metric)
    if not isinstance(backbone, StagedBackbone):
        if sizes is not None or dropout is not None:
            raise MetricError(
                f"{metric.name} has a backbone without stages ({backbone.name}), so images in a batch must be of one "
                "size, and there is no dropout"
            )

        def whole(parameters: Any, x: Array) -> list[Array]:
            kernels, floors = parameters
            activations = backbone.taps(kernels, x, computation)
            return [
                unit_vectors(each.astype(_accumulator_dtype(metric)), floor)
                for each, floor in zip(activations, floors, strict=True)
            ]

        units = (recompute(whole) if metric.remat else whole)((kernels, floors), x)
        return [(unit, None) for unit in units]

    def stage(layers: Any, sizes: Array | None, parameters: Any, x: Array) -> tuple[Array, Array, Array | None]:
        kernels, floor, dropout = parameters
        activation, sizes = backbone.stage(layers, kernels, x, computation=computation, sizes=sizes, dropout=dropout)
        return activation, unit_vectors(activation.astype(dtype), floor), sizes

    taps = []
    for layers, floor in zip(backbone.stages(), floors, strict=True):
        compute = functools.partial(stage, layers, sizes)
        x, unit, sizes = (recompute(compute) if metric.remat and sizes is None else compute)(
            (kernels, floor, dropout), x
        )
        taps.append((unit, sizes))
    return taps


def _floors(metric: Lpips) -> tuple[Float[Array, ""] | None, ...]:
    """The floor of each tap; None where the metric has none."""
    taps = len(metric.backbone.channels)
    floors = _parameters(metric).get("floors")
    if floors is None:
        return (None,) * taps
    shapes = [jnp.shape(floor) for floor in floors]
    if shapes != [()] * taps:
        # A longer one would broadcast, and damp each channel or position differently.
        raise MetricError(f"{metric.name} has {taps} taps and needs one floor of shape () for each, got {shapes}")
    return tuple(jnp.asarray(floor, _accumulator_dtype(metric)) for floor in floors)


def _weighted_difference(
    features: Float[Array, "... h w c"], others: Float[Array, "... h w c"], head: Float[Array, " c"]
) -> Float[Array, "... h w"]:
    weights = jnp.expand_dims(head.astype(features.dtype), range(max(features.ndim, others.ndim) - 1))
    return jnp.sum(jnp.square(features - others) * weights, axis=-1)


def _weighted_mean(values: Float[Array, "... i j"], mask: Bool[Array, "... h w"]) -> Float[Array, "..."]:
    """The mean over positions, weighted by the share of each position's area that the mask covers; 0 for no area."""
    rows, columns = (
        _overlaps(here, there, values.dtype) for here, there in zip(values.shape[-2:], mask.shape[-2:], strict=True)
    )
    weights = jnp.einsum("ih,...hw,jw->...ij", rows, mask.astype(values.dtype), columns, precision="highest")
    area = jnp.sum(weights, axis=(-2, -1))
    summed = jnp.sum(values * weights, axis=(-2, -1))
    return jnp.where(area > 0, summed / jnp.where(area > 0, area, 1), 0)


def _overlaps(here: int, there: int, dtype: DTypeLike) -> Float[np.ndarray, "here there"]:
    """The share of each of `here` equal parts of an axis that each of `there` equal parts covers."""
    ends = np.arange(here)[:, None] * there / here
    covered = np.minimum(ends + there / here, np.arange(there) + 1) - np.maximum(ends, np.arange(there))
    return (np.maximum(covered, 0) * here / there).astype(dtype)


def total(terms: list[Float[Array, "..."]]) -> Float[Array, "..."]:
    """Sum in a fixed order, so that every path to a distance rounds alike."""
    return functools.reduce(jnp.add, terms)

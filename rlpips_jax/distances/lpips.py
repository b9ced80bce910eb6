"""LPIPS: the distance between images as the weighted difference of a network's activations.

With image x in [-1, 1], f_l the activations at tap l, and h = f / (|f| + 1e-10) their unit vectors over channels,

    d(x, y) = sum_l mean_ij sum_c w_lc (h_l(x)_ijc - h_l(y)_ijc)^2,        w >= 0

(Zhang et al. 2018). This h gives a faint activation the same length as a strong one, and so amplifies noise in flat
regions. A metric may have floors c_l >= 0, one per tap and learned like w, that damp faint activations:

    h = f / max(sqrt(|f|^2 + c_l^2), 1e-10)

At c_l = 0 the derivative by c_l is 0, so learning starts above 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlpips_jax.backbones import ALEX, SQUEEZE, SQUEEZE_FLOOR, TINY, TINY_WIDE, VGG, Backbone, Dropout
from rlpips_jax.distances.family import Family
from rlpips_jax.distances.network import (
    Features,
    NetworkMetric,
    Tap,
    Weights,
    accumulator_dtype,
    activations,
    as_arrays,
    parameters_of,
    position_mean,
)
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.errors import MetricError
from rlpips_jax.files.official import Official
from rlpips_jax.images import Images, ValueRange, to_symmetric
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.ops.squared_distances import Rows, prepared, squared_distances
from rlpips_jax.ops.total import total
from rlpips_jax.ops.unit_vectors import unit_vectors
from rlpips_jax.weights.parameters import Parameters, with_heads
from rlpips_jax.weights.registry import BACKBONE_PARTS, Part, Recipe

DEFAULT = "lpips-alex"
AnyLpips = TypeVar("AnyLpips", bound=NetworkMetric)


@dataclass(frozen=True, eq=False, repr=False)
class Lpips(NetworkMetric):
    """LPIPS over a backbone. Made by `rlpips_jax.load`; `NetworkMetric` has the other attributes.

    Features are unit-normalised activations (shorter where floors damp them).

    Attributes:
        parameters: `{"backbone": {...}, "heads": (w_0, w_1, ...)}`, float32; the leaves of the pytree. With
            `"floors": (c_0, c_1, ...)` beside them, each of shape `()`, faint activations are damped.
        version: LPIPS version: "0.1" scales the channels of the image first, "0.0" does not.
    """

    version: str = "0.1"

    def map_between(self, features: Features, others: Features, *, height: int, width: int) -> Float[Array, "... h w"]:
        """The map of each tap, enlarged bilinearly to this size, summed. Other arguments as in `between`."""
        self._check_pair(features, others)
        maps = differences(self, features, others)
        return total([resize_bilinear(each, height, width) for each in maps])

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
            for feature, head in zip(features, parameters_of(self)["heads"], strict=True)
        )

    def statistics_between(
        self, features: Features, others: Features, cores: Sequence[Float[Array, "..."]]
    ) -> tuple[Array, Array]:
        """Of parts of the images: sums of each tap's differences over the positions that count, and their numbers."""
        self._check_pair(features, others)
        sums = [
            jnp.sum(difference * core, axis=(-2, -1))
            for difference, core in zip(differences(self, features, others), cores, strict=True)
        ]
        counts = [jnp.sum(core, axis=(-2, -1)) for core in cores]
        return jnp.stack(sums, axis=-1), jnp.stack(counts, axis=-1)

    def layers_of(self, statistics: tuple[Array, Array]) -> Float[Array, " layers"]:
        """The share of each tap in a pair's distance, from the statistics of all parts along the first axis."""
        sums, counts = statistics
        return jnp.sum(sums, axis=0) / jnp.sum(counts, axis=0)

    def rows(self, features: Features, images: Images, value_range: ValueRange) -> Rows:
        """Features of a batch, prepared for `rows_between`; `images` are what they were computed from."""
        return _rows(self, features, _flat((self._prepared(images, value_range),))[0])

    def rows_between(
        self, rows: Rows, others: Features, images: Images, value_range: ValueRange
    ) -> Float[Array, "n m"]:
        """Distances of prepared rows from the features of other images; exactly 0 for equal images."""
        return squared_distances(rows, _flat(others), _flat((self._prepared(images, value_range),))[0])

    @property
    def _details(self) -> str:
        floors = f" floors={len(self.parameters['floors'])}" if self.parameters.get("floors") else ""
        return f"{floors} v{self.version}"

    def _prepared(self, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
        if self.version == "0.0":
            return to_symmetric(images, value_range, accumulator_dtype(self))
        return scaled(self, images, value_range)

    def _taps(self, x: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None, dropout: Dropout | None) -> list[Tap]:
        floors = [(floor,) for floor in floors_of(self)]
        return activations(self, x, unit_vectors, arguments=floors, sizes=sizes, dropout=dropout)

    def _parts(self, features: Features, others: Features, weights: Weights) -> list[Float[Array, "..."]]:
        return [
            position_mean(difference[..., None], each)[..., 0]
            for difference, each in zip(differences(self, features, others), weights, strict=True)
        ]


register_metric(Lpips)


def build(
    recipe: Recipe, parameters: Parameters, options: Options, *, kind: Callable[..., AnyLpips] = Lpips
) -> AnyLpips:
    """An LPIPS of a recipe and its parameters as they were read; heads that are absent are 1.

    Args:
        recipe: name, network and version.
        parameters: backbone, and heads and floors where there are any.
        options: how it is to be computed.
        kind: the class of the metric.
    """
    backbone = recipe.backbone
    if options.unweighted or "heads" not in parameters:
        parameters = parameters | {"heads": tuple(np.ones(channels, np.float32) for channels in backbone.channels)}
    name = (
        f"{recipe.name} (unweighted)"
        if options.unweighted and any("heads" in part.holds for part in recipe.parts)
        else recipe.name
    )
    return kind(as_arrays(parameters), name, backbone, **recipe.settings, **options.of_network)


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


def heads_part(name: str, backbone: Backbone, parameters_sha256: str | None, official: Official | None = None) -> Part:
    """The file of heads over a backbone; those that were trained with it bring it along."""
    return Part(name, with_heads(backbone), ("heads",), official, parameters_sha256)


HEADS = {
    part.name: part
    for part in (
        heads_part(
            "lpips-alex",
            ALEX,
            "8095cdf0f9e7f1876f5b02bdf5ee04cd22d3ad5a73b331d880848e28962c0beb",
            _official("v0.1/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", 6_009),
        ),
        heads_part(
            "lpips-vgg",
            VGG,
            "726d4a4d8c0114694c03dd6b738c9ef340a2af8b9932b115054b59f4f73e4353",
            _official("v0.1/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", 7_289),
        ),
        heads_part(
            "lpips-squeeze",
            SQUEEZE,
            "024fb0cf64cc0858c0272ba61a2a1910d4ee57d4c3463a3304d219eb41f58059",
            _official("v0.1/squeeze.pth", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76", 10_811),
        ),
        heads_part(
            "lpips-alex@0.0",
            ALEX,
            "30e4be97f9b7c979133fcc47f4eab3b73fe6b306fa266a10e7a945496ce68dbc",
            _official("v0.0/alex.pth", "18720f55913d0af89042f13faa7e536a6ce1444a0914e6db9461355ece1e8cd5", 5_455),
        ),
        heads_part(
            "lpips-vgg@0.0",
            VGG,
            "791fa3759e00c92d1993df8bd9c2f47407545d7f46faa4ba5dda604421640b2a",
            _official("v0.0/vgg.pth", "b9e4236260c3dd988fc79d2a48d645d885afcbb21f9fd595e6744cf7419b582c", 6_735),
        ),
        heads_part(
            "lpips-squeeze@0.0",
            SQUEEZE,
            "70ae8f51c90dc027ea2d7ab714ea707c618396567f35c01d9b3dd556c24a2ea0",
            _official("v0.0/squeeze.pth", "c27abd3a0145541baa50990817df58d3759c3f8154949f42af3b59b4e042d0bf", 10_057),
        ),
        heads_part(
            "lpips-squeeze@elpips",
            SQUEEZE_FLOOR,
            "6ecfaa90ef8a9b883b33fe332c529cf111b82fd0c069072633a4997b895092c7",
            elpips_heads("squeeze.npy", "9cf7e036dbcac9e8134b45641e5efd32c5e97681f7c3b08b911ab3c78236a4b9", 13_135),
        ),
        heads_part(
            "lpips-vgg@elpips",
            VGG,
            "343a2cae3b12c7c1bc76495dd09842d8f6de217de21305646212bce1dd5731a8",
            elpips_heads("vgg_maxpool.npy", "0466232a296381ec27a580a1e8977dd8bc3bd552f36644b03de41189a8afc03e", 8_542),
        ),
        heads_part("lpips-tiny", TINY, "3564a5abe57b033adbbe288fb55929c1a30316cb56f560442cd1b166ee66045a"),
        heads_part("rlpips-alex", ALEX, "d3d81b4f2894bd64ca96f3425c7b4166ef372b40191b3cf4b913249565ec9192"),
        heads_part("rlpips-vgg", VGG, "8be12ff39e0db5e91ea951600d9aac516153bafb4c578054012c51cc2137bab8"),
        heads_part("rlpips-squeeze", SQUEEZE, "3187a985ea2ab4d5a9c340ea7d828669293c0c4dd2bc6b5d3d48ca6a8313e711"),
        heads_part("rlpips-squeeze@1", SQUEEZE, "eb75c4c5dd5a71521636052f285bb0464e269890acb1635ed9004f11e0b7f5aa"),
        heads_part("rlpips-tiny", TINY_WIDE, "3c95db28ea0ee47a3e9b9d5e95d0e37e823ee3e262acecf6b8c6132437d0f455"),
        heads_part("rlpips-tiny@1", TINY, "c39a6c4138a70944b19d8d08e63261f96cabcc61e9d0b387bf49f0026d280e76"),
    )
}
"""The heads of LPIPS and R-LPIPS by name."""


def recipe(name: str, heads: Part | None, backbone: Backbone, *, version: str = "0.1") -> Recipe:
    """A metric over a backbone, with heads or without; the backbone's own file is read unless the heads bring one."""
    parts = tuple(part for part in (heads, BACKBONE_PARTS.get(backbone.name)) if part)
    return Recipe(name, with_heads(backbone), parts, {"version": version})


def baselines(backbone: Backbone) -> dict[str, Recipe]:
    """The metrics without heads over a backbone that has a file of its own, by name."""
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
        for feature, head in zip(features, parameters_of(metric)["heads"], strict=True)
    )
    return prepared(_flat(features), weights, images)


def scaled(metric: NetworkMetric, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """Images as version 0.1 puts them into the network: what that expects of those in [0, 1], for those in [-1, 1]."""
    images = to_symmetric(images, value_range, accumulator_dtype(metric))
    scaling = metric.backbone.scaling
    constants = 2 * np.array([[[scaling.mean]]]) - 1, 2 * np.array([[[scaling.deviation]]])
    shift, scale = (constant.astype(np.float32).astype(images.dtype) for constant in constants)
    return (images - shift) / scale


def differences(metric: NetworkMetric, features: Features, others: Features) -> list[Float[Array, "... h w"]]:
    """sum_c w_lc (f_lc - g_lc)^2 per tap and position, of unit-normalised activations."""
    heads = parameters_of(metric)["heads"]
    return [_weighted_difference(*each) for each in zip(features, others, heads, strict=True)]


def floors_of(metric: NetworkMetric) -> tuple[Float[Array, ""] | None, ...]:
    """The floor of each tap; None where the metric has none."""
    taps = len(metric.backbone.channels)
    floors = parameters_of(metric).get("floors")
    if floors is None:
        return (None,) * taps
    shapes = [jnp.shape(floor) for floor in floors]
    if shapes != [()] * taps:
        # A longer one would broadcast, and damp each channel or position differently.
        raise MetricError(f"{metric.name} has {taps} taps and needs one floor of shape () for each, got {shapes}")
    return tuple(jnp.asarray(floor, accumulator_dtype(metric)) for floor in floors)


def _weighted_difference(
    features: Float[Array, "... h w c"], others: Float[Array, "... h w c"], head: Float[Array, " c"]
) -> Float[Array, "... h w"]:
    weights = jnp.expand_dims(head.astype(features.dtype), range(max(features.ndim, others.ndim) - 1))
    return jnp.sum(jnp.square(features - others) * weights, axis=-1)

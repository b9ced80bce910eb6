"""DISTS: how alike images are in structure and texture, by the statistics of a network's activations.

The taps are the image itself, in [0, 1], and five activations of VGG16, whose pooling is sqrt(blur(x^2) + 1e-12).
With m, v and c the mean, variance and covariance of a channel over positions,

    d(x, y) = 1 - sum_k [alpha_k (2 m_x m_y + C) / (m_x^2 + m_y^2 + C) + beta_k (2 c_xy + C) / (v_x + v_y + C)]

over all channels k of all taps, where C = 1e-6 and all alpha and beta >= 0 sum to 1 (Ding, Ma, Wang, Simoncelli 2020).
As they sum to 1, the 1 can be shared out among the channels, and every share is a fraction that is 0 for equal images:

    d(x, y) = sum_k [alpha_k (m_x - m_y)^2 / (m_x^2 + m_y^2 + C) + beta_k v_(x - y) / (v_x + v_y + C)]

So it is computed, without the loss of digits of a difference from 1, and so the share of each tap is defined.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rlpips_jax.backbones import VGG, Backbone, Dropout, Locality, Reach
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
from rlpips_jax.files.official import Official
from rlpips_jax.images import Images, ValueRange, to_unit
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.close_pairs import close_again
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.pooling import Pooling
from rlpips_jax.ops.total import total
from rlpips_jax.weights.parameters import Layout, Parameters, Weight
from rlpips_jax.weights.registry import BACKBONE_PARTS, Part, Recipe

C = 1e-6

CLOSE = 0.02
"""Distances below this lose digits as matrix products, and are computed again."""

VGG_L2 = replace(VGG, pooling=Pooling("l2", 3, 2))
"""VGG16 with L2 pooling."""


class Moments(NamedTuple):
    """Means and variances of a tap's channels over a number of positions, in two images."""

    number: Float[Array, "..."]
    mean: Float[Array, "... c"]
    other_mean: Float[Array, "... c"]
    variance: Float[Array, "... c"]
    other_variance: Float[Array, "... c"]
    variance_of_difference: Float[Array, "... c"]


class Centred(NamedTuple):
    """A tap's channels in several images: means, variances, and activations less the mean, laid out for products."""

    mean: Float[Array, "n c"]
    variance: Float[Array, "n c"]
    activations: Float[Array, "c n p"]


class Rows(NamedTuple):
    """Images prepared for comparison: their pixels, for equal ones are at 0, and all taps."""

    pixels: Float[Array, "n k"]
    taps: tuple[Centred, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Dists(NetworkMetric):
    """DISTS over a backbone. Made by `rlpips_jax.load`; `NetworkMetric` has the other attributes.

    Features are the image in [0, 1] and the activations. A map of where images differ does not exist: the statistics of
    a channel are over all positions, and no position has a share of its own. A mask weights these statistics.

    Attributes:
        parameters: `{"backbone": {...}, "alpha": (k,), "beta": (k,)}`, float32, for the k channels of all taps, the
            three of the image first; the leaves of the pytree.
    """

    @property
    def locality(self) -> Locality | None:
        """On which part of the image each array of features depends; the first is the image itself."""
        of_network = super().locality
        if of_network is None:
            return None
        return Locality((Reach(1, 0, 0), *of_network.reaches), of_network.activations + 3)

    def statistics_between(self, features: Features, others: Features, cores: Weights) -> tuple[Moments, ...]:
        """Of parts of the images: the moments of each tap's channels over the positions that count."""
        self._check_pair(features, others)
        return tuple(_moments(*each) for each in zip(features, others, cores, strict=True))

    def layers_of(self, statistics: tuple[Moments, ...]) -> Float[Array, " layers"]:
        """The share of each tap in a pair's distance, from the statistics of all parts along the first axis."""
        weights = self._alphas_and_betas(statistics[0].mean.dtype)
        return jnp.stack([_unlike(_merged(tap), *each) for tap, each in zip(statistics, weights, strict=True)])

    def pairwise_between(self, features: Features, others: Features) -> Float[Array, "n m"]:
        """Distances of all images of one set to all of another, by matrix products; exactly 0 for equal images."""
        self._check_pair(features, others)
        return _pairwise_between(self, features, others)

    def rows(self, features: Features, images: Images, value_range: ValueRange) -> Rows:
        """Features of a batch, prepared for `rows_between`."""
        return _rows(features)

    def rows_between(
        self, rows: Rows, others: Features, images: Images, value_range: ValueRange
    ) -> Float[Array, "n m"]:
        """Distances of prepared rows from the features of other images; exactly 0 for equal images."""
        return _matrix(self, rows, _rows(others))

    @property
    def _channels(self) -> tuple[int, ...]:
        return (3, *self.backbone.channels)

    def _prepared(self, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
        return to_unit(images, value_range, accumulator_dtype(self))

    def _taps(self, x: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None, dropout: Dropout | None) -> list[Tap]:
        shift, scale = (
            np.asarray(each, np.float32).astype(x.dtype)
            for each in (self.backbone.scaling.mean, self.backbone.scaling.deviation)
        )
        scaled = (x - shift) / scale
        if sizes is not None:
            scaled = inside(scaled, sizes)
        return [(x, sizes), *activations(self, scaled, sizes=sizes, dropout=dropout)]

    def _parts(self, features: Features, others: Features, weights: Weights) -> list[Float[Array, "..."]]:
        both = self._alphas_and_betas(features[0].dtype)
        moments = (_moments(*each) for each in zip(features, others, weights, strict=True))
        return [_unlike(tap, *each) for tap, each in zip(moments, both, strict=True)]

    def _alphas_and_betas(self, dtype: DTypeLike) -> Iterator[tuple[Float[Array, " c"], Float[Array, " c"]]]:
        """The weights of each tap's channels, which sum to 1."""
        parameters = parameters_of(self)
        both = [parameters[name].astype(dtype) for name in ("alpha", "beta")]
        total = both[0].sum() + both[1].sum()
        ends = np.cumsum(self._channels)[:-1].tolist()
        return zip(*(jnp.split(each / total, ends) for each in both), strict=True)


register_metric(Dists)


@jax.jit
@automatic_axes("features")
def _pairwise_between(metric: Dists, features: Features, others: Features) -> Float[Array, "n m"]:
    return _matrix(metric, _rows(features), _rows(others))


def _rows(features: Features) -> Rows:
    taps = []
    for feature in features:
        flat = feature.reshape(len(feature), -1, feature.shape[-1])
        mean = jnp.mean(flat, axis=1)
        centred = jnp.transpose(flat - mean[:, None], (2, 0, 1))
        taps.append(Centred(mean, jnp.mean(jnp.square(centred), axis=2).T, centred))
    return Rows(features[0].reshape(len(features[0]), -1), tuple(taps))


def _matrix(metric: Dists, rows: Rows, columns: Rows) -> Float[Array, "n m"]:
    """All distances by matrix products, of which those that are small are computed again from differences."""
    weights = tuple(metric._alphas_and_betas(rows.pixels.dtype))
    each_row, each_column = np.s_[:, None], np.s_[None]

    def by_products(f: Centred, g: Centred) -> Float[Array, "n m c"]:
        products = jax.lax.dot_general(f.activations, g.activations, (((2,), (2,)), ((0,), (0,))), precision="highest")
        variances = f.variance[each_row] + g.variance[each_column]
        return variances - 2 * jnp.moveaxis(products, 0, -1) / f.activations.shape[-1]

    def direct(i: Int[Array, " k"], j: Int[Array, " k"]) -> Float[Array, " k"]:
        def by_differences(f: Centred, g: Centred) -> Float[Array, "k c"]:
            return jnp.mean(jnp.square(f.activations[:, i] - g.activations[:, j]), axis=-1).T

        fixed, others, their_weights = jax.lax.stop_gradient((rows, columns, weights))
        i = jnp.minimum(i, len(fixed.pixels) - 1)
        found = _of_pairs(fixed, others, their_weights, i, j, by_differences)
        return jnp.where(jnp.all(fixed.pixels[i] == others.pixels[j], axis=-1), 0, found)

    matrix = _of_pairs(rows, columns, weights, each_row, each_column, by_products)
    length = sum(tap.activations[:, 0].size for tap in rows.taps)
    return close_again(matrix, matrix < CLOSE, direct, length=length)


def _of_pairs(
    rows: Rows,
    columns: Rows,
    weights: Sequence[tuple[Array, Array]],
    i: Any,
    j: Any,
    of_difference: Callable[[Centred, Centred], Float[Array, "... c"]],
) -> Float[Array, "..."]:
    """Distances of the rows at `i` from the columns at `j`, whose differences have these variances."""
    parts = []
    for f, g, (alpha, beta) in zip(rows.taps, columns.taps, weights, strict=True):
        number = jnp.asarray(f.activations.shape[-1], f.mean.dtype)
        moments = Moments(number, f.mean[i], g.mean[j], f.variance[i], g.variance[j], of_difference(f, g))
        parts.append(_unlike(moments, alpha, beta))
    return total(parts)


def _moments(
    f: Float[Array, "... h w c"], g: Float[Array, "... h w c"], weights: Float[Array, "... h w"] | None
) -> Moments:
    """Means and variances over positions."""
    means = [position_mean(each, weights) for each in (f, g)]
    f, g = (each - jnp.expand_dims(mean, (-3, -2)) for each, mean in zip((f, g), means, strict=True))
    variances = (position_mean(jnp.square(each), weights) for each in (f, g, f - g))
    count = jnp.asarray(f.shape[-3] * f.shape[-2], f.dtype) if weights is None else jnp.sum(weights, axis=(-2, -1))
    return Moments(count, *means, *variances)


def _merged(parts: Moments) -> Moments:
    """Those of all parts, along the first axis, together: a variance is that within parts and between them."""
    count = jnp.sum(parts.number, axis=0)
    share = (parts.number / count)[:, None]

    def mean(values: Float[Array, "parts c"]) -> Float[Array, " c"]:
        return jnp.sum(share * values, axis=0)

    def variance(within: Float[Array, "parts c"], means: Float[Array, "parts c"]) -> Float[Array, " c"]:
        return mean(within + jnp.square(means - mean(means)))

    return Moments(
        count,
        mean(parts.mean),
        mean(parts.other_mean),
        variance(parts.variance, parts.mean),
        variance(parts.other_variance, parts.other_mean),
        variance(parts.variance_of_difference, parts.mean - parts.other_mean),
    )


def _unlike(moments: Moments, alpha: Float[Array, " c"], beta: Float[Array, " c"]) -> Float[Array, "..."]:
    """The share of a tap in the distance."""
    _, mean, other_mean, variance, other_variance, of_difference = moments
    of_means = jnp.square(mean - other_mean) / (jnp.square(mean) + jnp.square(other_mean) + C)
    of_variances = of_difference / (variance + other_variance + C)
    return jnp.sum(alpha * of_means + beta * of_variances, axis=-1)


def layout(backbone: Backbone) -> Layout:
    """The parameters of DISTS over a network."""
    channels = 3 + sum(backbone.channels)
    return Layout(backbone, tuple(Weight(name, (channels,), name) for name in ("alpha", "beta")))


def build(recipe: Recipe, parameters: Parameters, options: Options) -> Dists:
    """DISTS of a recipe and its parameters as they were read; `unweighted` sets every alpha and beta to 1."""
    if options.unweighted:
        parameters = parameters | {name: np.ones_like(parameters[name]) for name in ("alpha", "beta")}
    name = f"{recipe.name} (unweighted)" if options.unweighted else recipe.name
    return Dists(as_arrays(parameters), name, recipe.backbone, **options.of_network)


OFFICIAL = Official(
    "dists/weights.pt",
    "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt",
    "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    12_288,
    "MIT",
    "Ding, Ma, Wang, Simoncelli: Image Quality Assessment: Unifying Structure and Texture Similarity, TPAMI 2020",
)

PART = Part(
    "dists",
    layout(VGG_L2),
    ("alpha", "beta"),
    OFFICIAL,
    "7ef0dd76afc3dbdf61e11b4d8f1d1e14e35cebd5901704da1a8dc43914044089",
)

FAMILY = Family({"dists": Recipe("dists", layout(VGG_L2), (PART, BACKBONE_PARTS["vgg"]))}, build, Dists)
"""DISTS."""

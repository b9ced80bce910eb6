"""The cosine distance of two images' embeddings, as R-CLIP and DreamSim's single models have it.

With the vector e of an image that a network gives, resized to the size that the network takes,

    d(x, y) = 1 - <e(x), e(y)> / (|e(x)| |e(y)|)  =  |u(x) - u(y)|^2 / 2,        u = e / (|e| + 1e-10)

of which the right side is computed: it is 0 for equal vectors and loses no digits near that. `centred` takes the mean
of its numbers away from e first, as DreamSim does (Fu et al. 2023; R-CLIP: Croce et al. 2024).
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.backbones import CLIP_VIT_B32, OPENCLIP_VIT_B32, Computation, EmbeddingBackbone
from rlpips_jax.distances.family import Family
from rlpips_jax.distances.network import ParameterMetric, accumulator_dtype, as_arrays, parameters_of
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.errors import MetricError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, to_unit
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import in_blocks
from rlpips_jax.ops.recomputation import recomputed
from rlpips_jax.ops.squared_distances import Rows, prepared, squared_distances
from rlpips_jax.ops.unit_vectors import unit_vectors
from rlpips_jax.weights.parameters import Parameters
from rlpips_jax.weights.registry import BACKBONE_PARTS, Recipe, backbone_part

Features = Float[Array, "... d"]
"""Embeddings of length 1."""


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(ParameterMetric):
    """The cosine distance of embeddings by a network. `ParameterMetric` has the other attributes.

    It has no layers, no map and no mask: an embedding is of the whole image.

    Attributes:
        backbone: the network, to whose size images are resized.
        centred: whether the mean of its numbers is taken away from an embedding.
    """

    backbone: EmbeddingBackbone
    centred: bool = False

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Features:
        """Embeddings of length 1, to compare one image with many by `between`.

        Args:
            images: `(..., h, w, 3)`, uint8 or floats in `value_range`; of any size, resized as a whole.
            value_range: black and white of floating-point images.

        Returns:
            `(..., d)`, float32 (float64 if the metric is).

        Raises:
            ImageError: the images break the convention of `rlpips_jax.images`.
        """
        value_range = check_value_range(value_range)
        (images,) = check_images(value_range, images=images, minimum_size=self.minimum_size, user=self.name)
        return _features(self, images, value_range=value_range)

    def between(self, features: Features, others: Features) -> Float[Array, "..."]:
        """Distances, from 0 to 2, between images whose embeddings are at hand; leading axes broadcast."""
        return jnp.sum(jnp.square(features - others), axis=-1) / 2

    def pairwise_between(self, features: Float[Array, "n d"], others: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Distances of all images of one set to all of another; exactly 0 only where embeddings are equal."""
        return squared_distances(_rows(features), (others,))

    def embedded(self, features: Features) -> Features:
        """Embeddings so scaled that the square of their Euclidean distance is `between`."""
        return features * np.sqrt(0.5).astype(features.dtype)

    def rows(self, features: Float[Array, "n d"], images: Images, value_range: ValueRange) -> Rows:
        """Embeddings of a batch, prepared for `rows_between`; `images` are what they were computed from."""
        return _rows(features, _values(self, images, value_range))

    def rows_between(
        self, rows: Rows, others: Float[Array, "m d"], images: Images, value_range: ValueRange
    ) -> Float[Array, "n m"]:
        """Distances of prepared rows from the embeddings of other images; exactly 0 for equal images."""
        return squared_distances(rows, (others,), _values(self, images, value_range))

    @property
    def minimum_size(self) -> int:
        """Smallest height and width of an image, in pixels: all are resized."""
        return 1

    @property
    def _details(self) -> str:
        return " centred" if self.centred else ""


register_metric(Embedding)


def build(recipe: Recipe, parameters: Parameters, options: Options) -> Embedding:
    """A metric of a recipe and its parameters as they were read.

    Raises:
        MetricError: `unweighted`, which is for heads.
    """
    if options.unweighted:
        raise MetricError(f"{recipe.name} compares embeddings and has no heads: leave out unweighted")
    assert isinstance(recipe.backbone, EmbeddingBackbone)
    return Embedding(as_arrays(parameters), recipe.name, recipe.backbone, **recipe.settings, **options.of_network)


DREAMSIM = (CLIP_VIT_B32, OPENCLIP_VIT_B32)
"""The networks of those of DreamSim's single models that are towers of CLIP."""


RECIPES = {
    name: Recipe(name, part.layout, (part,), {"centred": False})
    for name, part in BACKBONE_PARTS.items()
    if isinstance(part.backbone, EmbeddingBackbone)
}
"""Every metric of embeddings by name: as its network is called, or `dreamsim-{network}`."""

for _backbone in DREAMSIM:
    _part = backbone_part(_backbone, f"dreamsim-{_backbone.name}")
    RECIPES[_part.name] = Recipe(_part.name, _part.layout, (_part,), {"centred": True})

FAMILY = Family(RECIPES, build, Embedding)
"""Cosine distances of embeddings."""


@functools.partial(jax.jit, static_argnames="value_range")
@automatic_axes("images")
def _features(metric: Embedding, images: Images, *, value_range: ValueRange) -> Features:
    accumulator = accumulator_dtype(metric)
    computation = Computation(metric.dtype, metric.precision, metric.forward_mode)
    scaling = metric.backbone.scaling
    mean, deviation = (np.array(each, accumulator) for each in (scaling.mean, scaling.deviation))

    def embed(parameters: Any, x: Float[Array, "n h w 3"]) -> Features:
        embedding = metric.backbone.embedding(parameters, x, computation).astype(accumulator)
        if metric.centred:
            embedding = embedding - jnp.mean(embedding, axis=-1, keepdims=True)
        return unit_vectors(embedding)

    recompute = jax.checkpoint if metric.forward_mode else recomputed
    compute = recompute(embed) if metric.remat else embed

    def block(images: Images) -> Features:
        return compute(
            parameters_of(metric)["backbone"], (to_unit(images, value_range, accumulator) - mean) / deviation
        )

    leading = images.shape[:-3]
    features = in_blocks(block, jnp.asarray(images).reshape(-1, *images.shape[-3:]), most=metric.max_batch)
    return features.reshape(*leading, features.shape[-1])


def _values(metric: Embedding, images: Images, value_range: ValueRange) -> Float[Array, "n _"]:
    return to_unit(images, value_range, accumulator_dtype(metric)).reshape(images.shape[0], -1)


def _rows(features: Float[Array, "n d"], images: Float[Array, "n _"] | None = None) -> Rows:
    return prepared((features,), (jnp.full(features.shape[-1], 0.5, features.dtype),), images)

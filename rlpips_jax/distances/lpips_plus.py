"""LPIPS+: LPIPS whose differences count most where the reference image has the strongest activations.

With D_l(i, j) = sum_c w_lc (h_l(x)_ijc - h_l(y)_ijc)^2 as in LPIPS 0.1, and S_l the activations of the reference x at
the third tap (before they are normalised), summed over channels and resized bilinearly to the size of tap l,

    d(x, y) = sum_l [sum_ij S_l D_l / sum_ij S_l]

(pyiqa's `lpips+` and `lpips-vgg+`, of Chen et al. 2024). **It is not symmetric: the first image is the reference.**
Where S_l is 0 at every position, or at every one inside a mask, these count alike.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlpips_jax.backbones import Dropout
from rlpips_jax.distances import lpips
from rlpips_jax.distances.family import Family
from rlpips_jax.distances.network import (
    Features,
    NetworkMetric,
    Tap,
    Weights,
    activations,
    position_mean,
)
from rlpips_jax.distances.registration import register_metric
from rlpips_jax.images import Images, ValueRange
from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.ops.unit_vectors import unit_vectors
from rlpips_jax.weights.registry import Recipe

THIRD = 2


@dataclass(frozen=True, eq=False, repr=False)
class LpipsPlus(NetworkMetric):
    """LPIPS+ over a backbone. Made by `rlpips_jax.load`; `NetworkMetric` has the other attributes.

    Features are the activations. The first argument of `between` is the reference.

    Attributes:
        parameters: those of `Lpips`.
    """

    @property
    def can_pad(self) -> bool:
        """Never: how activations are resized depends on the size of each image."""
        return False

    def _prepared(self, images: Images, value_range: ValueRange) -> Float[Array, "n h w 3"]:
        return lpips.scaled(self, images, value_range)

    def _taps(self, x: Float[Array, "n h w 3"], sizes: Int[Array, "n 2"] | None, dropout: Dropout | None) -> list[Tap]:
        return activations(self, x, sizes=sizes, dropout=dropout)

    def _parts(self, features: Features, others: Features, weights: Weights) -> list[Float[Array, "..."]]:
        floors = lpips.floors_of(self)
        units, other_units = (
            tuple(unit_vectors(each, floor) for each, floor in zip(taps, floors, strict=True))
            for taps in (features, others)
        )
        strength = jnp.sum(features[THIRD], axis=-1)
        parts = []
        for difference, weight in zip(lpips.differences(self, units, other_units), weights, strict=True):
            alike = 1 if weight is None else weight
            counts = resize_bilinear(strength, *difference.shape[-2:]) * alike
            counts = jnp.where(jnp.any(counts > 0, axis=(-2, -1), keepdims=True), counts, alike)
            parts.append(position_mean(difference[..., None], counts)[..., 0])
        return parts


register_metric(LpipsPlus)

PLAIN = [lpips.RECIPES[name] for name in ("lpips-alex", "lpips-vgg")]
RECIPES = {
    name: Recipe(name, plain.layout, plain.parts) for plain in PLAIN if (name := plain.name.replace("lpips", "lpips+"))
}
"""Every LPIPS+ by name; parameters are those of LPIPS."""

FAMILY = Family(RECIPES, functools.partial(lpips.build, kind=LpipsPlus), LpipsPlus, symmetric=False)
"""LPIPS+."""

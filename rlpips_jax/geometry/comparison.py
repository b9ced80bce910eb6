"""Distances as descents need them: what can be known of images beforehand, and the distances that follow from it.

Of a metric that draws nothing, that is the features of images that do not move. A randomised one sees all images anew
in every step.
"""

import functools
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Features, Metric
from rlpips_jax.errors import GeometryError, ImageError
from rlpips_jax.geometry.arguments import check_count, checked_key, in_unit_range
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange
from rlpips_jax.loading import load

JUDGMENTS = 16
"""Draws over which the distances of a randomised metric are averaged in results."""

NOISE, JUDGMENT = 2**32 - 1, 2**32 - 2
"""Folded into a key, give keys for a noisy start and for judging. Steps fold in their number; `split` counts alike."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["metric"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Fixed:
    """A metric that gives the same number each time."""

    metric: Metric

    drawing = ""

    def prepared(self, images: Float[Array, "n h w 3"]) -> Features:
        """What is compared of images in [0, 1], with the same leading axis."""
        return self.metric.features(images, value_range=UNIT_RANGE)

    def between(self, x: Features, y: Features, key: Any) -> Float[Array, " n"]:
        """Distances of pairs; one is compared with all where its leading axis is 1."""
        return self.metric.between(x, y)

    def powers(self, x: Features, y: Features, key: Any, exponent: int | float) -> Float[Array, " n"]:
        """Powers of the distances of pairs."""
        return self.between(x, y, key) ** exponent


@functools.partial(jax.tree_util.register_dataclass, data_fields=["function"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Drawn:
    """A distance that may draw at random: `x, y, key -> (n,)`, a pytree."""

    function: Any

    drawing = "a randomised metric"
    """Who needs a key; "" if nobody does."""

    def prepared(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
        """The images."""
        return images

    def between(self, x: Float[Array, "_ h w 3"], y: Float[Array, "_ h w 3"], key: Any) -> Float[Array, " n"]:
        """Distances of pairs for one key; one is compared with all where its leading axis is 1."""
        x, y = jnp.broadcast_arrays(x, y)
        distances = self.function(x, y, key)
        if jnp.shape(distances) != x.shape[:1]:
            raise GeometryError(
                f"the distance of {x.shape[0]} pairs has shape {jnp.shape(distances)}; it must be a number for each "
                f"pair, {x.shape[:1]}: take no mean"
            )
        return distances

    def powers(
        self, x: Float[Array, "_ h w 3"], y: Float[Array, "_ h w 3"], key: Any, exponent: int | float
    ) -> Float[Array, " n"]:
        """Powers of the distances of pairs, without bias for the exponents 1 and 2.

        The square of an estimate is E[d]^2 + Var(d) in expectation; the product of two independent ones is E[d]^2.
        """
        if exponent != 2:
            return self.between(x, y, key) ** exponent
        keys = jax.random.split(key)
        if isinstance(self.function.func, _OfMetric):
            # Such a distance takes long to compile: once for both.
            one, other = jax.lax.map(lambda each: self.between(x, y, each), keys)
        else:
            # What a function does without its key is done once for both.
            one, other = (self.between(x, y, each) for each in keys)
        return one * other


@dataclass(frozen=True)
class _OfMetric:
    """The distance by a randomised metric as a function of a key."""

    samples: int

    def __call__(self, metric: Any, x: Any, y: Any, key: Any) -> Float[Array, " n"]:
        return cast(Any, distance)(x, y, metric, key=key, samples=self.samples)


Comparison = Fixed | Drawn


def comparison(metric: Any, samples: int) -> Comparison:
    """The distance by a `Metric`, a randomised metric, or a function `x, y, key -> (n,)` of images in [0, 1].

    Raises:
        GeometryError: it is none of these.
    """
    if isinstance(metric, Metric):
        return Fixed(metric)
    if callable(metric):
        return Drawn(metric if isinstance(metric, Partial) else Partial(metric))
    leaves = jax.tree.leaves(metric)
    if leaves and leaves[0] is not metric and not isinstance(metric, tuple | list | dict):
        return Drawn(Partial(_OfMetric(samples), metric))
    raise GeometryError(
        f"metric must come from rlpips_jax.load, or be a function (x, y, key) -> (n,), got {type(metric).__name__}"
    )


def compared_by(metric: Any, samples: Any, exponent: int | float = 1) -> tuple[Any, Comparison]:
    """The metric, and the distance by it, whose `powers` take so many samples, rounded up."""
    metric = load() if metric is None else metric
    samples = check_count("samples", samples)
    return metric, comparison(metric, -(-samples // 2) if exponent == 2 else samples)


def distances(
    x: Images, y: Images, metric: Any = None, *, key: Any = None, value_range: ValueRange = UNIT_RANGE
) -> Float[Array, " n"]:
    """Distances of pairs as results have them, by whatever gives distances here.

    Args:
        x: images `(n, h, w, 3)`, or one `(1, h, w, 3)` to compare with all, uint8 or floats in `value_range`.
        y: images of the same size.
        metric: as in `average`.
        key: of a randomised metric or a function, whose mean over 16 draws it is.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, differ in size, or are too small.
        GeometryError: a key is missing, or there is no such metric.
    """
    metric, compared = compared_by(metric, JUDGMENTS)
    x, y = (in_unit_range(images, value_range, name, metric) for name, images in (("x", x), ("y", y)))
    if x.ndim != 4 or y.ndim != 4 or x.shape[1:] != y.shape[1:] or (len(x) != len(y) and 1 not in (len(x), len(y))):
        raise ImageError(f"x and y must be batches (n, h, w, 3) of one size, got {x.shape} and {y.shape}")
    return judged(compared, x, y, checked_key(key, compared.drawing))


@jax.jit
def judged(
    compared: Comparison, x: Float[Array, "_ h w 3"], y: Float[Array, "_ h w 3"], key: Any
) -> Float[Array, " n"]:
    """Distances of pairs; of a randomised metric, which takes `JUDGMENTS` samples, or of as many calls of a function,
    the mean over draws that no step with this key has seen."""
    pair: tuple[Any, Any] = compared.prepared(x), compared.prepared(y)
    if not isinstance(compared, Drawn):
        return compared.between(*pair, key)
    key = jax.random.fold_in(key, JUDGMENT)
    if isinstance(compared.function.func, _OfMetric):
        # Its own samples balance each other, and say more than so many calls.
        return compared.between(*pair, key)
    keys = jax.random.split(key, JUDGMENTS)
    return jax.lax.map(lambda one: compared.between(*pair, one), keys).mean(axis=0)

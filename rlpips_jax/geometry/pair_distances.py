"""Distances of pairs as a descent needs them: what is computed once per image, and the distances that follow from it.

For a metric without random draws, these are the features of the images that do not move. A randomised metric, or a
function, is given the images again in every step.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PRNGKeyArray

from rlpips_jax.arguments import check_key
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Features, Metric, RandomMetric, is_random
from rlpips_jax.errors import GeometryError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, float_dtype
from rlpips_jax.loading import load

JUDGMENTS = 16
"""Draws over which the distances of a randomised metric are averaged in results."""

NOISE, JUDGMENT = 2**32 - 1, 2**32 - 2
"""Folded into a key for a noisy start and for the distances in results. Step n folds in n; `split` counts likewise."""

AnyDistance = Metric | RandomMetric | Callable[..., Array]
"""A metric, or a function `x, y, key -> (n,)` of images in [0, 1]."""

Batch = Float[Array, "_ h w 3"]
"""Images in [0, 1]."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["metric"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FixedMetricDistance:
    """The distance by a metric that gives the same number each time."""

    metric: Any
    draws = ""

    def prepared(self, images: Batch) -> Features:
        """The part of the computation that needs one image alone; the leading axis stays."""
        return self.metric.features(images, value_range=UNIT_RANGE)

    def between(self, x: Features, y: Features, key: Any) -> Float[Array, " n"]:
        """Distances of pairs; a leading axis of 1 is compared with all."""
        return self.metric.between(x, y)

    def powers(self, x: Features, y: Features, key: Any, exponent: int | float) -> Float[Array, " n"]:
        """Powers of the distances of pairs."""
        return self.between(x, y, key) ** exponent

    def judged(self, x: Features, y: Features, key: Any) -> Float[Array, " n"]:
        """The distances in results."""
        return self.between(x, y, key)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["metric"], meta_fields=["samples"])
@dataclass(frozen=True, eq=False)
class RandomMetricDistance:
    """The distance by a randomised metric, a mean over `samples` draws; methods as in `FixedMetricDistance`."""

    metric: Any
    samples: int
    draws = "a randomised metric"
    """What needs a key; "" if nothing does."""

    def prepared(self, images: Batch) -> Batch:
        return images

    def between(self, x: Batch, y: Batch, key: Any) -> Float[Array, " n"]:
        x, y = jnp.broadcast_arrays(x, y)
        return distance(x, y, self.metric, key=key, samples=self.samples)

    def powers(self, x: Batch, y: Batch, key: Any, exponent: int | float) -> Float[Array, " n"]:
        """Without bias for the exponents 1 and 2.

        The square of an estimate is E[d]^2 + Var(d) in expectation; the product of two independent ones is E[d]^2.
        """
        if exponent != 2:
            return self.between(x, y, key) ** exponent
        # One call for both keys, as such a distance takes long to compile.
        one, other = jax.lax.map(lambda each: self.between(x, y, each), jax.random.split(key))
        return one * other

    def judged(self, x: Batch, y: Batch, key: Any) -> Float[Array, " n"]:
        return replace(self, samples=JUDGMENTS).between(x, y, key)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["function"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FunctionDistance:
    """The distance by a function `x, y, key -> (n,)`, a pytree; methods as in `FixedMetricDistance`."""

    function: Any
    draws = "a randomised metric"

    def prepared(self, images: Batch) -> Batch:
        return images

    def between(self, x: Batch, y: Batch, key: Any) -> Float[Array, " n"]:
        x, y = jnp.broadcast_arrays(x, y)
        distances = self.function(x, y, key)
        if jnp.shape(distances) != x.shape[:1]:
            raise GeometryError(
                f"the distance of {x.shape[0]} pairs has shape {jnp.shape(distances)}; it must be a number for each "
                f"pair, {x.shape[:1]}: take no mean"
            )
        return distances

    def powers(self, x: Batch, y: Batch, key: Any, exponent: int | float) -> Float[Array, " n"]:
        """Without bias for the exponents 1 and 2, as in `RandomMetricDistance`."""
        if exponent != 2:
            return self.between(x, y, key) ** exponent
        # In one program the compiler shares the part that does not depend on the key.
        one, other = (self.between(x, y, each) for each in jax.random.split(key))
        return one * other

    def judged(self, x: Batch, y: Batch, key: Any) -> Float[Array, " n"]:
        keys = jax.random.split(key, JUDGMENTS)
        return jax.lax.map(lambda one: self.between(x, y, one), keys).mean(axis=0)


PairDistance = FixedMetricDistance | RandomMetricDistance | FunctionDistance


def pair_distance(metric: AnyDistance | None, samples: int = 1, exponent: int | float = 1) -> tuple[Any, PairDistance]:
    """The metric, by default "lpips-alex", and its distance of pairs.

    Args:
        metric: as in `average`.
        samples: draws of a randomised metric in `powers` of this exponent.
        exponent: the squares take two halves of the samples, rounded up.

    Raises:
        GeometryError: it is neither a metric nor a function.
    """
    given: Any = load() if metric is None else metric
    if is_random(given):
        return given, RandomMetricDistance(given, -(-samples // 2) if exponent == 2 else samples)
    if isinstance(given, Metric):
        return given, FixedMetricDistance(given)
    if callable(given):
        return given, FunctionDistance(given if isinstance(given, Partial) else Partial(given))
    raise GeometryError(
        f"metric must come from rlpips_jax.load, have its members (rlpips_jax.Metric), or be a function "
        f"(x, y, key) -> (n,), got {type(given).__name__}"
    )


def distances(
    x: Images,
    y: Images,
    metric: AnyDistance | None = None,
    *,
    key: PRNGKeyArray | None = None,
    value_range: ValueRange = UNIT_RANGE,
) -> Float[Array, " n"]:
    """Distances of pairs as `average` and `geodesic` report them.

    Args:
        x: images `(n, h, w, 3)`, or one `(1, h, w, 3)` to compare with all, uint8 or floats in `value_range`.
        y: images of the same size.
        metric: as in `average`.
        key: for a randomised metric or a function; the distance is a mean over 16 draws.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, differ in size, or are too small.
        GeometryError: a key is missing, or the metric is neither a metric nor a function.
    """
    metric, measured = pair_distance(metric)
    x, y = (unit_range(images, value_range, name, metric) for name, images in (("x", x), ("y", y)))
    if x.ndim != 4 or y.ndim != 4 or x.shape[1:] != y.shape[1:] or (len(x) != len(y) and 1 not in (len(x), len(y))):
        raise ImageError(f"x and y must be batches (n, h, w, 3) of one size, got {x.shape} and {y.shape}")
    return judged(measured, x, y, needed_key(key, measured.draws))


@jax.jit
def judged(measured: PairDistance, x: Batch, y: Batch, key: Any) -> Float[Array, " n"]:
    """Distances in results; random ones are means over draws that no step with this key has seen."""
    pair: tuple[Any, Any] = measured.prepared(x), measured.prepared(y)
    return measured.judged(*pair, jax.random.fold_in(key, JUDGMENT))


def needed_key(key: PRNGKeyArray | None, draws: str) -> Key[Array, ""]:
    """The key; an arbitrary one if nothing draws.

    Raises:
        GeometryError: it is needed, and missing or not a key.
    """
    return jax.random.key(0) if key is None and not draws else check_key(draws or "this", key, error=GeometryError)


def checked(
    images: Images, value_range: ValueRange, name: str, metric: AnyDistance | None = None
) -> Array | np.ndarray:
    """Images as an array with their values untouched.

    Raises:
        ImageError: they break the convention of `rlpips_jax.images`, or are too small for the metric.
    """
    arguments: dict[str, Any] = {name: images}
    if (minimum := getattr(metric, "minimum_size", None)) is not None:
        arguments |= {"minimum_size": minimum, "user": getattr(metric, "name", "this metric")}
    return check_images(check_value_range(value_range), **arguments)[0]


def unit_range(
    images: Images, value_range: ValueRange, name: str, metric: AnyDistance | None = None
) -> Float[Array, "..."]:
    """Images in [0, 1], after `checked`."""
    black, white = check_value_range(value_range)
    array = jnp.asarray(checked(images, value_range, name, metric))
    if array.dtype == jnp.uint8:
        return array.astype(jnp.float32) / 255
    array = array.astype(float_dtype(array))
    return jnp.clip((array - black) / (white - black), 0, 1)


def from_unit_range(images: Float[Array, "..."], value_range: ValueRange) -> Float[Array, "..."]:
    """Images in [0, 1] in the range of the user."""
    black, white = check_value_range(value_range)
    return jnp.clip(black + images * (white - black), black, white)

"""A perceptual bound: images within a perceptual distance of their originals, and how to get there.

The distance is the square root of a metric, that is the Euclidean distance of embeddings,

    sqrt(d(x, y)) = |phi(x) - phi(y)|,        phi(x) = (sqrt(w_lc / (h_l w_l)) h_l(x)_ijc)_lijc

with the unit-normalised activations h_l and the weights w of the metric (Laidlaw et al., "Perceptual adversarial
robustness", 2021, where all weights are 1). It has a slope, |J v| along v with J the Jacobian of phi, where the metric
itself is flat: at the original.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import as_floats, radius_of
from rlpips_jax.distances.lpips import Features, Metric
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

OVERSHOOT = 0.01
"""How far below the bound Newton's method aims, as a share of it: towards the bound itself it never gets within."""
NEWTON_STEPS = 10
BISECTION_STEPS = 12
NOISE = 0.01
"""Standard deviation of the noise that attacks start from, as a share of the range of values."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[*AttackResult.__dataclass_fields__, "perceptual"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class PerceptualAttackResult(AttackResult):
    """What an attack within a perceptual bound reached.

    Attributes:
        perceptual: `(n, ...)`, the perceptual distance of each adversarial image from its original, the square root of
            the metric; within the bound.
    """

    perceptual: Float[Array, "n ..."]


def perceptual_distance(metric: Metric, features: Features, others: Features) -> Float[Array, "..."]:
    """The square root of the metric, between images whose features are at hand; leading axes broadcast.

    Its gradient is 0, not infinite, where both are the same.

    Args:
        metric: from `rlpips_jax.load`.
        features: from `metric.features`.
        others: from `metric.features`, of images of the same size.
    """
    square = metric.between(features, others)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def embedding(metric: Metric, features: Features) -> Features:
    """phi: features so scaled that their Euclidean distance is the perceptual distance."""
    return tuple(
        feature * jnp.sqrt(head.astype(feature.dtype) / (feature.shape[-3] * feature.shape[-2]))
        for feature, head in zip(features, metric.parameters["heads"], strict=True)
    )


def project_perceptual(
    metric: Metric,
    images: Images,
    originals: Images,
    bound: Any,
    *,
    value_range: ValueRange = UNIT_RANGE,
) -> Float[Array, "n ..."]:
    """Images brought within a perceptual distance of their originals; those that are within stay as they are.

    By Newton's method along the gradient of the distance; where it does not get within in 10 steps, by bisection of
    the segment from the original to where it ended (or began, if it only led away).

    Args:
        metric: from `rlpips_jax.load`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`.
        originals: images of the same shape.
        bound: on the perceptual distance, the square root of the metric's; one number, or one for each example.
        value_range: black and white of the images.

    Returns:
        Floats in `value_range`.

    Raises:
        AttackError: the bound is negative or of another shape.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    check_metric(metric)
    images, value_range = as_floats(images, value_range)
    originals, _ = as_floats(originals, value_range)
    if images.shape != originals.shape:
        raise ImageError(f"images and originals must have one shape, got {images.shape} and {originals.shape}")
    return _project(metric, images, originals, bound_of(bound, images), value_range)


@functools.partial(jax.jit, static_argnums=4)
def _project(
    metric: Metric,
    images: Float[Array, "n ..."],
    originals: Float[Array, "n ..."],
    bound: Float[Array, "..."],
    value_range: ValueRange,
) -> Float[Array, "n ..."]:
    return PerceptualBall.around(metric, originals, bound, value_range).project(images)


@dataclass(frozen=True, eq=False)
class PerceptualBall:
    """The images within a perceptual distance of their originals, whose features are computed once.

    Every image of an example has a ball of its own.

    Attributes:
        metric: the square of the distance.
        originals: `(n, ..., h, w, 3)`, floats in `value_range`.
        features: theirs.
        bound: `(n, ...)`, for each image.
        value_range: black and white of the images.
    """

    metric: Metric
    originals: Float[Array, "n ..."]
    features: Features
    bound: Float[Array, "..."]
    value_range: ValueRange

    @classmethod
    def around(
        cls, metric: Metric, originals: Float[Array, "n ..."], bound: Float[Array, "..."], value_range: ValueRange
    ) -> "PerceptualBall":
        """The ball around originals, with a bound that is one number or one for each example."""
        features = metric.features(originals, value_range=value_range)
        ball = cls(metric, originals, features, bound, value_range)
        return replace(ball, bound=ball.each(bound))

    def each(self, number: Float[Array, "..."]) -> Float[Array, "n ..."]:
        """One number, or one for each example, as one for each image."""
        leading = self.originals.shape[:-3]
        return jnp.broadcast_to(number.reshape(-1, *(1,) * (len(leading) - 1)), leading)

    def distance(self, images: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The perceptual distance of images from their originals."""
        features = self.metric.features(images, value_range=self.value_range)
        return perceptual_distance(self.metric, features, self.features).astype(images.dtype)

    def linearise(
        self, images: Float[Array, "n ..."]
    ) -> tuple[Callable[[Array], Features], Callable[[Features], Array]]:
        """v -> J v and u -> J'u with the Jacobian J of phi at the images; what they share is computed once.

        Both derive from one program, so that each is the other's transpose where maxima are tied too.
        """
        metric = replace(self.metric, forward_mode=True)

        def phi(images: Array) -> Features:
            return embedding(metric, metric.features(images, value_range=self.value_range))

        _, forward = jax.linearize(phi, images)
        transposed = jax.linear_transpose(forward, images)
        return forward, lambda vectors: transposed(vectors)[0]

    def advance(
        self,
        images: Float[Array, "n ..."],
        direction: Float[Array, "n ..."],
        length: Float[Array, "n ..."],
        forward: Callable[[Array], Features],
    ) -> Float[Array, "n ..."]:
        """Images moved along a direction, by a length in perceptual distance, to first order.

        Args:
            images: from where.
            direction: where to; 0 for an image that stays.
            length: for each image.
            forward: v -> J v at the images.
        """
        direction = balls.BALLS["l2"].steepest(direction)
        slope = norm(forward(direction))[..., None, None, None].astype(images.dtype)
        length = length[..., None, None, None]
        # However flat the metric, no step is longer than the way from one corner of the range to the other.
        black, white = self.value_range
        diagonal = (white - black) * (images.shape[-3] * images.shape[-2] * images.shape[-1]) ** 0.5
        reach = jnp.where(slope * diagonal > length, length / jnp.where(slope > 0, slope, 1), diagonal)
        return jnp.clip(images + reach * direction, *self.value_range)

    def start(self, key: Any) -> Float[Array, "n ..."]:
        """The originals with a little noise: at the originals themselves the distance has no gradient."""
        black, white = self.value_range
        noise = NOISE * (white - black) * jax.random.normal(key, self.originals.shape, self.originals.dtype)
        return jnp.clip(self.originals + noise, black, white)

    def project(self, images: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Images brought within the bound; see `project_perceptual`."""

        def evaluate(points: Array) -> tuple[Array, Array]:
            def total(points: Array) -> tuple[Array, Array]:
                distances = self.distance(points)
                return distances.sum(), distances

            (_, distances), gradient = jax.value_and_grad(total, has_aux=True)(points)
            return distances, gradient

        def choose(condition: Bool[Array, "n ..."], yes: Array, no: Array) -> Array:
            return jnp.where(condition[..., None, None, None], yes, no)

        def newton(carry: Any) -> Any:
            step, points, distances, gradient = carry
            excess = distances - (1 - OVERSHOOT) * self.bound
            length = balls.BALLS["l2"].length(gradient)
            reach = jnp.where(length > 0, excess / jnp.where(length > 0, length, 1), 0)[..., None, None, None]
            nearer = jnp.clip(points - reach * balls.BALLS["l2"].steepest(gradient), *self.value_range)
            points = choose(distances > self.bound, nearer, points)
            return step + 1, points, *evaluate(points)

        def unfinished(carry: Any) -> Array:
            step, _, distances, _ = carry
            return (step < NEWTON_STEPS) & jnp.any(distances > self.bound)

        before, gradient = evaluate(images)
        _, points, distances, _ = jax.lax.while_loop(unfinished, newton, (0, images, before, gradient))
        outside = ~(distances <= self.bound)
        end = choose(distances < before, points, images)
        return jax.lax.cond(jnp.any(outside), lambda: choose(outside, self._bisect(end), points), lambda: points)

    def _bisect(self, ends: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The farthest points within the bound that were found on the way from the originals to images outside."""

        def at(share: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
            way = share[..., None, None, None] * (ends - self.originals)
            return jnp.clip(self.originals + way, *self.value_range)

        def halve(_: Any, segment: tuple[Array, Array]) -> tuple[Array, Array]:
            within, outside = segment
            middle = (within + outside) / 2
            good = self.distance(at(middle)) <= self.bound
            return jnp.where(good, middle, within), jnp.where(good, outside, middle)

        segment = (jnp.zeros_like(self.bound), jnp.ones_like(self.bound))
        return at(jax.lax.fori_loop(0, BISECTION_STEPS, halve, segment)[0])


def norm(vectors: Features) -> Float[Array, "n ..."]:
    """The Euclidean length of what `embedding` gives, for each image."""
    squares = [jnp.sum(jnp.square(vector), axis=balls.IMAGE) for vector in vectors]
    return jnp.sqrt(functools.reduce(jnp.add, squares))


def with_distance(result: AttackResult, ball: PerceptualBall) -> PerceptualAttackResult:
    """A result that tells the perceptual distance too."""
    return PerceptualAttackResult(**vars(result), perceptual=ball.distance(result.adversarial))


def check_metric(metric: Any) -> None:
    """Raises an AttackError for what cannot bound an attack."""
    if not isinstance(metric, Metric):
        raise AttackError(f"metric must come from rlpips_jax.load, got {type(metric).__name__}")


def bound_of(bound: Any, images: Float[Array, "n ..."], *, name: str = "bound") -> Float[Array, "..."]:
    """A perceptual distance as an array: one number, or one for each example.

    Raises:
        AttackError: as `radius_of`.
    """
    return radius_of(name, bound, images, units="the perceptual distance, the square root of the metric's")

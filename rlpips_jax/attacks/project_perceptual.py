"""Images within a perceptual distance of their originals.

The distance is the square root of a metric, and so the Euclidean distance of embeddings,

    sqrt(d(x, y)) = |phi(x) - phi(y)|,        phi(x) = (sqrt(w_lc / (h_l w_l)) h_l(x)_ijc)_lijc

with the unit-normalised activations h_l and the weights w of the metric (Laidlaw et al., "Perceptual adversarial
robustness", 2021, where all weights are 1). It has a slope, |J v| along v with J the Jacobian of phi, where the metric
itself is flat: at the original. A metric with such an embedding has a method `embedded`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, radius_of
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.distances.protocol import EmbeddedMetric, Features, Metric
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

OVERSHOOT = 0.01
"""How far below the bound Newton's method aims, as a share of it; aimed at the bound itself, it would end above."""
UNITS = "the perceptual distance, the square root of the metric's"
NEWTON_STEPS = 10
BISECTION_STEPS = 12
NOISE = 0.01
"""Standard deviation of the noise that attacks start from, as a share of the range of values."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PerceptualAttackResult(AttackResult):
    """The result of an attack within a perceptual bound.

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


def project_perceptual(
    metric: EmbeddedMetric,
    images: Images,
    originals: Images,
    *,
    bound: Radius,
    value_range: ValueRange = UNIT_RANGE,
) -> Float[Array, "n ..."]:
    """Images moved within a perceptual distance of their originals; those that are within stay as they are.

    Newton's method follows the gradient of the distance. Where 10 steps do not suffice, the segment from the original
    to where it ended (or began, if it only led away) is bisected.

    Args:
        metric: with a method `embedded`, such as an LPIPS from `rlpips_jax.load`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`.
        originals: images of the same shape.
        bound: on the perceptual distance, the square root of the metric's; one number, or one for each example.
        value_range: black and white of the images.

    Returns:
        Floats in `value_range`.

    Raises:
        AttackError: the bound is negative or of another shape, or the metric has no embedding.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    ball = PerceptualBall.checked(metric, originals, bound, value_range)
    images, _ = as_floats(images, value_range)
    if images.shape != ball.originals.shape:
        raise ImageError(f"images and originals must have one shape, got {images.shape} and {ball.originals.shape}")
    return _project(ball, images)


@jax.jit
def _project(ball: "PerceptualBall", images: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    return ball.project(images)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PerceptualBall:
    """The images within a perceptual distance of their originals, whose features are computed once.

    Every image of an example has its own ball. A pytree.

    Attributes:
        metric: the square of the distance.
        originals: `(n, ..., h, w, 3)`, floats in `value_range`.
        features: those of the originals.
        bound: `(n, ...)`, for each image.
        value_range: black and white of the images.
    """

    metric: EmbeddedMetric
    originals: Float[Array, "n ..."]
    features: Features
    bound: Float[Array, "..."]
    value_range: ValueRange = field(metadata={"static": True})

    @classmethod
    def around(
        cls,
        metric: EmbeddedMetric,
        originals: Float[Array, "n ..."],
        bound: Float[Array, "..."],
        value_range: ValueRange,
    ) -> "PerceptualBall":
        """The ball around originals, with a bound that is one number or one for each example."""
        features = metric.features(originals, value_range=value_range)
        ball = cls(metric, originals, features, bound, value_range)
        return replace(ball, bound=ball.each(bound))

    @classmethod
    def checked(
        cls, metric: EmbeddedMetric, images: Images, bound: Radius, value_range: ValueRange
    ) -> "PerceptualBall":
        """The ball around images as users pass them in.

        Raises:
            AttackError: the metric has no embedding, or the bound is negative or of another shape.
            ImageError: the images break the convention of `rlpips_jax.images`.
        """
        if not isinstance(metric, EmbeddedMetric):
            name = metric.name if isinstance(metric, Metric) else repr(metric)
            raise AttackError(
                "metric must have an embedding whose squared Euclidean distance is the metric, as every LPIPS and "
                "R-LPIPS of rlpips_jax.load has ('baseline-alex' is the published choice), and a metric of your own "
                f"with a method embedded(features); {name} has none"
            )
        originals, value_range = as_floats(images, value_range)
        return cls.around(metric, originals, radius_of("bound", bound, originals, units=UNITS), value_range)

    def lengths(self, name: str, number: Radius) -> Float[Array, "n ..."]:
        """A perceptual distance for each image, from an argument of this name.

        Raises:
            AttackError: it is negative or of another shape.
        """
        return self.each(radius_of(name, number, self.originals, units=UNITS))

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
        """v -> J v and u -> J'u with the Jacobian J of phi at the images; their common part is computed once.

        J v is the transpose of u -> J'u, which is linear. So both derive from one program, and each is the other's
        transpose also where maxima are tied; and both have the gradients that are fast on CPU.
        """

        def phi(images: Array) -> Features:
            return self.metric.embedded(self.metric.features(images, value_range=self.value_range))

        embedded, pull = jax.vjp(phi, images)

        def backward(vectors: Features) -> Array:
            return pull(vectors)[0]

        _, push = jax.vjp(backward, jax.tree.map(jnp.zeros_like, embedded))
        return lambda vectors: push(vectors)[0], backward

    def advance(
        self,
        images: Float[Array, "n ..."],
        direction: Float[Array, "n ..."],
        length: Float[Array, "n ..."],
        forward: Callable[[Array], Features],
    ) -> Float[Array, "n ..."]:
        """Images moved along a direction, by a length in perceptual distance, to first order.

        Args:
            images: where they start.
            direction: along which they move; 0 for an image that stays.
            length: for each image.
            forward: v -> J v at the images.
        """
        direction = balls.BALLS["l2"].steepest(direction)
        slope = norm(forward(direction), leading=images.ndim - 3)[..., None, None, None].astype(images.dtype)
        length = length[..., None, None, None]
        # However flat the metric, no step is longer than the way from one corner of the range to the other.
        black, white = self.value_range
        diagonal = (white - black) * (images.shape[-3] * images.shape[-2] * images.shape[-1]) ** 0.5
        reach = jnp.where(slope * diagonal > length, length / jnp.where(slope > 0, slope, 1), diagonal)
        return jnp.clip(images + reach * direction, *self.value_range)

    def start(self, key: Key) -> Float[Array, "n ..."]:
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


def norm(vectors: Features, *, leading: int) -> Float[Array, "n ..."]:
    """The Euclidean length of embeddings, or of J v, for each image."""
    leaves = jax.tree.leaves(vectors)
    squares = [jnp.sum(jnp.square(leaf), axis=tuple(range(leading, leaf.ndim))) for leaf in leaves]
    return jnp.sqrt(functools.reduce(jnp.add, squares))


def with_distance(result: AttackResult, ball: PerceptualBall) -> PerceptualAttackResult:
    """A result with the perceptual distance."""
    return PerceptualAttackResult(**vars(result), perceptual=ball.distance(result.adversarial))

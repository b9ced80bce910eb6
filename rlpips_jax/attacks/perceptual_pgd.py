"""PPGD, perceptual projected gradient ascent (Laidlaw et al., "Perceptual adversarial robustness", 2021)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.lagrangian import enough_for
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import Point, Procedure, State
from rlpips_jax.attacks.project_perceptual import (
    PerceptualAttackResult,
    PerceptualBall,
    with_distance,
)
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.distances.protocol import EmbeddedMetric
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

UNSEEN = 1e-6
"""A direction whose |J v|^2 / |v|^2 is less than this share of the largest counts as mapped to 0."""


def perceptual_pgd(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    metric: EmbeddedMetric,
    bound: Radius,
    steps: int = 40,
    step_size: Radius | None = None,
    iterations: int = 5,
    confidence: float | int = math.inf,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """Maximises an objective within a perceptual distance of each image.

    A step goes where the objective, to first order, rises most for its perceptual length: along the v that solves
    J'J v = gradient, with J the Jacobian of the metric's embedding phi, found by conjugate gradients with exact
    products. It is scaled to |J v| = step_size and followed by `project_perceptual`. The best of all iterates and
    restarts is kept for each example.

    Args:
        objective: `images -> (n,)`, such as `classification(apply, labels)`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own bound.
        key: a key of `jax.random`.
        metric: with a method `embedded`, such as an LPIPS of `rlpips_jax.load`; "baseline-alex" is the published one,
            an R-LPIPS makes it R-PPGD.
        bound: on the perceptual distance, the square root of the metric's: 0.5 allows a metric's distance of 0.25. One
            number, or one for each example.
        steps: gradients of the objective that are computed.
        step_size: in perceptual distance; None for 2 bound / steps.
        iterations: of the conjugate gradients, each a forward and a backward pass through the metric.
        confidence: the attack stops when the objective of every example has been this far above its goal (0 is the
            goal of margins and rankings; without a goal it never stops). By default it takes all steps.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start with a little noise (standard deviation 0.01 of the range), else at the image.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        A `PerceptualAttackResult`; its images are floats in `value_range`. After a stop its trajectory repeats the best
        value.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_counts(steps=steps, iterations=iterations, restarts=restarts)
    ball = PerceptualBall.checked(metric, images, bound, value_range)
    step_size = 2 * ball.bound / steps if step_size is None else ball.lengths("step_size", step_size)
    objective = as_pytree(objective, ball.value_range)
    ascent = _Ascent(ball, step_size, iterations, random_start, enough_for(objective, confidence))
    return cast(
        PerceptualAttackResult,
        search(objective, ball.originals, ascent, key=as_key(key), steps=steps, restarts=restarts),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Ascent(Procedure):
    ball: PerceptualBall
    step_size: Float[Array, "n ..."]
    iterations: int = field(metadata={"static": True})
    random_start: bool = field(metadata={"static": True})
    enough: float = field(metadata={"static": True})

    def start(self, key: Key) -> Float[Array, "n ..."]:
        return self.ball.project(self.ball.start(key)) if self.random_start else self.ball.originals

    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        forward, backward = self.ball.linearise(point.variable)
        gradient = balls.BALLS["l2"].steepest(point.at.gradient)
        direction = conjugate_gradient(lambda v: backward(forward(v)), gradient, self.iterations)
        return state, self.ball.advance(point.variable, direction, self.step_size, forward)

    def project(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return self.ball.project(variable)

    def report(self, result: AttackResult, variable: Float[Array, "n ..."]) -> PerceptualAttackResult:
        return with_distance(result, self.ball)


def conjugate_gradient(
    multiply: Callable[[Array], Array], right: Float[Array, "... h w c"], iterations: int
) -> Float[Array, "... h w c"]:
    """Solves A x = right for each image, where A is symmetric, has no negative eigenvalue and mixes no images.

    Stopped early, it is a solution without the directions that A shrinks most.

    Args:
        multiply: x -> A x, for all images at once.
        right: the right sides; where one is 0, so is x.
        iterations: products with A.
    """

    def inner(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=balls.IMAGE, keepdims=True)

    def divided(a: Array, b: Array) -> Array:
        return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

    def iterate(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, residual, direction, square, largest = carry
        product = multiply(direction)
        curvature = inner(direction, product)
        quotient = divided(curvature, inner(direction, direction))
        largest = jnp.maximum(largest, quotient)
        # The residual of an exact solution, and directions that A maps to 0, would be divided by rounding errors.
        length = jnp.where(quotient > UNSEEN * largest, divided(square, curvature), 0)
        residual = residual - length * product
        smaller = inner(residual, residual)
        return x + length * direction, residual, residual + divided(smaller, square) * direction, smaller, largest

    square = inner(right, right)
    start = (jnp.zeros_like(right), right, right, square, jnp.zeros_like(square))
    return jax.lax.fori_loop(0, iterations, iterate, start)[0]

"""PPGD, perceptual projected gradient ascent (Laidlaw et al., "Perceptual adversarial robustness", 2021)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.attacks.perceptual_bound import (
    PerceptualAttackResult,
    PerceptualBall,
    bound_of,
    check_metric,
    with_distance,
)
from rlpips_jax.attacks.search import Key, Point, as_floats, check_counts, search
from rlpips_jax.distances.lpips import Metric
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

UNSEEN = 1e-6
"""A direction that J stretches less, in squares and beside others, counts as one that it maps to 0."""


def perceptual_pgd(
    objective: Any,
    images: Images,
    *,
    key: Key,
    metric: Metric,
    bound: Any,
    steps: int = 40,
    step_size: Any = None,
    iterations: int = 5,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """Maximises an objective within a perceptual distance of each image.

    A step goes where the objective, to first order, rises most for its perceptual length: along the v that solves
    J'J v = gradient, with J the Jacobian of the metric's embedding phi, found by conjugate gradients with exact
    products. It is scaled to |J v| = step_size and followed by `project_perceptual`. Of all iterates and restarts the
    best is kept, for each example.

    Args:
        objective: `images -> (n,)`, such as `classification(apply, labels)`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own bound.
        key: a key of `jax.random`.
        metric: from `rlpips_jax.load`; "baseline-alex" is the published one, an R-LPIPS makes it R-PPGD.
        bound: on the perceptual distance, the square root of the metric's: 0.5 allows a metric's distance of 0.25. One
            number, or one for each example.
        steps: gradients of the objective that are computed.
        step_size: in perceptual distance; None for 2 bound / steps.
        iterations: of the conjugate gradients, each a forward and a backward pass through the metric.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start with a little noise (standard deviation 0.01 of the range), else at the image.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        A `PerceptualAttackResult`; its images are floats in `value_range`.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_metric(metric)
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, iterations=iterations, restarts=restarts)
    bound = bound_of(bound, images)
    step_size = 2 * bound / steps if step_size is None else bound_of(step_size, images, name="step_size")
    return _perceptual_pgd(
        as_pytree(objective, value_range),
        metric,
        images,
        key,
        bound,
        step_size,
        steps,
        iterations,
        restarts,
        random_start,
        value_range,
    )


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9, 10))
def _perceptual_pgd(
    objective: Any,
    metric: Metric,
    images: Float[Array, "n ..."],
    key: Any,
    bound: Float[Array, "..."],
    step_size: Float[Array, "..."],
    steps: int,
    iterations: int,
    restarts: int,
    random_start: bool,
    value_range: ValueRange,
) -> PerceptualAttackResult:
    ball = PerceptualBall.around(metric, images, bound, value_range)
    length = ball.each(step_size)

    def start(key: Any) -> Float[Array, "n ..."]:
        return ball.project(ball.start(key)) if random_start else images

    def step(state: None, point: Point) -> tuple[None, Float[Array, "n ..."]]:
        forward, backward = ball.linearise(point.variable)
        gradient = balls.BALLS["l2"].steepest(point.gradient)
        direction = conjugate_gradient(lambda v: backward(forward(v)), gradient, iterations)
        return state, ball.project(ball.advance(point.variable, direction, length, forward))

    result, _ = search(objective, images, start=start, step=step, steps=steps, restarts=restarts, key=key)
    return with_distance(result, ball)


def conjugate_gradient(
    multiply: Callable[[Array], Array], right: Float[Array, "... h w c"], iterations: int
) -> Float[Array, "... h w c"]:
    """Solves A x = right for each image, where A is symmetric, has no negative eigenvalue and mixes no images.

    Stopped early it is a solution in which directions that A hardly sees have no part yet.

    Args:
        multiply: x -> A x, of all images at once.
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
        # What is left when a solution is exact, or what A does not see, would be divided by rounding errors.
        length = jnp.where(quotient > UNSEEN * largest, divided(square, curvature), 0)
        residual = residual - length * product
        smaller = inner(residual, residual)
        return x + length * direction, residual, residual + divided(smaller, square) * direction, smaller, largest

    square = inner(right, right)
    start = (jnp.zeros_like(right), right, right, square, jnp.zeros_like(square))
    return jax.lax.fori_loop(0, iterations, iterate, start)[0]

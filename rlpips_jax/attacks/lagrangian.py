"""LPA and Fast-LPA, the Lagrangian perceptual attacks (Laidlaw et al., "Perceptual adversarial robustness", 2021)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.attacks.perceptual_bound import (
    PerceptualAttackResult,
    PerceptualBall,
    bound_of,
    check_metric,
    with_distance,
)
from rlpips_jax.attacks.search import Key, Penalty, Point, as_floats, check_counts, search
from rlpips_jax.distances.lpips import Metric
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

FIRST_WEIGHT = 0.01
"""Of the penalty in the first round of LPA."""
RAISE = 10
"""What LPA multiplies it by after a round that ended outside the bound."""
FAST_WEIGHTS = (1.0, 10.0)
"""Of the penalty at the start and at the end of Fast-LPA, geometrically from one to the other."""
SHRINKAGE = 0.1
"""What the step size falls by, geometrically, from the start to the end of a round."""


def lagrangian(
    objective: Any,
    images: Images,
    *,
    key: Key,
    metric: Metric,
    bound: Any,
    outer_steps: int = 5,
    steps: int = 20,
    step_size: Any = None,
    confidence: float | int = 1,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """LPA: maximises objective - lambda max(0, perceptual distance - bound), with lambda ever larger where need be.

    Each of `outer_steps` rounds goes on where the one before ended, for `steps` steps along the gradient, as long as
    `step_size` in perceptual distance (to first order, |J v|) at the start of the round and a tenth of that at its end.
    For each image lambda is 0.01 at first, and ten times as large after each round whose last gradient was taken
    outside the bound. The last iterate is brought within by `project_perceptual`; of it and of all iterates that are
    within as they are the best is kept, for each example and over all restarts.

    Args:
        objective: `images -> (n,)`, such as `classification(apply, labels)`. Lambda is measured by it: objectives much
            smaller or larger than logits want to be scaled.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own bound.
        key: a key of `jax.random`.
        metric: from `rlpips_jax.load`; "baseline-alex" is the published one, an R-LPIPS makes it R-LPA.
        bound: on the perceptual distance, the square root of the metric's: 0.5 allows a metric's distance of 0.25. One
            number, or one for each example.
        outer_steps: rounds.
        steps: gradients that are computed in each round.
        step_size: in perceptual distance; None for the bound.
        confidence: how far above its goal an objective pulls (0 is the goal of margins and rankings; without one it
            always does). What is farther turns back towards the bound as long as it is outside.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start with a little noise (standard deviation 0.01 of the range), else at the image.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        A `PerceptualAttackResult`; its images are floats in `value_range`. Its trajectory has `outer_steps * steps + 1`
        values, -inf where the iterate was outside the bound.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_counts(outer_steps=outer_steps, steps=steps, restarts=restarts)
    if not confidence >= 0:
        raise AttackError(f"confidence must be a number, 0 or more, in the units of the objective, got {confidence!r}")
    rounds = (outer_steps, steps, float(confidence))
    return _prepared(objective, images, key, metric, bound, step_size, rounds, restarts, random_start, value_range)


def fast_lagrangian(
    objective: Any,
    images: Images,
    *,
    key: Key,
    metric: Metric,
    bound: Any,
    steps: int = 20,
    step_size: Any = None,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """Fast-LPA, meant for training: one round of `lagrangian` in which lambda rises from 1 to 10 all the while.

    As published it leaves images about the bound; here too the last iterate is brought within.

    Args:
        objective: as in `lagrangian`.
        images: as in `lagrangian`.
        key: as in `lagrangian`.
        metric: as in `lagrangian`.
        bound: as in `lagrangian`.
        steps: gradients that are computed.
        step_size: as in `lagrangian`.
        restarts: as in `lagrangian`.
        random_start: as in `lagrangian`.
        value_range: as in `lagrangian`.

    Returns:
        As `lagrangian`.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_counts(steps=steps, restarts=restarts)
    rounds = (None, steps, float("inf"))
    return _prepared(objective, images, key, metric, bound, step_size, rounds, restarts, random_start, value_range)


def _prepared(
    objective: Any,
    images: Images,
    key: Key,
    metric: Metric,
    bound: Any,
    step_size: Any,
    rounds: tuple[int | None, int, float],
    restarts: int,
    random_start: bool,
    value_range: ValueRange,
) -> PerceptualAttackResult:
    check_metric(metric)
    images, value_range = as_floats(images, value_range)
    bound = bound_of(bound, images)
    step_size = bound if step_size is None else bound_of(step_size, images, name="step_size")
    static = (*rounds, restarts, random_start, value_range)
    return _lagrangian(as_pytree(objective, value_range), metric, images, key, bound, step_size, *static)


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9, 10, 11))
def _lagrangian(
    objective: Any,
    metric: Metric,
    images: Float[Array, "n ..."],
    key: Any,
    bound: Float[Array, "..."],
    step_size: Float[Array, "..."],
    outer_steps: int | None,
    steps: int,
    confidence: float,
    restarts: int,
    random_start: bool,
    value_range: ValueRange,
) -> PerceptualAttackResult:
    """LPA, or Fast-LPA where `outer_steps` is None. What steps remember is lambda."""
    ball = PerceptualBall.around(metric, images, bound, value_range)
    length = ball.each(step_size)
    fast = outer_steps is None
    goal = getattr(objective, "goal", None)
    enough = float("inf") if goal is None else goal + confidence

    def weight(state: Float[Array, "n ..."], index: Array) -> Float[Array, "n ..."]:
        first, last = FAST_WEIGHTS
        return state * (last / first) ** (index / steps) if fast else state

    def step(state: Float[Array, "n ..."], point: Point) -> tuple[Array, Array]:
        forward, _ = ball.linearise(point.variable)
        moved = ball.advance(
            point.variable, point.gradient, length * SHRINKAGE ** (point.index % steps / steps), forward
        )
        if not fast:
            ends = point.index % steps == steps - 1
            state = jnp.where(ends & (point.excess >= 0), RAISE * state, state)
        return state, moved

    start: Callable[[Any], Array] = ball.start if random_start else lambda key: images
    result, _ = search(
        objective,
        images,
        start=start,
        step=step,
        state=lambda variable: jnp.full(images.shape[:-3], FAST_WEIGHTS[0] if fast else FIRST_WEIGHT, images.dtype),
        steps=steps if outer_steps is None else outer_steps * steps,
        restarts=restarts,
        key=key,
        penalty=Penalty(lambda points: ball.distance(points) - ball.bound, weight, enough),
        finish=ball.project,
    )
    return with_distance(result, ball)

"""Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", 2020): momentum, and steps that halve, from the best point, where progress has ended."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import Key, Point, as_floats, check_counts, radius_of, search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

MOMENTUM = 0.25
"""Weight of the previous step in the next."""
PROGRESS = 0.75
"""Share of steps between two checkpoints that must have raised the objective, or the step size is halved."""
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06
"""Shares of all steps: the first interval between checkpoints, how much shorter the next is, and the least."""


class _State(NamedTuple):
    previous: Float[Array, "n ..."]
    previous_value: Float[Array, " n"]
    best_value: Float[Array, " n"]
    best_gradient: Float[Array, "n ..."]
    step_size: Float[Array, " n"]
    rises: Int[Array, " n"]
    improved: Bool[Array, " n"]
    halved: Bool[Array, " n"]


def apgd(
    objective: Any,
    images: Images,
    *,
    key: Key,
    epsilon: Any,
    norm: str = "linf",
    steps: int,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Maximises an objective within a ball around each image by Auto-PGD, which needs no step size.

    With z = project(x + eta * steepest(gradient)), x moves to project(x + 0.75 (z - x) + 0.25 (x - previous x)). eta
    starts at 2 epsilon; at checkpoints after 22 % of the steps and ever sooner it is halved, and x returns to the best
    point, without momentum, for each example whose objective rose in less than 75 % of the steps since, or whose best
    has not changed.

    Args:
        objective: as in `pgd`.
        images: as in `pgd`.
        key: as in `pgd`.
        epsilon: radius of the ball in the units of `value_range`, as in `pgd`.
        norm: "linf" or "l2".
        steps: gradients that are computed.
        restarts: as in `pgd`.
        random_start: as in `pgd`.
        value_range: black and white of the images.

    Returns:
        An `AttackResult`.

    Raises:
        AttackError: an argument makes no sense.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    balls.ball(norm)
    check_counts(steps=steps, restarts=restarts)
    epsilon = radius_of("epsilon", epsilon, images)
    return _apgd(
        as_pytree(objective, value_range), images, key, epsilon, norm, steps, restarts, random_start, value_range
    )


def checkpoints(steps: int) -> Bool[np.ndarray, " steps"]:
    """Before which steps the step size is looked at."""
    interval, shorter, shortest = (max(int(share * steps), 1) for share in (FIRST, SHORTER, SHORTEST))
    marks = np.zeros(steps, bool)
    position = interval
    while position < steps:
        marks[position] = True
        interval = max(interval - shorter, shortest)
        position += interval
    return marks


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _apgd(
    objective: Any,
    images: Float[Array, "n ..."],
    key: Any,
    epsilon: Float[Array, "..."],
    norm: str,
    steps: int,
    restarts: int,
    random_start: bool,
    value_range: ValueRange,
) -> AttackResult:
    marks = checkpoints(steps)
    # Of every step, how many there were since the checkpoint before.
    since = np.diff(np.flatnonzero(marks), prepend=0)
    intervals = np.zeros(steps, np.int32)
    intervals[marks] = since

    def start(key: Any) -> Float[Array, "n ..."]:
        return balls.draw(key, images, epsilon, norm, value_range) if random_start else images

    def project(points: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return balls.project(points, images, epsilon, norm, value_range)

    def begin(variable: Float[Array, "n ..."]) -> _State:
        lowest = jnp.full(images.shape[0], -jnp.inf, images.dtype)
        return _State(
            previous=variable,
            previous_value=lowest,
            best_value=lowest,
            best_gradient=jnp.zeros_like(variable),
            step_size=jnp.broadcast_to(2 * epsilon, images.shape[:1]),
            rises=jnp.zeros(images.shape[0], jnp.int32),
            improved=jnp.zeros(images.shape[0], bool),
            halved=jnp.zeros(images.shape[0], bool),
        )

    def step(state: _State, point: Point) -> tuple[_State, Float[Array, "n ..."]]:
        value = point.value.astype(images.dtype)

        previous_value = state.previous_value if point.again is None else point.again(state.previous)

        def choose(condition: Bool[Array, " n"], yes: Array, no: Array) -> Array:
            return jnp.where(balls.per_example(condition, yes), yes, no)

        best_value = jnp.where(point.improved, value, state.best_value)
        best_gradient = choose(point.improved, point.gradient, state.best_gradient)
        improved = state.improved | point.improved
        # The start has nothing before it to rise from.
        rises = state.rises + ((value > previous_value) & (point.index > 0))

        mark = jnp.asarray(marks)[point.index]
        stalled = rises < PROGRESS * jnp.asarray(intervals)[point.index]
        stuck = ~state.halved & ~improved
        halve = mark & (stalled | stuck)
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        here = choose(halve, point.best, point.variable)
        gradient = choose(halve, best_gradient, point.gradient)
        previous = choose(halve, point.best, state.previous)

        eta = balls.per_example(step_size, images)
        ahead = project(here + eta * balls.BALLS[norm].steepest(gradient))
        momentum = jnp.where(point.index > 0, MOMENTUM, 0)
        moved = project(here + (1 - momentum) * (ahead - here) + momentum * (here - previous))
        return _State(
            previous=here,
            previous_value=jnp.where(halve, best_value, value),
            best_value=best_value,
            best_gradient=best_gradient,
            step_size=step_size,
            rises=jnp.where(mark, 0, rises),
            improved=improved & ~mark,
            halved=jnp.where(mark, halve, state.halved),
        ), moved

    return search(
        objective, images, start=start, step=step, state=begin, steps=steps, restarts=restarts, key=key, origin=images
    )[0]

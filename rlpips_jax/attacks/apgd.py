"""Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", 2020): momentum, and steps that are halved, from the best point, where there is no more progress."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import InBall, Point
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
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
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
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

    Arguments, result and errors are those of `pgd`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    ascent = _Ascent(
        images=images,
        epsilon=balls.radius_in(norm, epsilon, images, value_range),
        norm=norm,
        value_range=value_range,
        random_start=random_start,
        steps=steps,
    )
    return search(as_pytree(objective, value_range), images, ascent, key=as_key(key), steps=steps, restarts=restarts)


def checkpoints(steps: int) -> Bool[np.ndarray, " steps"]:
    """The steps before which the step size may be halved."""
    interval, shorter, shortest = (max(int(share * steps), 1) for share in (FIRST, SHORTER, SHORTEST))
    marks = np.zeros(steps, bool)
    position = interval
    while position < steps:
        marks[position] = True
        interval = max(interval - shorter, shortest)
        position += interval
    return marks


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Ascent(InBall):
    steps: int = field(metadata={"static": True})

    def state(self, variable: Float[Array, "n ..."]) -> _State:
        n, dtype = self.images.shape[0], self.images.dtype
        nothing = jnp.full(n, -jnp.inf, dtype)
        return _State(
            previous=variable,
            previous_value=nothing,
            best_value=nothing,
            best_gradient=jnp.zeros_like(variable),
            step_size=jnp.broadcast_to(2 * self.epsilon, (n,)),
            rises=jnp.zeros(n, jnp.int32),
            improved=jnp.zeros(n, bool),
            halved=jnp.zeros(n, bool),
        )

    def step(self, state: _State, point: Point) -> tuple[_State, Float[Array, "n ..."]]:
        value = point.at.value.astype(self.images.dtype)
        previous_value = state.previous_value if point.again is None else point.again(state.previous)

        def choose(condition: Bool[Array, " n"], yes: Array, no: Array) -> Array:
            return jnp.where(balls.per_example(condition, yes), yes, no)

        best_value = jnp.where(point.improved, value, state.best_value)
        best_gradient = choose(point.improved, point.at.gradient, state.best_gradient)
        improved = state.improved | point.improved
        # The start has nothing before it to rise from.
        rises = state.rises + ((value > previous_value) & (point.index > 0))

        marks = checkpoints(self.steps)
        # For every checkpoint, how many steps there were since the one before.
        intervals = np.zeros(self.steps, np.int32)
        intervals[marks] = np.diff(np.flatnonzero(marks), prepend=0)
        mark = jnp.asarray(marks)[point.index]
        stalled = rises < PROGRESS * jnp.asarray(intervals)[point.index]
        halve = mark & (stalled | (~state.halved & ~improved))
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        here = choose(halve, point.best, point.variable)
        gradient = choose(halve, best_gradient, point.at.gradient)
        previous = choose(halve, point.best, state.previous)

        eta = balls.per_example(step_size, self.images)
        ahead = self.project(here + eta * self.steepest(gradient))
        momentum = jnp.where(point.index > 0, MOMENTUM, 0)
        return _State(
            previous=here,
            previous_value=jnp.where(halve, best_value, value),
            best_value=best_value,
            best_gradient=best_gradient,
            step_size=step_size,
            rises=jnp.where(mark, 0, rises),
            improved=improved & ~mark,
            halved=jnp.where(mark, halve, state.halved),
        ), here + (1 - momentum) * (ahead - here) + momentum * (here - previous)

"""The smallest change that reaches a goal: robustness as a radius for each example, not as a rate at one radius.

After FMN (Pintor et al., "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021), with the
steepest step of each norm: every gradient moves both the image and the radius.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, Randomised, TracedObjective, as_pytree
from rlpips_jax.attacks.procedure import Evaluation, Point, Procedure, Rendered, State
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

STEP = (0.3, 0.01)
"""Size of the first and of the last step, as a share of the radius."""
CHANGE = (0.1, 0.001)
"""Share by which the radius shrinks or grows at the first and at the last step."""
LEAST = 1e-4
"""Least radius, as a share of the range of values, until the goal is reached."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MinimumResult(AttackResult):
    """The nearest images that reach the goal.

    `before`, `after` and `trajectory` are minus the length of the change, -inf where the goal is not reached; `success`
    says where it is, the image itself included.

    Attributes:
        radius: `(n,)`, the length of the change, in the units of `value_range`; infinite where no image was found that
            reaches the goal. The true minimum may be smaller, never larger.
    """

    radius: Float[Array, " n"]


def minimum(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius | None = None,
    norm: str = "linf",
    steps: int,
    value_range: ValueRange = UNIT_RANGE,
) -> MinimumResult:
    """The smallest ball around each image in which an objective reaches its goal, such as the reversal of a `ranking`.

    As long as the goal is not reached, the radius is that of the current change and what is missing to the goal, to
    first order, and a little more. After that it shrinks, by 10 % at first and by 0.1 % at last, where the goal is
    reached and grows where it is not, about the smallest that was found. The image moves along the steepest direction
    by 30 % of the radius at first and 1 % at last, and is projected onto the ball. The nearest of all iterates that
    reach the goal is kept.

    With 30 gradients this finds smaller radii than bisection with `pgd` does with 200: benchmarks/RESULTS.md.

    Args:
        objective: with a goal and not randomised: `ranking`, `classification`, an `expected_ranking` with a key.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. A distance from the image itself has no slope
            there, so images that are equal to their reference are not moved.
        key: a key of `jax.random`, as all attacks take one; nothing is drawn.
        epsilon: the largest radius that is of interest, in the units of `value_range`: one number, or one for each
            example. No iterate leaves that ball, and what cannot be reached in it has an infinite radius. None: any.
        norm: "linf" or "l2". Of several images of one example the longest change counts. The smallest root mean square
            error is the smallest l2 length divided by the root of the number of values.
        steps: gradients that are computed.
        value_range: black and white of the images; the nearest images stay within.

    Returns:
        A `MinimumResult`; its images are floats in `value_range`, the last ones where the goal was not reached.

    Raises:
        AttackError: an argument makes no sense, or the objective has no goal.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    balls.ball(norm)
    check_counts(steps=steps)
    farthest = jnp.full((), jnp.inf, images.dtype)
    if epsilon is not None:
        farthest = balls.radius_in(norm, epsilon, images, value_range)
    closeness = Closeness(with_goal(objective, value_range), images, norm)
    boundary = _Boundary(closeness=closeness, value_range=value_range, farthest=farthest, steps=steps)
    return cast(MinimumResult, search(closeness, images, boundary, key=as_key(key), steps=steps))


def with_goal(objective: Objective, value_range: ValueRange) -> TracedObjective:
    """An objective that knows when it is reached.

    Raises:
        AttackError: it has no goal, or it is randomised.
    """
    function = as_pytree(objective, value_range)
    if has_goal(function):
        return cast(TracedObjective, function)
    if isinstance(function, Randomised):
        raise AttackError("a randomised objective has no boundary; fix its draws: expected_ranking(..., key=key)")
    raise AttackError(
        f"the objective must have a goal, such as ranking(...) or classification(...) with its margin; "
        f"{type(objective).__name__} has none"
    )


def has_goal(objective: Objective) -> bool:
    """Whether `minimum` can be asked for the nearest image that reaches the goal of an objective."""
    return not isinstance(objective, Randomised) and getattr(objective, "goal", None) is not None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Closeness(TracedObjective):
    """Minus the length of a change that reaches a goal; -inf for one that does not.

    Attributes:
        objective: with a goal.
        images: that are changed.
        norm: of the length.
    """

    objective: TracedObjective
    images: Float[Array, "n ..."]
    norm: str = field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n ..."]) -> Float[Array, " n"]:
        return self.of(images, self.objective(images))

    def of(self, images: Float[Array, "n ..."], value: Float[Array, " n"]) -> Float[Array, " n"]:
        """The same, where the value of the objective is known."""
        return jnp.where(value > cast(float, self.objective.goal), -self.length(images), -jnp.inf)

    def length(self, images: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """Of the longest change of an example."""
        return balls.BALLS[self.norm].length(images - self.images).reshape(len(images), -1).max(axis=1)

    def succeeded(self, images: Images, before: Float[Array, " n"], after: Float[Array, " n"]) -> Array:
        return jnp.isfinite(after)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class Approach(Procedure):
    """A search for the nearest image that reaches a goal, along the gradient of the objective."""

    closeness: Closeness
    value_range: ValueRange = field(metadata={"static": True})

    def start(self, key: Key) -> Float[Array, "n ..."]:
        return self.closeness.images

    def gradient(self, objective: Rendered, variable: Array, state: State, index: Int[Array, ""]) -> Evaluation:
        value, gradient = objective._replace(objective=self.closeness.objective).value_and_gradient(variable)
        return Evaluation(value, self.closeness.of(variable, value), gradient)

    def report(self, result: AttackResult, variable: Float[Array, "n ..."]) -> MinimumResult:
        return MinimumResult(**vars(result), radius=-result.after)


class _State(NamedTuple):
    radius: Float[Array, " n"]
    nearest: Float[Array, " n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Boundary(Approach):
    farthest: Float[Array, "..."]
    steps: int = field(metadata={"static": True})

    def state(self, variable: Float[Array, "n ..."]) -> _State:
        unknown = jnp.full(variable.shape[0], jnp.inf, variable.dtype)
        return _State(unknown, unknown)

    def step(self, state: _State, point: Point) -> tuple[_State, Float[Array, "n ..."]]:
        images, norm = self.closeness.images, self.closeness.norm
        reached, length = jnp.isfinite(point.at.counted), self.closeness.length(point.variable)
        nearest = jnp.where(reached, jnp.minimum(state.nearest, length), state.nearest)
        early = (1 + jnp.cos(jnp.pi * point.index / self.steps)) / 2
        share, change = (last + (first - last) * early for first, last in (STEP, CHANGE))

        gradient = jnp.asarray(point.at.gradient)
        steepest = balls.BALLS[norm].steepest(gradient)
        slope = jnp.sum((steepest * gradient).reshape(len(images), -1), axis=1)
        missing = cast(float, self.closeness.objective.goal) - point.at.value
        ahead = length + jnp.where(slope > 0, missing / jnp.where(slope > 0, slope, 1), 0)
        around = jnp.where(reached, jnp.minimum((1 - change) * state.radius, nearest), (1 + change) * state.radius)
        black, white = self.value_range
        # A step that rounding undoes would be tried for ever.
        ahead = jnp.maximum(ahead, LEAST * (white - black))
        radius = jnp.minimum(jnp.where(jnp.isfinite(nearest), around, (1 + change) * ahead), self.farthest)

        stride = balls.per_example(share * radius, images)
        moved = balls.project(point.variable + stride * steepest, images, radius, norm, self.value_range)
        return _State(radius, nearest), moved

"""LPA, the Lagrangian perceptual attack (Laidlaw et al., "Perceptual adversarial robustness", 2021)."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import Evaluation, Point, Procedure, Rendered
from rlpips_jax.attacks.project_perceptual import (
    PerceptualAttackResult,
    PerceptualBall,
    with_distance,
)
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.distances.protocol import EmbeddedMetric
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


class Weights(NamedTuple):
    """How lambda, the weight of the penalty, changes.

    Attributes:
        first: at the start.
        raised: its factor after a round that ended outside the bound.
        growth: its factor over each round, geometrically.
    """

    first: float
    raised: float
    growth: float


WEIGHTS = Weights(first=0.01, raised=10.0, growth=1.0)
"""Those of LPA."""
SHRINKAGE = 0.1
"""Factor by which the step size falls, geometrically, from the start to the end of a round."""


def lagrangian(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    metric: EmbeddedMetric,
    bound: Radius,
    outer_steps: int = 5,
    steps: int = 20,
    step_size: Radius | None = None,
    confidence: float | int = 1,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """Maximises objective - lambda max(0, perceptual distance - bound), with a lambda that rises where it must.

    Each of `outer_steps` rounds goes on where the one before ended, for `steps` steps along the gradient, as long as
    `step_size` in perceptual distance (to first order, |J v|) at the start of the round and a tenth of that at its end.
    For each image lambda is 0.01 at first, and ten times as large after each round whose last gradient was taken
    outside the bound. The last iterate is brought within by `project_perceptual`. The best of it and of all iterates
    that are within the bound by themselves is kept, for each example and over all restarts.

    Args:
        objective: `images -> (n,)`, such as `classification(apply, labels)`. Lambda is in its units: scale objectives
            that are much smaller or larger than logits.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own bound.
        key: a key of `jax.random`.
        metric: with a method `embedded`, such as an LPIPS of `rlpips_jax.load`; "baseline-alex" is the published one,
            an R-LPIPS makes it R-LPA.
        bound: on the perceptual distance, the square root of the metric's: 0.5 allows a metric's distance of 0.25. One
            number, or one for each example.
        outer_steps: rounds.
        steps: gradients that are computed in each round.
        step_size: in perceptual distance; None for the bound.
        confidence: how far above its goal an objective counts (0 is the goal of margins and rankings; without a goal
            it always counts). An image beyond that only moves back towards the bound while it is outside; when all
            have been beyond it within their bounds, the attack stops.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start with a little noise (standard deviation 0.01 of the range), else at the image.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        A `PerceptualAttackResult`; its images are floats in `value_range`. Its trajectory has `outer_steps * steps + 1`
        values, -inf where the iterate was outside the bound; after a stop the best value is repeated.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    check_counts(outer_steps=outer_steps, steps=steps, restarts=restarts)
    ball = PerceptualBall.checked(metric, images, bound, value_range)
    objective = as_pytree(objective, ball.value_range)
    ascent = LagrangianAscent(
        ball=ball,
        step_size=ball.bound if step_size is None else ball.lengths("step_size", step_size),
        steps=steps,
        weights=WEIGHTS,
        enough=enough_for(objective, confidence),
        random_start=random_start,
    )
    result = search(objective, ball.originals, ascent, key=as_key(key), steps=outer_steps * steps, restarts=restarts)
    return cast(PerceptualAttackResult, result)


def enough_for(objective: Objective, confidence: float | int) -> float:
    """The value above which an objective counts no more: this far above its goal, infinite if it has no goal.

    Raises:
        AttackError: the confidence is negative or not a number.
    """
    if not confidence >= 0:
        raise AttackError(f"confidence must be a number, 0 or more, in the units of the objective, got {confidence!r}")
    goal = getattr(objective, "goal", None)
    return math.inf if goal is None else goal + float(confidence)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class LagrangianAscent(Procedure):
    """Steps along the gradient of an objective less a penalty outside the ball. They remember lambda for each image.

    Attributes:
        ball: images within the bound.
        step_size: `(n, ...)`, in perceptual distance, at the start of a round.
        steps: those of a round.
        weights: how lambda changes.
        enough: an objective above this counts no more, so that the penalty alone decides; infinite: it always counts.
        random_start: whether to start with a little noise, or at the images.
    """

    ball: PerceptualBall
    step_size: Float[Array, "n ..."]
    steps: int = field(metadata={"static": True})
    weights: Weights = field(metadata={"static": True})
    enough: float = field(metadata={"static": True})
    random_start: bool = field(metadata={"static": True})

    def start(self, key: Key) -> Float[Array, "n ..."]:
        return self.ball.start(key) if self.random_start else self.ball.originals

    def state(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return jnp.full(variable.shape[:-3], self.weights.first, variable.dtype)

    def gradient(self, objective: Rendered, variable: Array, state: Array, index: Int[Array, ""]) -> Evaluation:
        value, gradient = objective.value_and_gradient(variable)
        excess, pull = jax.vjp(lambda points: self.ball.distance(points) - self.ball.bound, variable)
        outside, weight = excess > 0, state * self.weights.growth ** (index / self.steps)
        (slope,) = pull(jnp.where(outside, weight, 0).astype(excess.dtype))
        counts = balls.per_example(value <= self.enough, gradient)
        counted = jnp.where(outside.reshape(value.shape[0], -1).any(axis=1), -jnp.inf, value)
        return Evaluation(value, counted, jnp.where(counts, gradient, 0) - slope, excess)

    def step(self, state: Array, point: Point) -> tuple[Array, Array]:
        forward, _ = self.ball.linearise(point.variable)
        length = self.step_size * SHRINKAGE ** (point.index % self.steps / self.steps)
        moved = self.ball.advance(point.variable, point.at.gradient, length, forward)
        ends = point.index % self.steps == self.steps - 1
        return jnp.where(ends & (jnp.asarray(point.at.excess) >= 0), self.weights.raised * state, state), moved

    def finish(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return self.ball.project(variable)

    def report(self, result: AttackResult, variable: Float[Array, "n ..."]) -> PerceptualAttackResult:
        return with_distance(result, self.ball)

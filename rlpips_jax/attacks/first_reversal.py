"""Sign steps until the goal is reached: the protocol of Ghildyal and Liu, "Attacking perceptual similarity metrics"
(TMLR 2023), in which the change that it took counts by its root mean square."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.minimum import Approach, Closeness, MinimumResult, with_goal
from rlpips_jax.attacks.objectives import Objective
from rlpips_jax.attacks.procedure import Point, State
from rlpips_jax.attacks.search import search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

STEPS = 30
"""As published."""


def first_reversal(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    steps: int = STEPS,
    value_range: ValueRange = UNIT_RANGE,
) -> MinimumResult:
    """Steps of epsilon / steps along the sign of the gradient, within epsilon in l-inf, until the goal is reached.

    Published are 30 steps of 0.001 within 0.03 of images in (-1, 1), from the image itself; the last of them is not
    looked at, here as there. The authors ascend ((d_other / (d_other + d)) - 1)^2, d being the distance that grows:
    its gradient has the sign of that of `ranking`.

    Args:
        objective: with a goal and not randomised, as in `minimum`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`.
        key: a key of `jax.random`, as all attacks take one; nothing is drawn.
        epsilon: the largest change of a value, in the units of `value_range`; published 0.03 in (-1, 1), hence 0.015 in
            (0, 1). One number, or one for each example.
        steps: images that are looked at, the first being the original.
        value_range: black and white of the images.

    Returns:
        A `MinimumResult` whose `radius`, `before`, `after` and `trajectory` are lengths in l2 of the first images that
        reach the goal: divided by the root of h * w * 3 they are the root mean square error.

    Raises:
        AttackError: an argument makes no sense, or the objective has no goal.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps)
    epsilon = balls.radius_in("linf", epsilon, images, value_range)
    closeness = Closeness(with_goal(objective, value_range), images, "l2")
    ascent = _UntilReached(closeness=closeness, value_range=value_range, epsilon=epsilon, step_size=epsilon / steps)
    return cast(MinimumResult, search(closeness, images, ascent, key=as_key(key), steps=steps - 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _UntilReached(Approach):
    epsilon: Float[Array, "..."]
    step_size: Float[Array, "..."]

    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        images, here = self.closeness.images, point.variable
        ahead = here + balls.per_example(self.step_size, images) * jnp.sign(jnp.asarray(point.at.gradient))
        moved = balls.project(ahead, images, self.epsilon, "linf", self.value_range)
        return state, jnp.where(balls.per_example(jnp.isfinite(point.at.counted), images), here, moved)

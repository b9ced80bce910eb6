"""Random noise: what a perturbation does without any search, to compare attacks with."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import ByValues, InBall, Point, State
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


def noise(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int = 1,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """The best of `steps` points drawn uniformly from the ball around each image.

    Arguments, result and errors are those of `pgd`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps)
    epsilon = balls.radius_in(norm, epsilon, images, value_range)
    draws = _Draws(images=images, epsilon=epsilon, norm=norm, value_range=value_range)
    # The start is the first point.
    return search(as_pytree(objective, value_range), images, draws, key=as_key(key), steps=steps - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Draws(ByValues, InBall):
    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        return state, self.start(point.key)

    def project(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return variable

    def origin(self) -> None:
        return None

"""PGD, projected gradient ascent (Madry et al., "Towards deep learning models resistant to adversarial attacks")."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts, radius_of
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import InBall, Point, State
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


def pgd(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int,
    step_size: Radius | None = None,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Maximises an objective within a ball around each image: x <- project(x + step_size * steepest(gradient)).

    The steepest direction is the sign of the gradient in l-inf, the gradient scaled to unit length in l2. The best of
    all iterates and restarts is kept for each example.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> from rlpips_jax.attacks import pgd
        >>> images = jnp.full((1, 4, 4, 3), 0.5)
        >>> result = pgd(lambda x: x.mean((1, 2, 3)), images, key=jax.random.key(0), epsilon=0.1, steps=4)
        >>> print(result.before, result.after.round(3), result.success)
        [0.5] [0.6] [ True]

    Args:
        objective: `images -> (n,)`; `rlpips_jax.attacks.objectives` says which are compiled once.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own ball.
        key: a key of `jax.random`.
        epsilon: radius of the ball in the units of `value_range` (also for uint8 images, which are scaled to it):
            8/255 of the whole range is 8/255 in (0, 1) and 16/255 in (-1, 1). One number, or one for each example.
        norm: "linf" or "l2".
        steps: gradients that are computed.
        step_size: in the units of `epsilon`; None for 2.5 epsilon / steps.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start at a point drawn from the ball, else at the image. A distance from the image itself has no
            slope there.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        An `AttackResult`; its images are floats in `value_range`.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    epsilon = balls.radius_in(norm, epsilon, images, value_range)
    ascent = _Ascent(
        images=images,
        epsilon=epsilon,
        norm=norm,
        value_range=value_range,
        random_start=random_start,
        step_size=2.5 * epsilon / steps if step_size is None else radius_of("step_size", step_size, images),
    )
    return search(as_pytree(objective, value_range), images, ascent, key=as_key(key), steps=steps, restarts=restarts)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Ascent(InBall):
    step_size: Float[Array, "..."]

    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        stride = balls.per_example(self.step_size, self.images)
        return state, point.variable + stride * self.steepest(point.at.gradient)

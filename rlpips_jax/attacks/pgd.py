"""PGD, projected gradient ascent (Madry et al., "Towards deep learning models resistant to adversarial attacks")."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import Key, Point, as_floats, check_counts, radius_of, search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


def pgd(
    objective: Any,
    images: Images,
    *,
    key: Key,
    epsilon: Any,
    norm: str = "linf",
    steps: int,
    step_size: Any = None,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Maximises an objective within a ball around each image: x <- project(x + step_size * steepest(gradient)).

    The steepest direction is the sign of the gradient in l-inf, the gradient of unit length in l2. Of all iterates and
    restarts the best is kept, for each example.

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
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    balls.ball(norm)
    check_counts(steps=steps, restarts=restarts)
    epsilon = radius_of("epsilon", epsilon, images)
    step_size = 2.5 * epsilon / steps if step_size is None else radius_of("step_size", step_size, images)
    return _pgd(
        as_pytree(objective, value_range),
        images,
        key,
        epsilon,
        step_size,
        norm,
        steps,
        restarts,
        random_start,
        value_range,
    )


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _pgd(
    objective: Any,
    images: Float[Array, "n ..."],
    key: Any,
    epsilon: Float[Array, "..."],
    step_size: Float[Array, "..."],
    norm: str,
    steps: int,
    restarts: int,
    random_start: bool,
    value_range: ValueRange,
) -> AttackResult:
    def start(key: Any) -> Float[Array, "n ..."]:
        return balls.draw(key, images, epsilon, norm, value_range) if random_start else images

    def step(state: None, point: Point) -> tuple[None, Float[Array, "n ..."]]:
        ascent = balls.per_example(step_size, images) * balls.BALLS[norm].steepest(point.gradient)
        return state, balls.project(point.variable + ascent, images, epsilon, norm, value_range)

    return search(objective, images, start=start, step=step, steps=steps, restarts=restarts, key=key, origin=images)[0]

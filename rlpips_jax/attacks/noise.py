"""Random noise: what a perturbation does that knows nothing, to compare attacks with."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.objectives import as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import Key, Point, as_floats, check_counts, radius_of, search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


def noise(
    objective: Any,
    images: Images,
    *,
    key: Key,
    epsilon: Any,
    norm: str = "linf",
    steps: int = 1,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """The best of `steps` points drawn uniformly from the ball around each image.

    Args:
        objective: as in `pgd`.
        images: as in `pgd`.
        key: as in `pgd`.
        epsilon: radius of the ball in the units of `value_range`, as in `pgd`.
        norm: "linf" or "l2".
        steps: points that are drawn.
        value_range: black and white of the images.

    Returns:
        An `AttackResult`.

    Raises:
        AttackError: an argument makes no sense.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    balls.ball(norm)
    check_counts(steps=steps)
    return _noise(
        as_pytree(objective, value_range), images, key, radius_of("epsilon", epsilon, images), norm, steps, value_range
    )


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _noise(
    objective: Any,
    images: Float[Array, "n ..."],
    key: Any,
    epsilon: Float[Array, "..."],
    norm: str,
    steps: int,
    value_range: ValueRange,
) -> AttackResult:
    def start(key: Any) -> Float[Array, "n ..."]:
        return balls.draw(key, images, epsilon, norm, value_range)

    def step(state: None, point: Point) -> tuple[None, Float[Array, "n ..."]]:
        return state, start(point.key)

    # The start is the first point.
    return search(objective, images, start=start, step=step, steps=steps - 1, key=key, gradients=False)[0]

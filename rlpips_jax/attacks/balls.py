"""The balls that perturbations stay in: l-inf and l2, per image, within the range of values.

A perturbation is `(..., h, w, 3)`; every image `(h, w, 3)` of it has its own ball. A radius is one number, or one for
each example (the first axis).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped
from optax import projections

from rlpips_jax.attacks.arguments import Radius, is_known, radius_of
from rlpips_jax.attacks.keys import Key
from rlpips_jax.errors import AttackError
from rlpips_jax.images import ValueRange

IMAGE = (-3, -2, -1)
"""The axes of one image."""


class Ball(NamedTuple):
    """A norm: lengths, the projection onto a ball, the steepest direction, and points drawn from a ball.

    Attributes:
        length: norms `(...)` of perturbations `(..., h, w, 3)`.
        project: `(h, w, 3), radius -> (h, w, 3)`, the nearest point of the ball.
        steepest: the direction of unit length along which a linear function with this gradient grows most; 0 for 0.
        draw: `key, shape (..., h, w, 3) -> (..., h, w, 3)`, uniform in the unit ball.
    """

    length: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]
    steepest: Callable[[Array], Array]
    draw: Callable[[Key, tuple[int, ...], DTypeLike], Array]


def _l2(perturbation: Float[Array, "... h w c"]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.sum(jnp.square(perturbation), axis=IMAGE))


def _l2_steepest(gradient: Float[Array, "... h w c"]) -> Float[Array, "... h w c"]:
    # Scaled first, as squares of small gradients underflow.
    largest = jnp.max(jnp.abs(gradient), axis=IMAGE, keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    length = _l2(scaled)[..., None, None, None]
    return scaled / jnp.where(length > 0, length, 1)


def _l2_draw(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
    direction, distance = jax.random.split(key)
    size = shape[-1] * shape[-2] * shape[-3]
    radius = jax.random.uniform(distance, (*shape[:-3], 1, 1, 1), dtype) ** (1 / size)
    return radius * _l2_steepest(jax.random.normal(direction, shape, dtype))


BALLS = {
    "linf": Ball(
        length=lambda perturbation: jnp.max(jnp.abs(perturbation), axis=IMAGE),
        project=projections.projection_linf_ball,
        steepest=jnp.sign,
        draw=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1),
    ),
    "l2": Ball(
        length=_l2,
        # optax divides by the radius.
        project=lambda one, radius: jnp.where(
            radius > 0, projections.projection_l2_ball(one, jnp.where(radius > 0, radius, 1)), 0
        ),
        steepest=_l2_steepest,
        draw=_l2_draw,
    ),
}
"""The norms by name."""


def ball(norm: str) -> Ball:
    """A norm by its name.

    Raises:
        AttackError: `BALLS` has no such norm.
    """
    if norm not in BALLS:
        raise AttackError(f"norm must be one of {', '.join(BALLS)}, got {norm!r}")
    return BALLS[norm]


def radius_in(
    norm: str, epsilon: Radius, images: Float[Array, "n ..."], value_range: ValueRange
) -> Float[Array, "..."]:
    """The radius of a ball around images as an array: one number, or one for each example.

    Raises:
        AttackError: `BALLS` has no such norm; the radius is not one, or in l-inf is more than the whole range of values
            (both where it is not traced).
    """
    ball(norm)
    radius = radius_of("epsilon", epsilon, images)
    black, white = value_range
    width = white - black
    if norm == "linf" and is_known(epsilon) and np.max(np.asarray(epsilon, float)) > width * (1 + 1e-6):
        raise AttackError(
            f"epsilon {epsilon} is more than the whole range of values, {value_range}: 2 grey levels of 255 are "
            f"{2 * width / 255:.3g} there; epsilon in grey levels goes with value_range=(0, 255)"
        )
    return radius


def per_example(radius: Shaped[Array, "..."], images: Float[Array, "n ..."]) -> Shaped[Array, "..."]:
    """A radius, one number or one for each example, with axes that broadcast with images."""
    return radius.reshape(-1, *(1,) * (images.ndim - 1)) if radius.ndim else radius


def project(
    points: Float[Array, "n ..."],
    images: Float[Array, "n ..."],
    radius: Float[Array, "..."],
    norm: str,
    value_range: ValueRange,
) -> Float[Array, "n ..."]:
    """Points moved into the balls around images and into the range of values.

    The range is clipped to last: as the images lie in it, that only brings points nearer to them.
    """
    perturbation = points - images
    radii = jnp.broadcast_to(per_example(radius, images), (*images.shape[:-3], 1, 1, 1))
    flat = perturbation.reshape(-1, *images.shape[-3:])
    projected = jax.vmap(BALLS[norm].project)(flat, radii.reshape(-1))
    return jnp.clip(images + projected.reshape(images.shape), *value_range)


def draw(
    key: Key, images: Float[Array, "n ..."], radius: Float[Array, "..."], norm: str, value_range: ValueRange
) -> Float[Array, "n ..."]:
    """Points drawn uniformly from the balls around images, clipped to the range of values."""
    perturbation = BALLS[norm].draw(key, images.shape, images.dtype)
    return jnp.clip(images + per_example(radius, images) * perturbation, *value_range)

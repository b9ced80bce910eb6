"""stAdv, a smooth flow in place of additive noise (Xiao et al., "Spatially transformed adversarial examples", 2018).

The paper penalises flows that are not smooth; here they are smooth by construction, and of bounded length.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts, radius_of
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.attacks.warp import Warp, checked_smoothness
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

SMOOTHNESS = 1.5
"""Standard deviation in pixels of the Gaussian that smooths flows, where none is given."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SpatialResult(AttackResult):
    """An `AttackResult` and the flow that made its images.

    Attributes:
        flow: `(n, ..., h, w, 2)`, displacements along y and x in pixels: `adversarial` at p is the image at
            p + flow(p).
    """

    flow: Float[Array, "n ... h w 2"]


def spatial(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    smoothness: ArrayLike = SMOOTHNESS,
    steps: int,
    step_size: Radius | None = None,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> SpatialResult:
    """Maximises an objective by moving each pixel, by at most `epsilon` pixels and smoothly.

    What varies is a field u of vectors no longer than epsilon. The flow is u smoothed by a Gaussian whose weights sum
    to 1, so no vector of it is longer; the image is sampled bilinearly at the displaced positions, which are kept
    within it, so no value leaves the image's own range. Steps go along the gradient, each vector of it made as long as
    the step: the steepest way where the longest vector is bounded.

    Args:
        objective: as in `pgd`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own flow.
        key: a key of `jax.random`.
        epsilon: the largest displacement, in *pixels*. One number, or one for each example.
        smoothness: standard deviation of the Gaussian, in pixels; 0 smooths nothing.
        steps: gradients that are computed.
        step_size: in pixels; None for 2.5 epsilon / steps.
        restarts: starts that are computed side by side, in as many times the memory.
        random_start: start with a smooth flow drawn at random, else with the image.
        value_range: black and white of the images.

    Returns:
        A `SpatialResult`.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    epsilon = radius_of("epsilon", epsilon, images, units="pixels")
    step_size = (
        2.5 * epsilon / steps if step_size is None else radius_of("step_size", step_size, images, units="pixels")
    )
    flows = _Flows(
        images=images,
        epsilon=epsilon,
        smoothness=checked_smoothness(smoothness, images, units="pixels"),
        step_size=step_size,
        random_start=random_start,
    )
    return cast(
        SpatialResult,
        search(as_pytree(objective, value_range), images, flows, key=as_key(key), steps=steps, restarts=restarts),
    )


def resample(images: Float[Array, "... h w c"], flow: Float[Array, "... h w 2"]) -> Float[Array, "... h w c"]:
    """Images sampled bilinearly at p + flow(p), positions clamped to the image.

    Args:
        images: any values and any number of channels.
        flow: displacements along y and x in pixels. Where one is a whole number the slope is that on its greater side.

    Returns:
        Convex combinations of each image's values; where the flow is 0, the very values.
    """
    *leading, height, width, channels = images.shape
    # The whole part and the rest of a displacement, not of a position, which float32 would round.
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
    dy = jnp.clip(flow[..., 0], -rows, height - 1 - rows)
    dx = jnp.clip(flow[..., 1], -columns, width - 1 - columns)
    down, right = (jax.lax.stop_gradient(jnp.floor(d)) for d in (dy, dx))
    v, u = (dy - down)[..., None], (dx - right)[..., None]
    top, left = rows + down.astype(jnp.int32), columns + right.astype(jnp.int32)
    # Each pixel with its three neighbours below and to the right, so that a position needs one look-up.
    padded = jnp.pad(images, [(0, 0)] * len(leading) + [(0, 1), (0, 1), (0, 0)], mode="edge")
    corners = [padded[..., i : i + height, j : j + width, :] for i in (0, 1) for j in (0, 1)]
    cells = jnp.concatenate(corners, axis=-1).reshape(*leading, height * width, 4 * channels)
    index = (top * width + left).reshape(*leading, height * width, 1)
    found = jnp.take_along_axis(cells, index, axis=-2).reshape(*leading, height, width, 4, channels)
    upper = found[..., 0, :] * (1 - u) + found[..., 1, :] * u
    lower = found[..., 2, :] * (1 - u) + found[..., 3, :] * u
    return upper * (1 - v) + lower * v


def _length(field: Float[Array, "... h w 2"]) -> Float[Array, "... h w 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(field), axis=-1, keepdims=True))


def _unit(field: Float[Array, "... h w 2"]) -> Float[Array, "... h w 2"]:
    """Each vector made of length 1; 0 where it is 0."""
    # Scaled first, as squares of small gradients underflow.
    largest = jnp.max(jnp.abs(field), axis=-1, keepdims=True)
    scaled = field / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.where(largest > 0, _length(scaled), 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Flows(Warp):
    axes: ClassVar[int] = 2

    def shape(self) -> tuple[int, ...]:
        return (*self.images.shape[:-1], 2)

    def length(self, field: Float[Array, "n ... h w 2"]) -> Float[Array, "n ... h w 1"]:
        return _length(field)

    def steepest(self, gradient: Float[Array, "n ... h w 2"]) -> Float[Array, "n ... h w 2"]:
        return _unit(gradient)

    def displaced(self, displacement: Float[Array, "n ... h w 2"]) -> Float[Array, "n ..."]:
        return resample(self.images, displacement)

    def report(self, result: AttackResult, variable: Float[Array, "n ... h w 2"]) -> SpatialResult:
        return SpatialResult(**vars(result), flow=self.displacement(variable))

"""Translations by whole pixels, which nobody sees (Ghildyal and Liu, "Shift-tolerant perceptual similarity metric").

The paper cuts two windows out of one larger image. Here there is only the image: what a shift brings in is reflected.
`rlpips_jax.evaluation.shift_robustness` cuts windows out of smaller images instead.
"""

from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts, radius_of
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import ByValues, Point
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ShiftResult(AttackResult):
    """An `AttackResult` and the shifts that made its images.

    Attributes:
        shift: `(n, 2)`, along y and x in pixels: `adversarial` at p is the image at p + shift.
    """

    shift: Int[Array, "n 2"]


def shift(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    steps: int,
    value_range: ValueRange = UNIT_RANGE,
) -> ShiftResult:
    """Maximises an objective by moving each image by at most `epsilon` whole pixels along either axis.

    There are (2 epsilon + 1)^2 such shifts. All are tried if they are no more than `steps`; otherwise `steps` different
    ones, drawn evenly from the square, row by row. Images are continued by reflection about their outermost pixels.
    The images of one example move together: for a `ranking` with `attacked="both"` the two distorted images do so
    against their reference, which is the paper's setting.

    Args:
        objective: as in `pgd`; it need not be differentiable.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`.
        key: a key of `jax.random`; without effect where all shifts are tried.
        epsilon: the largest shift, in *pixels*; a fraction is rounded down. One number, or one for each example.
        steps: shifts that are tried at most; as many tries where `epsilon` is traced.
        value_range: black and white of the images.

    Returns:
        A `ShiftResult`; the image itself where no shift is worse. Its trajectory has one entry per shift.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps)
    reach = jnp.broadcast_to(jnp.floor(radius_of("epsilon", epsilon, images, units="pixels")), images.shape[:1])
    if not isinstance(reach, Tracer):
        steps = min(steps, int(2 * np.max(reach, initial=0) + 1) ** 2)
    shifts = _Shifts(images, reach, steps)
    # The start is the first shift.
    return cast(
        ShiftResult, search(as_pytree(objective, value_range), images, shifts, key=as_key(key), steps=steps - 1)
    )


def translated(images: Float[Array, "n ... h w c"], shift: Int[Array, "n 2"]) -> Float[Array, "n ... h w c"]:
    """Images at p + shift, continued by reflection about their outermost pixels."""

    def one(image: Float[Array, "... h w c"], shift: Int[Array, "2"]) -> Float[Array, "... h w c"]:
        for axis, by in zip((-3, -2), shift, strict=True):
            last = image.shape[axis] - 1
            places = (jnp.arange(last + 1) + by) % max(2 * last, 1)
            image = jnp.take(image, jnp.minimum(places, 2 * last - places), axis=axis)
        return image

    return jax.vmap(one)(images, shift)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Shifts(ByValues):
    """The variable is a place in the list of all shifts, counted around."""

    images: Float[Array, "n ..."]
    reach: Float[Array, " n"]
    tries: int = field(metadata={"static": True})

    @property
    def count(self) -> Float[Array, " n"]:
        """How many shifts there are."""
        return jnp.square(2 * self.reach + 1)

    def start(self, key: Key) -> Float[Array, " n"]:
        return jnp.floor(self.count * jax.random.uniform(key, self.reach.shape, self.reach.dtype))

    def state(self, variable: Float[Array, " n"]) -> Float[Array, " n"]:
        return variable

    def step(self, state: Float[Array, " n"], point: Point) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        stride = jnp.maximum(self.count / self.tries, 1)
        # Less than a stride from the next one's earliest place, so that no shift is tried twice.
        jitter = (stride - 1) * jax.random.uniform(point.key, self.reach.shape, self.reach.dtype)
        return state, jnp.floor(state + (point.index + 1) * stride + jitter)

    def origin(self) -> Float[Array, " n"]:
        return (self.count - 1) / 2

    def render(self, variable: Float[Array, " n"]) -> Float[Array, "n ..."]:
        return translated(self.images, self._shift(variable))

    def report(self, result: AttackResult, variable: Float[Array, " n"]) -> ShiftResult:
        return ShiftResult(**vars(result), shift=self._shift(variable))

    def _shift(self, variable: Float[Array, " n"]) -> Int[Array, "n 2"]:
        reach = self.reach.astype(jnp.int32)
        side = 2 * reach + 1
        place = variable.astype(jnp.int32) % (side * side)
        return jnp.stack([place // side - reach, place % side - reach], axis=-1)

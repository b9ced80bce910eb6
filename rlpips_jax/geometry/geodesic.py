"""Shortest paths between two images under a distance."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import GeometryError, ImageError
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.geometry.descent import LATE, PUBLISHED, Descent, Size, descend, planned, reduced
from rlpips_jax.geometry.pair_distances import (
    AnyDistance,
    PairDistance,
    checked,
    from_unit_range,
    judged,
    needed_key,
    pair_distance,
    unit_range,
)
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


@dataclass(frozen=True, eq=False)
class Geodesic:
    """A discrete path between two images.

    Attributes:
        frames: `(n, h, w, 3)`, in `value_range`; the first and the last are the two images.
        distances: `(n - 1,)`, between neighbours; by a randomised metric means over 16 draws.
        objective: `(steps,)`, the minimised sum before every step, over all levels; the first ones are of reduced
            images.
    """

    frames: Float[Array, "n h w 3"]
    distances: Float[Array, " n-1"]
    objective: Float[np.ndarray, " steps"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["measured", "ends"], meta_fields=["exponent"])
@dataclass(frozen=True, eq=False)
class _Energy:
    """sum_i d(f_i, f_i+1)^exponent over the frames between two ends, and these."""

    measured: PairDistance
    ends: Any
    exponent: int | float

    def __call__(self, variable: Float[Array, "m h w 3"], key: Any) -> Float[Array, ""]:
        moving = self.measured.prepared(variable)
        path = jax.tree.map(lambda end, inner: jnp.concatenate([end[:1], inner, end[1:]]), self.ends, moving)
        left, right = (
            jax.tree.map(lambda leaf, part=part: leaf[part], path) for part in (slice(None, -1), slice(1, None))
        )
        return jnp.sum(self.measured.powers(left, right, key, self.exponent))


def geodesic(
    a: Images,
    b: Images,
    frames: int = 9,
    metric: AnyDistance | None = None,
    *,
    start: Images | None = None,
    key: PRNGKeyArray | None = None,
    value_range: ValueRange = UNIT_RANGE,
    descent: Descent = Descent(),  # noqa: B008, frozen
) -> Geodesic:
    """The discrete geodesic between two images: frames f_i that minimise sum_i d(f_i, f_i+1)^2, with fixed ends.

    All frames descend together, as in `average`, whose docstring says more.

    Args:
        a: the first frame, `(h, w, 3)`, uint8 or floats in `value_range`.
        b: the last frame, of the same size.
        frames: number of frames including the two ends, 3 or more.
        metric: as in `average`.
        start: frames `(frames, h, w, 3)` to begin from, of which the first and the last are ignored; None for
            `crossfade`.
        key: for all random draws; needed by randomised metrics and functions.
        value_range: black and white of floating-point images.
        descent: as in `average`, with a crossfade in place of the mean.

    Returns:
        The frames, and the distance from each to the next.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, differ in size, or are too small.
        GeometryError: an argument makes no sense, or the objective is not finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    chosen, measured = pair_distance(metric, descent.samples, descent.exponent)
    whole_number("frames", frames, minimum=3, error=GeometryError)
    a, b = (checked(image, value_range, name, chosen) for name, image in (("a", a), ("b", b)))
    first, last = (unit_range(image, value_range, name) for image, name in ((a, "a"), (b, "b")))
    _check_ends(first, last)
    ends = jnp.stack([first, last])
    if start is None:
        between = crossfade(first, last, frames)
    else:
        between = unit_range(start, value_range, "start", chosen)
        if between.shape != (frames, *first.shape):
            raise GeometryError(f"start must be the frames, {(frames, *first.shape)}, got {between.shape}")
    moving = between[1:-1]
    key = needed_key(key, measured.draws)
    run = {"what": "geodesic", "images": array_hash(np.asarray(ends)), "start": array_hash(np.asarray(moving))}
    schedule = LATE if start is None else PUBLISHED
    plan = planned(descent, moving.shape, metric=chosen, schedule=schedule, key=key, run=run | {"frames": frames})

    def objective_at(size: Size) -> _Energy:
        return _Energy(measured, measured.prepared(reduced(ends, size)), descent.exponent)

    found, objective = descend(moving, objective_at, plan)
    path = jnp.concatenate([ends[:1], found, ends[1:]])
    whole = _with_ends(from_unit_range(path, value_range), a, b)
    return Geodesic(whole, judged(measured, path[:-1], path[1:], key), objective)


def _with_ends(frames: Float[Array, "n h w 3"], a: Images, b: Images) -> Float[Array, "n h w 3"]:
    """Frames with the exact values of floats at the ends, which the conversion to [0, 1] and back has rounded."""
    for place, end in ((0, a), (-1, b)):
        if end.dtype != np.uint8:
            frames = frames.at[place].set(jnp.asarray(end, frames.dtype))
    return frames


def crossfade(a: Images, b: Images, frames: int, *, value_range: ValueRange = UNIT_RANGE) -> Float[Array, "n h w 3"]:
    """Frames on the straight line between two images: (1 - t) a + t b, t from 0 to 1 in equal steps.

    Args:
        a: the first frame, `(h, w, 3)`, uint8 or floats in `value_range`.
        b: the last frame, of the same size.
        frames: number of frames including the two ends, 2 or more.
        value_range: black and white of floating-point images, and of the frames.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in size.
        GeometryError: `frames` makes no sense.
    """
    whole_number("frames", frames, minimum=2, error=GeometryError)
    ends = (checked(image, value_range, name) for name, image in (("a", a), ("b", b)))
    # Only bytes are converted, so that floats at the ends keep their exact values.
    first, last = (
        from_unit_range(unit_range(end, value_range, "end"), value_range) if end.dtype == np.uint8 else jnp.asarray(end)
        for end in ends
    )
    _check_ends(first, last)
    share = jnp.linspace(0, 1, frames, dtype=jnp.promote_types(first.dtype, last.dtype))[:, None, None, None]
    return (1 - share) * first + share * last


def _check_ends(first: Array, last: Array) -> None:
    if first.ndim != 3 or first.shape != last.shape:
        raise ImageError(f"a and b must be two images (h, w, 3) of one size, got {first.shape} and {last.shape}")

"""Shortest paths between two images under a distance."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.errors import GeometryError, ImageError
from rlpips_jax.geometry.arguments import (
    check_count,
    check_exponent,
    checked,
    from_unit_range,
    in_unit_range,
    unit_range,
)
from rlpips_jax.geometry.comparison import JUDGMENTS, Comparison, compared_by, comparison, judged
from rlpips_jax.geometry.descent import (
    LATE,
    PUBLISHED,
    STEPS,
    Progress,
    Rate,
    Size,
    descend,
    planned,
    published_rate,
    reduced,
)
from rlpips_jax.geometry.signatures import digest
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


class Geodesic(NamedTuple):
    """A discrete path between two images.

    Attributes:
        frames: `(n, h, w, 3)`, in `value_range`; the first and the last are the two images.
        distances: `(n - 1,)`, between neighbours; of a randomised metric means over 16 draws.
        objective: `(steps,)`, what was minimised, before every step, over all levels; the first ones are of reduced
            images.
    """

    frames: Float[Array, "n h w 3"]
    distances: Float[Array, " n-1"]
    objective: Float[np.ndarray, " steps"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["compared", "ends"], meta_fields=["exponent"])
@dataclass(frozen=True, eq=False)
class _Energy:
    """sum_i d(f_i, f_i+1)^exponent over the frames between two ends, and these."""

    compared: Comparison
    ends: Any
    exponent: int | float

    def __call__(self, variable: Float[Array, "m h w 3"], key: Any) -> Float[Array, ""]:
        moving = self.compared.prepared(variable)
        path = jax.tree.map(lambda end, inner: jnp.concatenate([end[:1], inner, end[1:]]), self.ends, moving)
        left, right = (
            jax.tree.map(lambda leaf, part=part: leaf[part], path) for part in (slice(None, -1), slice(1, None))
        )
        return jnp.sum(self.compared.powers(left, right, key, self.exponent))


def geodesic(
    a: Images,
    b: Images,
    frames: int = 9,
    metric: Any = None,
    *,
    start: Any = None,
    steps: int | Sequence[int] = STEPS,
    coarsest: int = 64,
    exponent: float | int = 2,
    rate: Rate = published_rate,
    begin: float | int | None = None,
    pace: float | int | None = None,
    key: Any = None,
    samples: int = 2,
    value_range: ValueRange = UNIT_RANGE,
    snapshot: str | PathLike[str] | None = None,
    progress: bool = False,
    watch: Callable[[Progress], Any] | None = None,
) -> Geodesic:
    """The discrete geodesic between two images: frames f_i that minimise sum_i d(f_i, f_i+1)^2, with fixed ends.

    All frames descend together, as in `average`; whose docstring says more.

    Args:
        a: the first frame, `(h, w, 3)`, uint8 or floats in `value_range`.
        b: the last frame, of the same size.
        frames: how many there are with these two, 3 or more.
        metric: as in `average`.
        start: frames `(frames, h, w, 3)` to begin from, of which the first and the last are not looked at; None for
            `crossfade`.
        steps: as in `average`.
        coarsest: as in `average`.
        exponent: as in `average`.
        rate: as in `average`.
        begin: as in `average`, with a crossfade in place of the mean.
        pace: as in `average`, with a crossfade in place of the mean.
        key: of everything drawn; needed by randomised metrics and functions.
        samples: as in `average`.
        value_range: black and white of floating-point images.
        snapshot: as in `average`.
        progress: as in `average`.
        watch: as in `average`.

    Returns:
        The frames, and how far each is from the next.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, differ in size, or are too small.
        GeometryError: an argument makes no sense, or the objective is not finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    power = check_exponent(exponent)
    metric, compared = compared_by(metric, samples, power)
    check_count("frames", frames, least=3)
    a, b = (checked(image, value_range, name, metric) for name, image in (("a", a), ("b", b)))
    first, last = (unit_range(image, value_range) for image in (a, b))
    if first.ndim != 3 or first.shape != last.shape:
        raise ImageError(f"a and b must be two images (h, w, 3) of one size, got {first.shape} and {last.shape}")
    ends = jnp.stack([first, last])
    if start is None:
        between = crossfade(first, last, frames)
    else:
        between = in_unit_range(start, value_range, "start", metric)
        if between.shape != (frames, *first.shape):
            raise GeometryError(f"start must be the frames, {(frames, *first.shape)}, got {between.shape}")
    moving = between[1:-1]
    run = {"what": "geodesic", "images": digest(np.asarray(ends)), "start": digest(np.asarray(moving))}
    plan = planned(
        moving.shape,
        metric=metric,
        steps=steps,
        coarsest=coarsest,
        rate=rate,
        schedule=LATE if start is None else PUBLISHED,
        begin=begin,
        pace=pace,
        key=key,
        drawing=compared.drawing,
        snapshot=snapshot,
        progress=progress,
        watch=watch,
        run={**run, "frames": frames, "exponent": power, "samples": samples},
    )

    def objective_at(size: Size) -> _Energy:
        return _Energy(compared, compared.prepared(reduced(ends, size)), power)

    found, objective = descend(moving, objective_at, plan)
    path = jnp.concatenate([ends[:1], found, ends[1:]])
    distances = judged(comparison(metric, JUDGMENTS), path[:-1], path[1:], plan.key)
    whole = from_unit_range(path, value_range)
    # Floats there and back differ by their rounding.
    for place, end in ((0, a), (-1, b)):
        if end.dtype != np.uint8:
            whole = whole.at[place].set(jnp.asarray(end, whole.dtype))
    return Geodesic(whole, distances, objective)


def crossfade(a: Images, b: Images, frames: int, *, value_range: ValueRange = UNIT_RANGE) -> Float[Array, "n h w 3"]:
    """Frames that lead from one image to another in a straight line: (1 - t) a + t b, t from 0 to 1 in equal steps.

    Args:
        a: the first frame, `(h, w, 3)`, uint8 or floats in `value_range`.
        b: the last frame, of the same size.
        frames: how many there are with these two, 2 or more.
        value_range: black and white of floating-point images, and of the frames.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in size.
        GeometryError: `frames` makes no sense.
    """
    check_count("frames", frames, least=2)
    ends = (checked(image, value_range, name) for name, image in (("a", a), ("b", b)))
    # Bytes alone are converted, so that ends of floats stay exactly what they are.
    first, last = (
        from_unit_range(unit_range(end, value_range), value_range) if end.dtype == np.uint8 else jnp.asarray(end)
        for end in ends
    )
    if first.ndim != 3 or first.shape != last.shape:
        raise ImageError(f"a and b must be two images (h, w, 3) of one size, got {first.shape} and {last.shape}")
    share = jnp.linspace(0, 1, frames, dtype=jnp.promote_types(first.dtype, last.dtype))[:, None, None, None]
    return (1 - share) * first + share * last

"""Averages of images under a distance."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import GeometryError
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.geometry.descent import LATE, PUBLISHED, Descent, Size, descend, planned, reduced
from rlpips_jax.geometry.pair_distances import (
    NOISE,
    AnyDistance,
    PairDistance,
    from_unit_range,
    judged,
    needed_key,
    pair_distance,
    unit_range,
)
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

STARTS = ("mean", "noise")
"""Where an average may begin: the mean of all images, or grey noise, 0.5 + 0.2 N(0, 1), as in E-LPIPS."""


@dataclass(frozen=True, eq=False)
class Average:
    """The average of images.

    Attributes:
        image: `(h, w, 3)`, in `value_range`.
        distances: `(n,)`, from each image to it; by a randomised metric means over 16 draws.
        objective: `(steps,)`, the minimised sum before every step, over all levels; the first ones are of reduced
            images.
    """

    image: Float[Array, "h w 3"]
    distances: Float[Array, " n"]
    objective: Float[np.ndarray, " steps"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["measured", "prepared"],
    meta_fields=["exponent", "count", "per_step"],
)
@dataclass(frozen=True, eq=False)
class _Spread:
    """sum_i d(x_i, image)^exponent, estimated from `per_step` of `count` images; unbiased where the powers are."""

    measured: PairDistance
    prepared: Any
    exponent: int | float
    count: int
    per_step: int

    def __call__(self, variable: Float[Array, "1 h w 3"], key: Any) -> Float[Array, ""]:
        choosing, comparing = jax.random.split(key)
        prepared: Any = self.prepared
        if self.per_step < self.count:
            chosen = jax.random.choice(choosing, self.count, (self.per_step,), replace=False)
            prepared = jax.tree.map(lambda leaf: leaf[chosen], prepared)
        image: Any = self.measured.prepared(variable)
        powers = self.measured.powers(prepared, image, comparing, self.exponent)
        return jnp.sum(powers) * (self.count / self.per_step)


def average(
    images: Images,
    metric: AnyDistance | None = None,
    *,
    start: str | Images = "mean",
    images_per_step: int | None = None,
    key: PRNGKeyArray | None = None,
    value_range: ValueRange = UNIT_RANGE,
    descent: Descent = Descent(),  # noqa: B008, frozen
) -> Average:
    """The barycenter of images: the image b that minimises sum_i d(x_i, b)^2.

    Adam, with a projection onto the range of values after each step, first on reduced images (height and width halved
    repeatedly), then on finer ones. With E-LPIPS and from noise this is the average of Kettunen et al. 2019, who take
    100,000 steps at full size.

    Args:
        images: `(n, h, w, 3)` with n of 2 or more, uint8 or floats in `value_range`.
        metric: from `rlpips_jax.load`, or your own; None for "lpips-alex". Or a function `x, y, key -> (n,)` of images
            in [0, 1], differentiable; give it arrays that vary between calls by a `jax.tree_util.Partial`.
        start: one of `STARTS`, or an image `(h, w, 3)`.
        images_per_step: how many images, chosen at random, each step compares: less work with many images and a
            randomised metric (for others the images' features are computed once). None for all.
        key: for all random draws; needed for "noise", randomised metrics, functions, and `images_per_step`.
        value_range: black and white of floating-point images.
        descent: steps, schedule, exponent, samples, and where the state is kept.

    Returns:
        The average, and its distance from each image; the start, if the descent found nothing better.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are too small for the metric.
        GeometryError: an argument makes no sense, or the objective is not finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    chosen, measured = pair_distance(metric, descent.samples, descent.exponent)
    x = unit_range(images, value_range, "images", chosen)
    if x.ndim != 4 or len(x) < 2:
        raise GeometryError(f"images must be a batch of two or more, (n, h, w, 3), got shape {x.shape}")
    count = len(x)
    per_step = count
    if images_per_step is not None:
        per_step = whole_number("images_per_step", images_per_step, maximum=count, error=GeometryError)
    noise = "noise" if isinstance(start, str) and start == "noise" else ""
    key = needed_key(key, measured.draws or noise or ("images_per_step" if per_step < count else ""))
    first = _start(start, x, key, value_range)
    run = {"what": "average", "images": array_hash(np.asarray(x)), "start": array_hash(np.asarray(first))}
    schedule = LATE if isinstance(start, str) and start == "mean" else PUBLISHED
    plan = planned(descent, x.shape, metric=chosen, schedule=schedule, key=key, run=run | {"images_per_step": per_step})

    def objective_at(size: Size) -> _Spread:
        return _Spread(measured, measured.prepared(reduced(x, size)), descent.exponent, count, per_step)

    found, objective = descend(first, objective_at, plan)
    candidates = [(judged(measured, x, image, key), image) for image in (found, first)]
    # Few steps, or too long ones, can end above the start.
    distances, image = min(candidates, key=lambda pair: float(jnp.sum(pair[0] ** descent.exponent)))
    return Average(from_unit_range(image[0], value_range), distances, objective)


def _start(
    start: str | Images, images: Float[Array, "n h w 3"], key: PRNGKeyArray, value_range: ValueRange
) -> Float[Array, "1 h w 3"]:
    """The image to begin with, in [0, 1]."""
    if isinstance(start, str):
        if start not in STARTS:
            raise GeometryError(f"start must be one of {', '.join(STARTS)}, or an image (h, w, 3), got {start!r}")
        if start == "mean":
            return images.mean(axis=0, keepdims=True)
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), (1, *images.shape[1:]), images.dtype)
        return jnp.clip(0.5 + 0.2 * noise, 0, 1)
    image = unit_range(start, value_range, "start")
    if image.shape != images.shape[1:]:
        raise GeometryError(f"start must be of the images' size, {images.shape[1:]}, got {image.shape}")
    return image[None]

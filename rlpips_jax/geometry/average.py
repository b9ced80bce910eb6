"""Averages of images under a distance."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.errors import GeometryError
from rlpips_jax.geometry.arguments import check_count, check_exponent, from_unit_range, in_unit_range
from rlpips_jax.geometry.comparison import JUDGMENTS, NOISE, Comparison, compared_by, comparison, judged
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

STARTS = ("mean", "noise")
"""Where an average may begin: the mean of all pixels, or grey noise, 0.5 + 0.2 N(0, 1), as E-LPIPS's authors do."""


class Average(NamedTuple):
    """The average of images.

    Attributes:
        image: `(h, w, 3)`, in `value_range`.
        distances: `(n,)`, of each image from it; of a randomised metric means over 16 draws.
        objective: `(steps,)`, what was minimised, before every step, over all levels; the first ones are of reduced
            images.
    """

    image: Float[Array, "h w 3"]
    distances: Float[Array, " n"]
    objective: Float[np.ndarray, " steps"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["compared", "prepared"], meta_fields=["exponent", "count", "drawn"]
)
@dataclass(frozen=True, eq=False)
class _Spread:
    """sum_i d(x_i, image)^exponent, estimated from `drawn` of `count` images; without bias where `powers` have none."""

    compared: Comparison
    prepared: Any
    exponent: int | float
    count: int
    drawn: int

    def __call__(self, variable: Float[Array, "1 h w 3"], key: Any) -> Float[Array, ""]:
        choosing, comparing = jax.random.split(key)
        prepared: Any = self.prepared
        if self.drawn < self.count:
            chosen = jax.random.choice(choosing, self.count, (self.drawn,), replace=False)
            prepared = jax.tree.map(lambda leaf: leaf[chosen], prepared)
        image: Any = self.compared.prepared(variable)
        return jnp.sum(self.compared.powers(image, prepared, comparing, self.exponent)) * (self.count / self.drawn)


def average(
    images: Images,
    metric: Any = None,
    *,
    start: Any = "mean",
    steps: int | Sequence[int] = STEPS,
    coarsest: int = 64,
    exponent: float | int = 2,
    rate: Rate = published_rate,
    begin: float | int | None = None,
    pace: float | int | None = None,
    images_per_step: int | None = None,
    key: Any = None,
    samples: int = 2,
    value_range: ValueRange = UNIT_RANGE,
    snapshot: str | PathLike[str] | None = None,
    progress: bool = False,
    watch: Callable[[Progress], Any] | None = None,
) -> Average:
    """The barycenter of images: the image b that minimises sum_i d(x_i, b)^2.

    Descends with Adam, projecting into the range of values after each step, first on reduced images (their height and
    width halved, again and again), then on finer ones. With E-LPIPS and from noise this is the average of Kettunen et
    al. 2019, who take 100,000 steps at full size.

    Args:
        images: `(n, h, w, 3)` with n of 2 or more, uint8 or floats in `value_range`.
        metric: a `Metric` or a randomised metric, from `rlpips_jax.load`; None for "lpips-alex". Or a function
            `x, y, key -> (n,)` of images in [0, 1], differentiable; what varies between calls is best given to it by a
            `jax.tree_util.Partial`.
        start: one of `STARTS`, or an image `(h, w, 3)`.
        steps: of each level, from coarse to fine; one number for all of them.
        coarsest: smallest height or width that images are reduced to, in pixels.
        exponent: of the distances. LPIPS is itself a mean of squares: 1 minimises the sum of squares of its root.
        rate: learning rate by the time t, in units of the whole range of values.
        begin: t at the first step of each level. None for 0, as published, from noise and from an image given, which
            may be far away; and for 2,000 from the mean, which is near: the full rate would lead away from it.
        pace: by how much t grows with each step. None for 1, as published, or 50 from the mean.
        images_per_step: of how many images, drawn anew, each step takes the distance: less work with many images and
            a randomised metric (others know all images beforehand). None for all.
        key: of everything drawn; needed from "noise", by randomised metrics and functions, and for `images_per_step`.
        samples: draws of a randomised metric in each step. Squares are estimated by the product of the means of two
            halves of them, rounded up, as the square of one mean would add its variance to what is minimised.
            Exponents other than 1 and 2 have such a bias, which falls with the number of samples. A function is called
            once, for squares twice.
        value_range: black and white of floating-point images.
        snapshot: file that the state is kept in, every ten seconds and in the end. If it is there, the descent goes on
            from it, to the same result bit for bit; one of another run is refused. A function is known by its code
            and all that it uses, or by a text that it has as an attribute `signature`.
        progress: draw a progress bar (on a terminal).
        watch: is called after every `BLOCK` steps with a `Progress`; what it raises ends the descent, after a snapshot.

    Returns:
        The average, and how far each image is from it.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are too small for the metric.
        GeometryError: an argument makes no sense, or the objective is not finite.
        SnapshotError: the snapshot cannot be read or written, or is of another run.
    """
    power = check_exponent(exponent)
    metric, compared = compared_by(metric, samples, power)
    x = in_unit_range(images, value_range, "images", metric)
    if x.ndim != 4 or len(x) < 2:
        raise GeometryError(f"images must be a batch of two or more, (n, h, w, 3), got shape {x.shape}")
    count = len(x)
    per_step = count if images_per_step is None else check_count("images_per_step", images_per_step, most=count)
    first = _start(start, x, key, value_range)
    near = isinstance(start, str) and start == "mean"
    run = {"what": "average", "images": digest(np.asarray(x)), "start": digest(np.asarray(first))}
    plan = planned(
        x.shape,
        metric=metric,
        steps=steps,
        coarsest=coarsest,
        rate=rate,
        schedule=LATE if near else PUBLISHED,
        begin=begin,
        pace=pace,
        key=key,
        drawing=compared.drawing or ("images_per_step" if per_step < count else ""),
        snapshot=snapshot,
        progress=progress,
        watch=watch,
        run={**run, "exponent": power, "images_per_step": per_step, "samples": samples},
    )

    def objective_at(size: Size) -> _Spread:
        return _Spread(compared, compared.prepared(reduced(x, size)), power, count, per_step)

    found, objective = descend(first, objective_at, plan)
    distances = judged(comparison(metric, JUDGMENTS), found, x, plan.key)
    return Average(from_unit_range(found[0], value_range), distances, objective)


def _start(start: Any, images: Float[Array, "n h w 3"], key: Any, value_range: ValueRange) -> Float[Array, "1 h w 3"]:
    """Where to begin, in [0, 1]."""
    if isinstance(start, str):
        if start not in STARTS:
            raise GeometryError(f"start must be one of {', '.join(STARTS)}, or an image (h, w, 3), got {start!r}")
        if start == "mean":
            return images.mean(axis=0, keepdims=True)
        if key is None:
            raise GeometryError("noise is drawn, and needs a key: pass key=jax.random.key(0)")
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), (1, *images.shape[1:]), images.dtype)
        return jnp.clip(0.5 + 0.2 * noise, 0, 1)
    image = in_unit_range(start, value_range, "start")
    if image.shape != images.shape[1:]:
        raise GeometryError(f"start must be of the images' size, {images.shape[1:]}, got {image.shape}")
    return image[None]

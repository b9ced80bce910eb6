"""Estimates of a random metric with their standard errors, and which of several images is closest.

Samples are drawn in blocks. Each block is an unbiased estimate by the ensemble's estimator, and blocks are independent,
so that their spread gives the error even where samples within a block depend on each other. The number of blocks is
decided on the host, between calls of one compiled program.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.arguments import Key, check_key
from rlpips_jax.distances.distance import check_metric, distance
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.ensemble.ensemble import FeaturesOf, check_samples, distances
from rlpips_jax.ensemble.sampling import at_once
from rlpips_jax.errors import EnsembleError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, float_dtype, to_unit
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blocks import filled_blocks

BLOCK = 8
"""Samples of a block."""
BLOCKS = 8
"""Blocks per call, and the fewest from which an error is computed."""
ESTIMATE, COMPARE = 0x657374, 0x636D70
"""What the user's key is folded with, so that the draws are not those of `distance` or an attack by the same key."""
LEVEL = 0.95
"""Of the interval that `estimate` stops by, and of the confidence that `compare` stops at."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A distance by E-LPIPS and its error, with the leading axes of the images.

    Attributes:
        mean: the distance.
        standard_error: of the mean.
        samples: transformations that were averaged.
    """

    mean: Float[np.ndarray, "..."]
    standard_error: Float[np.ndarray, "..."]
    samples: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which of several images is closest to a reference.

    Attributes:
        closest: its index.
        confidence: 1 minus an upper bound of the probability of so clear a result if another image were closest. A
            value of 0.5 or less says nothing.
        distances: `(k,)`, of each image.
        standard_errors: `(k,)`, of the distances; 0 by a metric that is not random.
        differences: `(k,)`, each distance less that of the closest.
        difference_errors: `(k,)`, their standard errors, smaller than those of distances: all images of a sample get
            the same transformation and masks.
        samples: transformations that were averaged; 0 by a metric that is not random.
    """

    closest: int
    confidence: float
    distances: Float[np.ndarray, " k"]
    standard_errors: Float[np.ndarray, " k"]
    differences: Float[np.ndarray, " k"]
    difference_errors: Float[np.ndarray, " k"]
    samples: int


def estimate(
    x: Images,
    y: Images,
    ensemble: RandomMetric,
    *,
    key: Key,
    relative_error: float | int = 0.025,
    absolute_error: float | int = 0.01,
    max_samples: int = 5000,
    value_range: ValueRange = UNIT_RANGE,
) -> Estimate:
    """E-LPIPS to a wanted accuracy: draws until it is reached for every pair.

    A pair is done when its interval of 95 % (Student's, of the blocks) is within `relative_error` of the distance or
    within `absolute_error`, whichever is wider. This is checked after 64 samples, 128, 256, ... and at the end; the
    chance of error is divided by the number of checks, so that the interval holds although it decides when to stop.
    Not for `jit`: the number of draws depends on values.

    Args:
        x: images `(..., h, w, 3)`, uint8 or floats in `value_range`.
        y: images of the same shape.
        ensemble: from `rlpips_jax.load("elpips-squeeze")`.
        key: a key of `jax.random`; the same key gives the same numbers.
        relative_error: half the interval, as a share of the distance.
        absolute_error: half the interval, in units of the distance.
        max_samples: 16 or more, where drawing ends in any case.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
        EnsembleError: `ensemble` is not random, there is no key, or a number makes no sense.
    """
    _check_ensemble(ensemble)
    key = check_key(ensemble.name, key, error=EnsembleError)
    for name, wanted in (("relative_error", relative_error), ("absolute_error", absolute_error)):
        if not (_is_number(wanted) and 0 <= wanted < np.inf):
            raise EnsembleError(f"{name} must be a number, 0 or more, got {wanted!r}")
    most = _most_calls(max_samples)
    value_range = check_value_range(value_range)
    x, y = check_images(value_range, x=x, y=y, minimum_size=ensemble.minimum_size, user=ensemble.name)
    from scipy import stats

    key = jax.random.fold_in(key, ESTIMATE)
    size = _block_size(max_samples)
    blocks: list[Float[np.ndarray, "blocks ..."]] = []
    call = 0
    while True:
        call_key = jax.random.fold_in(key, call)
        blocks.extend(np.asarray(_distance_blocks(ensemble, x, y, call_key, samples=size, value_range=value_range)))
        call += 1
        if not _is_look(call, most):
            continue
        mean, error = _mean_and_error(np.asarray(blocks, np.float64))
        reach = stats.t.ppf(1 - (1 - LEVEL) / 2 / _looks(most), len(blocks) - 1) * error
        if call == most or np.all(reach <= np.maximum(relative_error * np.abs(mean), absolute_error)):
            return Estimate(mean, error, len(blocks) * size)


def compare(
    reference: Images,
    images: Images,
    metric: Metric | RandomMetric,
    *,
    key: Key | None = None,
    confidence: float | int = LEVEL,
    max_samples: int = 4096,
    value_range: ValueRange = UNIT_RANGE,
    progress: Callable[[Comparison], object] | None = None,
) -> Comparison:
    """Which of several images is closest to a reference.

    A random metric compares all images under the same draws (common random numbers), so that a difference is known far
    better than the two distances. After 64 samples, 128, 256, ... and at the end, Student's test on the differences of
    blocks decides whether the closest image is known with the wanted confidence; the probabilities of error are summed
    over the other images and multiplied by the largest possible number of such tests. Identical images count as one; if
    they are the closest, the confidence is 0 and drawing ends.

    Args:
        reference: `(h, w, 3)`, uint8 or floats in `value_range`.
        images: `(k, h, w, 3)`, k of 2 or more.
        metric: an Ensemble, or a Metric, whose distances have no error.
        key: of an ensemble, a key of `jax.random`.
        confidence: at which drawing ends, below 1.
        max_samples: 16 or more, the limit; samples are drawn 64 at a time.
        value_range: black and white of floating-point images.
        progress: of an ensemble, called with the result so far after every 64 samples; an exception from it ends the
            search.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in size.
        MetricError: `metric` is not a metric.
        EnsembleError: an ensemble without a key, or a number makes no sense.
    """
    metric = metric if is_random(metric) else check_metric(metric)
    value_range = check_value_range(value_range)
    (reference,), (images,) = (
        check_images(value_range, minimum_size=metric.minimum_size, user=metric.name, **{name: array})
        for name, array in (("reference", reference), ("images", images))
    )
    if reference.ndim != 3 or images.ndim != 4 or len(images) < 2 or images.shape[1:] != reference.shape:
        raise ImageError(
            f"one reference (h, w, 3) and two images or more (k, h, w, 3) of its size are needed, got "
            f"{reference.shape} and {images.shape}"
        )
    if not (_is_number(confidence) and 0 < confidence < 1):
        raise EnsembleError(f"confidence must lie between 0 and 1, got {confidence!r}")
    if not is_random(metric):
        copies = np.broadcast_to(np.asarray(reference), images.shape)
        found = np.asarray(distance(copies, images, metric, value_range=value_range), np.float64)
        return _comparison(np.stack([found, found]), looks=1, samples=0)
    key = check_key(metric.name, key, error=EnsembleError)
    most, size = _most_calls(max_samples), _block_size(max_samples)
    looks = _looks(most)
    key = jax.random.fold_in(key, COMPARE)
    first, which = _distinct(images)
    images = images[np.asarray(first)]
    blocks: list[Float[np.ndarray, "blocks k"]] = []
    call = 0
    while True:
        drawn = _comparison_blocks(
            metric, reference, images, jax.random.fold_in(key, call), samples=size, value_range=value_range
        )
        blocks.extend(np.asarray(drawn))
        call += 1
        look = _is_look(call, most)
        if not look and progress is None:
            continue
        found = _comparison(np.asarray(blocks, np.float64), looks, len(blocks) * size)
        result = _of_all(found, which)
        if progress is not None:
            progress(result)
        if call == most or (look and found.confidence >= confidence):
            return result


def _distinct(images: Images) -> tuple[list[int], list[int]]:
    """The places of the first of each set of identical images, and for each image which of these it is."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in np.asarray(images)]
    first = list(dict.fromkeys(digests))
    return [digests.index(digest) for digest in first], [first.index(digest) for digest in digests]


def _of_all(found: Comparison, which: list[int]) -> Comparison:
    """The comparison of all images, given that of those that differ."""
    columns = ("distances", "standard_errors", "differences", "difference_errors")
    return replace(
        found,
        closest=which.index(found.closest),
        confidence=found.confidence if which.count(found.closest) == 1 else 0.0,
        **{name: getattr(found, name)[which] for name in columns},
    )


def _check_ensemble(ensemble: Any) -> None:
    if not is_random(ensemble):
        raise EnsembleError(
            f"an Ensemble is needed, such as rlpips_jax.load('elpips-squeeze'), got {type(ensemble).__name__}; what is "
            "not random needs no estimate"
        )


def _looks(most: int) -> int:
    """How often results are looked at in so many calls: after 1, 2, 4, ... of them, and after the last."""
    return (most - 1).bit_length() + 1


def _is_look(calls: int, most: int) -> bool:
    """Whether results are looked at after so many calls."""
    return not calls & (calls - 1) or calls == most


def _is_number(number: Any) -> bool:
    return isinstance(number, int | float | np.number) and not isinstance(number, bool)


def _block_size(max_samples: int) -> int:
    return min(BLOCK, max_samples // BLOCKS)


def _most_calls(max_samples: Any) -> int:
    """How many calls of the program the samples are enough for.

    Raises:
        EnsembleError: not for one.
    """
    if max_samples is None or check_samples(max_samples, "max_samples") < 2 * BLOCKS:
        raise EnsembleError(f"max_samples must be {2 * BLOCKS} or more, to tell an error from, got {max_samples}")
    return max_samples // (_block_size(max_samples) * BLOCKS)


def _mean_and_error(
    blocks: Float[np.ndarray, "blocks ..."],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    error = blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))
    # Of a single pair NumPy gives numbers, not arrays.
    return np.asarray(blocks.mean(axis=0)), np.asarray(error)


def _comparison(blocks: Float[np.ndarray, "blocks k"], looks: int, samples: int) -> Comparison:
    from scipy import stats

    mean, error = _mean_and_error(blocks)
    closest = int(np.argmin(mean))
    differences, errors = _mean_and_error(blocks - blocks[:, closest : closest + 1])
    others = np.arange(len(mean)) != closest
    sure = np.where(differences > 0, 0.0, 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = np.where(errors > 0, stats.t.sf(differences / errors, len(blocks) - 1), sure)
    return Comparison(
        closest=closest,
        confidence=float(max(0.0, 1 - looks * chances[others].sum())),
        distances=mean,
        standard_errors=error,
        differences=differences,
        difference_errors=errors,
        samples=samples,
    )


@functools.partial(jax.jit, static_argnames=("samples", "value_range"))
@automatic_axes()
def _distance_blocks(
    ensemble: RandomMetric, x: Images, y: Images, key: Key, *, samples: int, value_range: ValueRange
) -> Float[Array, "blocks ..."]:
    def block(key: Key) -> Float[Array, "..."]:
        return distance(x, y, ensemble, key=key, samples=samples, value_range=value_range)

    return jax.lax.map(block, jax.random.split(key, BLOCKS))


@functools.partial(jax.jit, static_argnames=("samples", "value_range"))
@automatic_axes()
def _comparison_blocks(
    ensemble: RandomMetric, reference: Images, images: Images, key: Key, *, samples: int, value_range: ValueRange
) -> Float[Array, "blocks k"]:
    images = images[None]
    arguments = tuple(to_unit(each, value_range, float_dtype(each)) for each in (reference[None, None], images))

    def block(key: Key) -> Float[Array, " k"]:
        return ensemble.expectation(_to_reference, arguments, key=key, samples=samples)[0]

    return jax.lax.map(block, jax.random.split(key, BLOCKS))


def _to_reference(
    metric: Metric, features_of: FeaturesOf, arguments: tuple[Float[Array, "n 1 h w 3"], Float[Array, "n k h w 3"]]
) -> Float[Array, "n k"]:
    reference, images = arguments
    features = features_of(reference)
    k, height, width, _ = images.shape[1:]

    def block(images: Float[Array, "j h w 3"]) -> Float[Array, " j"]:
        return distances(metric, features, features_of(images[None]), reference, images[None])[0]

    most = at_once(1, height, width, getattr(metric, "max_batch", None))
    if k <= most:
        return block(images[0])[None]
    return jax.lax.map(block, filled_blocks(images[0], most)).reshape(1, -1)[:, :k]

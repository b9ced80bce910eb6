"""A proven interval for a distance under an l2 change of an image: median smoothing (Chiang et al. 2020).

Let d(e) be the distance of x and y + e with e ~ N(0, sigma^2 I), and q(p) the quantile of d at p. The *smoothed*
distance is the median q(1/2). For every y + delta with |delta|_2 <= r it lies within

    q(Phi(-r / sigma)) <= q(1/2 | y + delta) <= q(Phi(r / sigma)),        Phi the normal distribution function,

whatever the metric; of a randomised one the quantiles are over its draws too. They are bounded by order statistics.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rlpips_jax.arguments import check_key
from rlpips_jax.attacks.expectations import Randomness, distance_objective
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import CertificateError
from rlpips_jax.evaluation.certification import (
    NoiseKeys,
    Smoothing,
    batch_of_floats,
    check_radii,
    noise_keys,
    values_under_noise,
)
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceCertificate:
    """The proven intervals of the smoothed distances of n pairs.

    The interval of each pair and radius holds with probability 1 - alpha or more, over the noise.

    Attributes:
        median: `(n,)`, of the draws: an estimate of the smoothed distance.
        radii: `(r,)`, l2, in units of the value range.
        low: `(n, r)`, the smoothed distance is at least this under every change of l2 norm up to the radius; 0 where
            the draws are too few to prove more.
        high: `(n, r)`, it is at most this; infinite where the draws are too few.
        smoothing: the noise and the number of draws.
    """

    median: Float[np.ndarray, " n"]
    radii: Float[np.ndarray, " r"]
    low: Float[np.ndarray, "n r"]
    high: Float[np.ndarray, "n r"]
    smoothing: Smoothing


def certify_distance(
    metric: Metric | RandomMetric,
    x: Images,
    y: Images,
    smoothing: Smoothing,
    *,
    radii: Float[np.ndarray, " r"] | Sequence[float | int],
    key: PRNGKeyArray,
    value_range: ValueRange = UNIT_RANGE,
    draws: int = 1,
) -> DistanceCertificate:
    """The smoothed distance of each pair, and the interval that it cannot leave when y changes.

    Noise is not clipped to the value range, and a metric sees it: under noise of 0.1 the distance of two equal images
    is not 0. What is proven is about the smoothed distance, not about the distance itself.

    Args:
        metric: from `rlpips_jax.load`, or your own. A randomised one draws anew with every draw of noise.
        x: `(n, h, w, 3)`, uint8 or floats in `value_range`: the images that stay as they are.
        y: images of the same shape, which may change.
        smoothing: the noise and the number of draws; `selection_samples` are not needed here.
        radii: l2 norms of the change, over all numbers of an image, in units of the value range: 36/255 is .141.
        key: a key of `jax.random`. The draws of a pair depend on it and on the place of the pair.
        value_range: black and white of floating-point images, and of uint8 ones after conversion to floats.
        draws: of a randomised metric: a distance under noise is the mean over so many.

    Returns:
        NumPy arrays; this cannot be called under `jit`. One compiled program serves every sigma, alpha and radius.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are not batches of one shape.
        CertificateError: a radius is negative or not a number, or the key is not one.
        EnsembleError: `draws` is not a whole number of 1 or more.
    """
    randomness = Randomness(draws=draws)
    value_range = check_value_range(value_range)
    key = check_key("the noise", key, error=CertificateError)
    asked = check_radii(radii)
    check_images(value_range, x=x, y=y, minimum_size=metric.minimum_size, user=metric.name)
    x, y = batch_of_floats(x, value_range), batch_of_floats(y, value_range)
    objective = distance_objective(metric, x, randomness=randomness, key=key, value_range=value_range)
    values = _values(objective, y, key, smoothing)
    if bad := np.count_nonzero(~np.isfinite(values)):
        raise CertificateError(f"{bad} of {values.size} distances under noise are NaN or infinite")
    ordered = np.sort(values, axis=0)
    highest = [order_statistic(p, smoothing.samples, smoothing.alpha / 2) for p in _quantiles(asked, smoothing)]
    # The bounds of q(1 - p) are those of q(p) counted from the other end.
    low = np.stack([_at(ordered[::-1], place, 0.0) for place in highest], axis=1)
    high = np.stack([_at(ordered, place, np.inf) for place in highest], axis=1)
    return DistanceCertificate(median=np.median(values, axis=0), radii=asked, low=low, high=high, smoothing=smoothing)


def order_statistic(p: float, samples: int, alpha: float) -> int:
    """The smallest k for which the k-th smallest of n draws is at least their quantile at p, but for alpha.

    It is n + 1 where not even the largest draw is enough. As the number of draws below q(p) has at most the
    distribution Bin(n, p), k - 1 is its quantile at 1 - alpha.

    Args:
        p: of the quantile, 0 to 1.
        samples: n.
        alpha: largest probability that the k-th draw lies below the quantile.
    """
    from scipy.stats import binom

    return int(binom.ppf(1 - alpha, samples, p)) + 1


def _quantiles(radii: Float[np.ndarray, " r"], smoothing: Smoothing) -> list[float]:
    from scipy.special import ndtr

    return [float(p) for p in ndtr(radii / smoothing.sigma)]


def _at(ordered: Float[np.ndarray, "s n"], place: int, beyond: float) -> Float[np.ndarray, " n"]:
    """The value at a place, counted from 1; `beyond` where there are fewer."""
    return ordered[place - 1] if place <= len(ordered) else np.full(ordered.shape[1], beyond)


def _values(
    objective: Any, images: Float[Array, "n h w 3"], key: PRNGKeyArray, smoothing: Smoothing
) -> Float[np.ndarray, "s n"]:
    """The distances under all draws."""
    keys = noise_keys(key, 0, len(images))
    draws = max(1, smoothing.max_batch // len(images))
    calls = math.ceil(smoothing.samples / draws)
    parts = [
        np.asarray(_draw(objective, images, keys, float(smoothing.sigma), number * draws, draws=draws))
        for number in range(calls)
    ]
    return np.concatenate(parts)[: smoothing.samples].astype(np.float64)


@functools.partial(jax.jit, static_argnames="draws")
def _draw(
    objective: Any,
    images: Float[Array, "n h w 3"],
    keys: NoiseKeys,
    sigma: float | Float[Array, ""],
    start: int | Int[Array, ""],
    *,
    draws: int,
) -> Float[Array, "s n"]:
    return values_under_noise(objective, images, keys, sigma, start + jnp.arange(draws))

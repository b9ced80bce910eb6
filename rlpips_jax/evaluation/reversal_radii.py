"""How small a change reverses the order of each triplet: a distribution, where flip rates are one number per radius.

`reversal_radii` gives the radii batch by batch, `summarise` their quartiles with intervals; `rlpips evaluate --attack
minimum` prints them.

A radius is that of images in [0, 1].
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped

from rlpips_jax.attacks.arguments import as_floats
from rlpips_jax.attacks.expectations import judge_key, triplet_objective
from rlpips_jax.attacks.minimum import MinimumResult
from rlpips_jax.attacks.objectives import attacked_images
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.evaluation.certify_distance import order_statistic
from rlpips_jax.evaluation.measurement import BATCH, USUAL, Conditions, Distances, Score, ranked_batches
from rlpips_jax.evaluation.placement import fetch
from rlpips_jax.evaluation.scores import Interval, bootstrap_interval, credit_interval, majority_credit
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.images import UNIT_RANGE

QUANTILES = (0.25, 0.5, 0.75)
"""Of the radii that are reported."""
CONFIDENCE = 0.95


class Radii(NamedTuple):
    """The smallest change found that reverses each triplet, images in [0, 1]; infinite where none was found.

    Attributes:
        radius: `(n,)`, its length in the norm of the attack; 0 where the order is wrong without a change.
        rms: `(n,)`, the root mean square of the same change.
    """

    radius: Float[np.ndarray, " n"]
    rms: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class RadiusSummary:
    """Radii of a set of triplets, with intervals of 95 %.

    Attributes:
        reversed: share of the triplets ranked correctly that an attack reversed at some radius.
        radius: its `QUANTILES` over all triplets, an order that is wrong by itself counting as a radius of 0. Intervals
            are order statistics, whatever the distribution; infinite where too few triplets are reversed.
        rms: mean over the triplets that were reversed.
    """

    reversed: Score
    radius: tuple[Score, ...]
    rms: Score


def reversal_radii(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    attack: Callable[..., MinimumResult],
    *,
    attacked: str | Sequence[str] = "closer",
    key: PRNGKeyArray,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Radii]:
    """The radii of triplets from `start` on, which is a multiple of `batch`, part by part.

    Args:
        metric: from `rlpips_jax.load`, or your own. A randomised one always draws the same `conditions.randomness`, and
            the attack knows what: a boundary that moves has no distance.
        triplets: from `rlpips_jax.evaluation.read`, `ordinal` or `crossed`.
        attack: `objective, images, *, key -> MinimumResult`, as `functools.partial(rl.attacks.minimum, steps=50)`.
        attacked: which image moves; of several, the one with the smallest radius for each triplet.
        key: a key of `jax.random`.
        batch: triplets attacked at once, 1 or more.
        conditions: randomness and devices.
        start: the first triplet.

    Raises:
        TripletsError: the batch is below 1.
    """
    randomness = dataclasses.replace(conditions.randomness, fixed=True)
    sides = (attacked,) if isinstance(attacked, str) else tuple(attacked)
    for begin, part in ranked_batches(triplets, batch, conditions.placement, start=start):
        own = jax.random.fold_in(key, begin)
        originals: Any = tuple(as_floats(image, UNIT_RANGE)[0] for image in part.images)
        make = functools.partial(triplet_objective, metric, originals, randomness=randomness, key=judge_key(own))
        results = [
            attack(
                make(attacked=side, value_range=UNIT_RANGE),
                attacked_images(originals[0], originals[1], originals[2], side),
                key=own,
            )
            for side in sides
        ]
        radius = np.stack([fetch(result.radius) for result in results])
        l2 = np.stack([fetch(result.l2).reshape(radius.shape[1], -1).max(axis=1) for result in results])
        best = np.argmin(radius, axis=0), np.arange(radius.shape[1])
        rms = np.where(np.isfinite(radius[best]), l2[best] / np.sqrt(originals[0][0].size), np.inf)
        yield Radii(radius=radius[best][: part.length].astype(np.float32), rms=rms[: part.length].astype(np.float32))


def summarise(radii: Radii, natural: Distances, judgment: Float[np.ndarray, " n"]) -> RadiusSummary:
    """The distribution of the radii of triplets.

    Args:
        radii: of each triplet.
        natural: its distances without an attack.
        judgment: share of people who find p1 closer.
    """
    correct = np.asarray(majority_credit(*natural, judgment)) == 1
    found = np.isfinite(radii.radius)
    share = _mean(found[correct], credit_interval)
    rms = _mean(radii.rms[found & correct], bootstrap_interval)
    return RadiusSummary(share, tuple(_quantile(radii.radius, p) for p in QUANTILES), rms)


def _mean(values: Shaped[np.ndarray, " n"], interval: Callable[..., Interval]) -> Score:
    if not len(values):
        return Score(np.nan, np.nan, np.nan, 0)
    ends = interval(values.astype(np.float64))
    return Score(float(values.mean(dtype=np.float64)), ends.low, ends.high, len(values))


def _quantile(values: Float[np.ndarray, " n"], p: float) -> Score:
    """The smallest value that a share p of all does not exceed, and the order statistics on either side."""
    ordered, n, alpha = np.sort(values.astype(np.float64)), len(values), (1 - CONFIDENCE) / 2
    above, below = order_statistic(p, n, alpha), order_statistic(1 - p, n, alpha)
    low = ordered[n - below] if below <= n else 0.0
    high = ordered[above - 1] if above <= n else np.inf
    return Score(float(ordered[int(np.ceil(p * n)) - 1]), float(low), float(high), n)

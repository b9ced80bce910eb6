"""How well distances agree with judgments, and how many of the agreements an attack reverses.

A triplet is a reference and two images p0, p1 at distances d0, d1 from it; its judgment h in [0, 1] is the fraction
of people who found p1 closer. All functions take NumPy or JAX arrays, the latter also under `jit`; NumPy arrays are
scored in NumPy, with their precision. Most scores are means of one credit per triplet, which has a function of its
own: `credit_interval` takes the credits.

A distance that is NaN makes the score NaN. Outside `jit`, judgments outside [0, 1] are an error.
"""

import math
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from rlpips_jax.errors import TripletsError

DRAWN_TOGETHER = 1 << 22
"""Counts that a bootstrap holds in memory at once."""

Values = Float[Array | np.ndarray, " n"]
"""One number per triplet (or per pair)."""

Scalar = Float[Array, ""] | np.floating
"""One number."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def two_afc_credit(d0: Values, d1: Values, judgment: Values) -> Values:
    """(d0 < d1)(1 - h) + (d1 < d0) h + (d0 == d1) / 2 of each triplet: the share of people who agree.

    Args:
        d0: distances of p0 from the reference, `(n,)`.
        d1: distances of p1, `(n,)`.
        judgment: h, `(n,)`.

    Raises:
        TripletsError: the arrays differ in shape, are empty, or a judgment lies outside [0, 1].
    """
    numbers = _checked(judgment, d0=d0, d1=d1, judgment=judgment)
    return _known(numbers, _agreement(numbers, d0, d1, judgment), d0, d1)


def two_afc_score(d0: Values, d1: Values, judgment: Values) -> Scalar:
    """The mean of `two_afc_credit`: LPIPS's 2AFC score (Zhang et al. 2018), 0.5 for guessing.

    Arguments and errors as there. No metric can pass `best_two_afc_score`.
    """
    return two_afc_credit(d0, d1, judgment).mean()


def best_two_afc_score(judgment: Values) -> Scalar:
    """The mean of max(h, 1 - h): the `two_afc_score` of a metric that always sides with the majority.

    Raises:
        TripletsError: there is no judgment, or one outside [0, 1].
    """
    numbers = _checked(judgment, judgment=judgment)
    return numbers.maximum(judgment, 1 - judgment).mean()


def has_majority(judgment: Values) -> Bool[Array | np.ndarray, " n"]:
    """Whether more than half of the people agree: h != 1/2."""
    return judgment != 0.5


def majority_credit(d0: Values, d1: Values, judgment: Values) -> Values:
    """1 where the metric agrees with the majority of people, 0 where it does not, 1/2 where d0 == d1.

    NaN where there is no majority (h == 1/2). Arguments and errors as in `two_afc_credit`.
    """
    numbers = _checked(judgment, d0=d0, d1=d1, judgment=judgment)
    majority = numbers.where(has_majority(judgment), numbers.round(judgment), numbers.nan)
    credit = _known(numbers, _agreement(numbers, d0, d1, majority), d0, d1)
    return numbers.where(has_majority(judgment), credit, numbers.nan)


def majority_accuracy(d0: Values, d1: Values, judgment: Values) -> Scalar:
    """The mean of `majority_credit` over the triplets with a majority; NaN where no triplet has one.

    This is the score of the R-LPIPS code, (d1 < d0) == round(h), except that there h == 1/2 counts as a majority
    for p0 and equal distances as a vote for it. It is larger than `two_afc_score`, as minorities do not count;
    the two must not be compared.
    """
    return _mean(majority_credit(d0, d1, judgment), has_majority(judgment))


def jnd_average_precision(distance: Values, same: Values) -> Scalar:
    """Area under the interpolated precision-recall curve of finding the pairs that look the same (JND mAP).

    With pairs in the order of their distances and s the fraction of people who saw no difference,

        TP_k = sum_{i <= k} s_i,  FP_k = sum_{i <= k} (1 - s_i),  precision_k = TP_k / k,  recall_k = TP_k / TP_n
        score = sum_k (recall_k - recall_{k-1}) max_{j >= k} precision_j

    (Zhang et al. 2018, after the PASCAL VOC). Pairs of equal distance count together.

    Args:
        distance: of each pair, `(n,)`.
        same: s, `(n,)`, in [0, 1].

    Returns:
        The score; NaN where `same` is 0 throughout.

    Raises:
        TripletsError: the arrays differ in shape, are empty, or a value of `same` lies outside [0, 1].
    """
    numbers = _checked(same, distance=distance, same=same)
    order = numbers.argsort(distance)
    ordered, found = distance[order], same[order]
    hits = numbers.cumsum(found)
    precision = hits / numbers.arange(1, len(found) + 1, dtype=hits.dtype)
    # A threshold lies after the last of several equal distances.
    last = numbers.concatenate([ordered[1:] != ordered[:-1], numbers.ones(1, bool)])
    envelope = numbers.maximum.accumulate(numbers.where(last, precision, 0)[::-1])[::-1]
    some = hits[-1] > 0
    area = (found * envelope).sum() / numbers.where(some, hits[-1], 1)
    return numbers.where(some & ~numbers.isnan(distance).any(), area, numbers.nan)[()]


def flipped(d0: Values, d1: Values, attacked_d0: Values, attacked_d1: Values, judgment: Values) -> Values:
    """1 where an attack reverses the order of a correctly ranked triplet, 0 where it does not, 1/2 for a tie.

    NaN where the metric did not rank the triplet strictly as the majority of people does before the attack.

    Args:
        d0: distances of p0 from the reference, `(n,)`.
        d1: distances of p1, `(n,)`.
        attacked_d0: d0 after the attack, `(n,)`.
        attacked_d1: d1 after the attack, `(n,)`.
        judgment: h, `(n,)`.

    Raises:
        TripletsError: as `two_afc_credit`.
    """
    numbers = _checked(judgment, d0=d0, d1=d1, attacked_d0=attacked_d0, attacked_d1=attacked_d1, judgment=judgment)
    correct = majority_credit(d0, d1, judgment) == 1
    return numbers.where(correct, 1 - majority_credit(attacked_d0, attacked_d1, judgment), numbers.nan)


def flip_rate(d0: Values, d1: Values, attacked_d0: Values, attacked_d1: Values, judgment: Values) -> Scalar:
    """The share of correctly ranked triplets whose order an attack reverses: the mean of `flipped` over them.

    Triplets without a majority are left out. NaN if no triplet was ranked correctly before the
    attack. Arguments and errors as in `flipped`.
    """
    correct = majority_credit(d0, d1, judgment) == 1
    return _mean(flipped(d0, d1, attacked_d0, attacked_d1, judgment), correct)


def bootstrap_interval(values: Values, *, seed: int = 0, confidence: float = 0.95, resamples: int = 10_000) -> Interval:
    """Bootstrap confidence interval of the mean, by percentiles (Efron 1979).

    How often each of n values is drawn in n draws is multinomial, and equal values are drawn together, so the
    credits of thousands of triplets take milliseconds. The values count as independent: triplets that share images
    are not, and their interval is too narrow. Values that are all equal have an interval of zero width.

    Args:
        values: one per triplet; leave out those that do not count (NaN).
        seed: of the resampling.
        confidence: share of intervals that hold the true mean, in (0, 1).
        resamples: how many means are drawn.

    Raises:
        TripletsError: no values, or one that is not finite; a confidence or number of resamples without meaning.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise TripletsError(f"values have shape {values.shape}; an interval needs a list of one or more")
    if not np.isfinite(values).all():
        raise TripletsError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values are not finite; leave out the triplets "
            "that do not count: values[~numpy.isnan(values)]"
        )
    if not (0 < confidence < 1 and resamples >= 1):
        raise TripletsError(
            f"confidence is {confidence} and resamples {resamples}; confidence must lie between 0 and 1, and "
            "resamples be 1 or more"
        )
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    together = max(1, DRAWN_TOGETHER // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(len(values), counts / len(values), min(together, resamples - start)) @ distinct
            for start in range(0, resamples, together)
        ]
    ) / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def credit_interval(credits: Values, *, confidence: float = 0.95) -> Interval:
    """Confidence interval of the mean of credits in [0, 1]; it never has zero width.

    Where every credit is 0, 1/2 or 1 the mean is a share: Wilson's score interval (1927), for which half credits are
    rounded down for the lower end and up for the upper one. Other credits, the fractions of people who agree, have
    `bootstrap_interval`; if they are all equal, Wilson's interval for their sum, which is wider, as the variance of
    numbers in [0, 1] is largest for zeros and ones.

    Args:
        credits: one per triplet; leave out those that do not count (NaN).
        confidence: share of intervals that contain the true mean, in (0, 1).

    Raises:
        TripletsError: there are no credits, one lies outside [0, 1], or confidence lies outside (0, 1).
    """
    credits = np.asarray(credits, np.float64)
    if not np.all((credits >= 0) & (credits <= 1)) and np.isfinite(credits).all():
        raise TripletsError(f"credits lie between {credits.min():g} and {credits.max():g}; they must be in [0, 1]")
    interval = bootstrap_interval(credits, confidence=confidence)
    if interval.low < interval.high and not np.isin(credits, (0, 0.5, 1)).all():
        return interval
    from scipy.stats import binomtest

    ends = [
        binomtest(successes, len(credits)).proportion_ci(confidence, method="wilson")
        for successes in (math.floor(credits.sum()), math.ceil(credits.sum()))
    ]
    return Interval(float(ends[0].low), float(ends[1].high))


def _checked(fractions: Values, **arrays: Values) -> ModuleType:
    """NumPy or `jax.numpy`, whichever the arrays belong to; raises a `TripletsError` if they are wrong."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or len(np.shape(fractions)) != 1 or not np.size(fractions):
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise TripletsError(f"shapes are {listing}; scores need one number per triplet, (n,) in each, n at least 1")
    if not isinstance(fractions, Tracer):
        low, high = float(fractions.min()), float(fractions.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            name = next(name for name, array in arrays.items() if array is fractions)
            raise TripletsError(
                f"{name} has values from {low:g} to {high:g}; they are fractions of people, from 0 to 1"
            )
    return _numbers(*arrays.values())


def _numbers(*arrays: Values) -> ModuleType:
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def _agreement(numbers: ModuleType, d0: Values, d1: Values, judgment: Values) -> Values:
    return numbers.where(d0 < d1, 1 - judgment, numbers.where(d1 < d0, judgment, 0.5 * numbers.ones_like(judgment)))


def _known(numbers: ModuleType, credit: Values, d0: Values, d1: Values) -> Values:
    return numbers.where(numbers.isnan(d0) | numbers.isnan(d1), numbers.nan, credit)


def _mean(values: Values, counted: Bool[Array | np.ndarray, " n"]) -> Scalar:
    """The mean of the counted values; NaN if there is not one."""
    numbers = _numbers(values)
    count = counted.sum()
    total = numbers.where(counted, values, 0).sum()
    return numbers.where(count > 0, total / numbers.where(count > 0, count, 1), numbers.nan)[()]

"""How well distances agree with opinions: correlations with bootstrap intervals, in NumPy.

An opinion is a number that is larger where two images look more alike. A correlation is 1 where distances fall exactly
as opinions rise, and 0 where they have nothing to do with each other.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped

from rlpips_jax.evaluation.scores import Interval

RESAMPLES = 1000
"""Resamples of an interval."""

BLOCK = 1 << 22
"""Pairs of pairs that are compared at a time."""

FEWEST = 5
"""Pairs that the four parameters of a logistic curve need."""

ITERATIONS = 200
"""Most steps of a fit; without a bend in the data, its parameters grow without end."""

Numbers = Float[np.ndarray, " n"]
"""One number per pair."""

Curve = Callable[[Numbers], Float64[np.ndarray, " n"]]
"""Opinions that distances predict."""


def logistic_curve(distance: Numbers, opinion: Numbers) -> Curve:
    """The four-parameter logistic curve that predicts opinions from distances with the least squared error.

        f(d) = low + (high - low) / (1 + exp((d - centre) / |width|))

    As usual in the field (VQEG), it straightens the relation between a metric's scale and people's before Pearson's
    correlation is computed.

    Args:
        distance: `(n,)`, five or more, not all equal.
        opinion: `(n,)`.
    """
    from scipy.optimize import least_squares
    from scipy.special import expit

    # The same fit in units in which all four parameters are about 1.
    middle, spread = np.mean(distance, dtype=np.float64), np.std(distance, dtype=np.float64)
    scaled = (np.asarray(distance, np.float64) - middle) / spread

    def curve(scaled: Any, low: Any, high: Any, centre: Any, width: Any) -> Any:
        return low + (high - low) * expit((centre - scaled) / max(abs(width), 1e-6))

    starts = [np.array([np.min(opinion), np.max(opinion), 0, width]) for width in (0.25, 1)]
    fits = [
        least_squares(lambda found: curve(scaled, *found) - opinion, start, x_scale="jac", max_nfev=ITERATIONS)
        for start in starts
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    return lambda distance: curve((np.asarray(distance, np.float64) - middle) / spread, *best)


def pearson(predicted: Numbers, opinion: Numbers) -> float:
    """Pearson's correlation of opinions with those that a curve predicts from distances; NaN where all are equal.

    The curve of natural distances serves for attacked ones too, as whoever uses a metric has one curve. A curve may
    rise or fall, so that the correlation it was fitted to is never negative; `spearman` shows the sign.
    """
    if not np.ptp(predicted) or not np.ptp(opinion):
        return float("nan")
    return float(np.corrcoef(predicted, opinion)[0, 1])


def spearman(distance: Numbers, opinion: Numbers) -> float:
    """Spearman's rank correlation of minus the distances with opinions; NaN where either are all equal."""
    from scipy.stats import spearmanr

    return _ranked(spearmanr, distance, opinion)


def kendall(distance: Numbers, opinion: Numbers) -> float:
    """Kendall's rank correlation (tau-b) of minus the distances with opinions; NaN where either are all equal."""
    from scipy.stats import kendalltau

    return _ranked(kendalltau, distance, opinion)


def correlation_intervals(
    predicted: Numbers, distance: Numbers, opinion: Numbers, groups: Shaped[np.ndarray, " n"]
) -> dict[str, Interval]:
    """Bootstrap intervals of 95 % of "pearson", "spearman" and "kendall", as `grouped_interval` draws them.

    All resamples are computed together, from sums over groups and pairs of groups: a resample only says how often each
    group counts.

    Args:
        predicted: opinions by the curve of `pearson`, which is not fitted anew, `(n,)`.
        distance: `(n,)`.
        opinion: `(n,)`.
        groups: the group of each pair, `(n,)`.
    """
    times, group = _draw(groups, 0)
    order = np.argsort(group, kind="stable")
    predicted, distance, opinion = (np.asarray(column[order], np.float64) for column in (predicted, distance, opinion))
    starts = np.searchsorted(group[order], np.arange(times.shape[1]))
    columns = (np.ones_like(opinion), predicted, opinion, predicted**2, opinion**2, predicted * opinion)
    count, p, o, pp, oo, po = (times @ np.add.reduceat(column, starts) for column in columns)
    moments = {"pearson": (count * po - p * o, count * pp - p**2, count * oo - o**2)}

    # Signs of differences give Kendall's correlation by their products, and ranks, less a constant, by their sums.
    falling, rising, products, untied, unequal = np.empty((5, len(opinion), len(starts)), np.float32)
    for begin in range(0, len(opinion), step := max(1, BLOCK // len(opinion))):
        rows = slice(begin, begin + step)
        nearer, better = (np.sign(c[rows, None] - c).astype(np.float32) for c in (-distance, opinion))
        signs = (nearer, better, nearer * better, np.abs(nearer), np.abs(better))
        for column, sign in zip((falling, rising, products, untied, unequal), signs, strict=True):
            column[rows] = np.add.reduceat(sign, starts, axis=1)
    between = (np.add.reduceat(column, starts, axis=0) for column in (products, untied, unequal))
    moments["kendall"] = tuple(np.sum(times @ column * times, axis=1) for column in between)
    weights, ranks, others = times[:, group[order]], times @ falling.T, times @ rising.T
    by_rank = (ranks * others, ranks**2, others**2)
    moments["spearman"] = tuple(np.sum(weights * column, axis=1) for column in by_rank)
    found = {}
    for name, (covariance, *variances) in moments.items():
        spread = np.sqrt(np.maximum(variances[0], 0) * np.maximum(variances[1], 0))
        found[name] = _percentiles(covariance[spread > 0] / spread[spread > 0])
    return found


def grouped_interval(
    statistic: Callable[[Int[np.ndarray, " k"]], float], groups: Shaped[np.ndarray, " n"], *, seed: int = 0
) -> Interval:
    """Bootstrap interval of 95 % of a statistic of pairs, by percentiles.

    Groups are drawn with all their pairs, as those that share a reference are not independent: drawing single pairs
    would give too narrow an interval. If all pairs are one group, pairs are drawn.

    Args:
        statistic: a function of indices of pairs.
        groups: the group of each pair, `(n,)`.
        seed: of the resampling.

    Returns:
        The interval; NaN where no resample has the statistic.
    """
    times, group = _draw(groups, seed)
    found = np.array([statistic(np.repeat(np.arange(len(group)), row[group])) for row in times])
    return _percentiles(found[~np.isnan(found)])


def _draw(groups: Shaped[np.ndarray, " n"], seed: int) -> tuple[Int[np.ndarray, "resamples m"], Int[np.ndarray, " n"]]:
    """How often each group counts in each resample, and the group of each pair."""
    _, group = np.unique(groups, return_inverse=True)
    if group.max() == 0:
        group = np.arange(len(group))
    count = int(group.max()) + 1
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES), group


def _percentiles(found: Float[np.ndarray, " k"]) -> Interval:
    if not len(found):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))


def _ranked(correlation: Callable[..., Any], distance: Numbers, opinion: Numbers) -> float:
    if not np.ptp(distance) or not np.ptp(opinion):
        return float("nan")
    return float(correlation(-distance, opinion).statistic)

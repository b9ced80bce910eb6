"""How well a metric agrees with judged triplets: as it is, under attack, and when images are shifted.

    (natural, *attacked) = evaluate(metric, triplets, functools.partial(rl.attacks.pgd, steps=20), [1 / 255, 2 / 255])
    natural.scores.two_afc.mean, attacked[0].scores.flip_rate.mean

An attack knows the judgment and works against it: it moves the images until the one that people find closer is the
farther one for the metric. Distances after an attack are computed again from its images; those of a randomised metric
with draws that the attack has not seen, unless `Randomness.fixed` lets it know them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from rlpips_jax.arguments import whole_number
from rlpips_jax.attacks import AttackResult, Randomness, attack_triplets
from rlpips_jax.attacks.expectations import ADAPTIVE, judge_key, measured_distances
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import scores
from rlpips_jax.evaluation.distortions import DISTORTIONS
from rlpips_jax.evaluation.placement import Placement, fetch, filled_size, put
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets, Triplets, triplet_distances
from rlpips_jax.images import UNIT_RANGE, Images

BATCH = 50
"""Triplets attacked at once."""

Attack = Callable[..., AttackResult]
"""`objective, images, *, key, epsilon -> AttackResult`, such as `functools.partial(rl.attacks.pgd, steps=20)`."""


class Distances(NamedTuple):
    """The distances of p0 and p1 from the reference, `(n,)` each."""

    d0: Float[np.ndarray, " n"]
    d1: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Score:
    """A mean over triplets with a confidence interval of 95 %; all NaN if no triplet counts.

    Attributes:
        mean: of the credits of the triplets.
        low: lower end of the interval, `rlpips_jax.evaluation.scores.credit_interval`.
        high: upper end of the interval.
        count: number of triplets that count.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Scores:
    """How the distances of a metric agree with judgments.

    Attributes:
        two_afc: `rlpips_jax.evaluation.two_afc_score`.
        majority: `rlpips_jax.evaluation.majority_accuracy`.
        sure: the majority accuracy over the triplets with a clear judgment: the teacher is sure, or more than half of
            the people agree.
        flip_rate: `rlpips_jax.evaluation.flip_rate`, the share of correctly ranked triplets that the attack reverses;
            None without an attack.
    """

    two_afc: Score
    majority: Score
    sure: Score
    flip_rate: Score | None = None


@dataclass(frozen=True)
class Evaluation:
    """A metric on a set of triplets.

    Attributes:
        epsilon: radius of the attack, or shift in pixels; 0 for neither.
        scores: over all triplets.
        by_kind: over the triplets of each kind. A triplet with two distortions counts for both.
        distances: of each triplet, after the attack.
    """

    epsilon: float
    scores: Scores
    by_kind: dict[str, Scores]
    distances: Distances


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which conditions distances are computed and attacked.

    Attributes:
        surrogate: the metric that attacks are made against, to see whether they transfer; None for the evaluated one.
        randomness: how a randomised metric is attacked and judged.
        placement: how batches are split over devices, such as `over_all_devices()`; None for one device. With several
            processes each passes the same triplets, and gets all scores.
    """

    surrogate: Metric | RandomMetric | None = None
    randomness: Randomness = ADAPTIVE
    placement: Placement = None


USUAL = Conditions()
"""No surrogate, fresh draws at each step and others to judge by, one device."""


def evaluate(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    attack: Attack | None = None,
    epsilons: Sequence[float] = (),
    *,
    attacked: str | Sequence[str] = "closer",
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
) -> list[Evaluation]:
    """Scores of a metric on judged triplets, as they are and under an attack of growing strength.

    Args:
        metric: from `rlpips_jax.load`, or your own.
        triplets: from `rlpips_jax.evaluation.read`, `ordinal` or `crossed`.
        attack: `objective, images, *, key, epsilon -> AttackResult`, as `functools.partial(rl.attacks.pgd, steps=20)`.
        epsilons: radii of the attack; images are in [0, 1].
        attacked: which image it moves: "closer" (to people), "farther", "both" or "reference"; of several, the one
            that does most harm to each triplet.
        key: a key of `jax.random`; None for `jax.random.key(0)`.
        batch: triplets attacked at once, 1 or more.
        conditions: surrogate, randomness and devices.

    Returns:
        The evaluation without attack first, then one for each epsilon.

    Raises:
        TripletsError: there are no triplets, the batch is below 1, or only one of attack and epsilons is given.
        ImageError: the images are too small for the metric.
    """
    if (attack is None) != (not len(epsilons)):
        raise TripletsError("an attack needs epsilons, and epsilons an attack; give both, or neither")
    key = jax.random.key(0) if key is None else key
    common: dict[str, Any] = {"key": key, "batch": batch, "conditions": conditions}
    natural = join(natural_distances(metric, triplets, **common))
    found = [assess(triplets, natural)]
    if attack is None:
        return found
    for epsilon in epsilons:
        bounded = functools.partial(attack, epsilon=epsilon)
        parts = attacked_distances(metric, triplets, bounded, attacked=attacked, **common)
        found.append(assess(triplets, natural, join(parts), float(epsilon)))
    return found


def shift_robustness(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    shifts: Sequence[int] = (1, 2, 3),
    *,
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
) -> list[Evaluation]:
    """How a shift by a few pixels, which nobody sees, changes the order of triplets (Ghildyal and Liu 2022).

    p0 and p1 are shifted up and left against the reference; all images are cropped to the part that the largest shift
    leaves.

    Args:
        metric: from `rlpips_jax.load`, or your own.
        triplets: of images larger than the largest shift.
        shifts: in pixels, 1 or more.
        key: for a randomised metric; None for `jax.random.key(0)`.
        batch: triplets in the network at once, 1 or more.
        conditions: randomness and devices.

    Returns:
        The evaluation without a shift (but cropped) first, then one for each shift; `flip_rate` compares with the
        first.

    Raises:
        TripletsError: a shift is negative or as large as the images, or the batch is below 1.
        ImageError: the cropped images are too small for the metric.
    """
    common: dict[str, Any] = {"key": key, "batch": batch, "conditions": conditions}
    largest = max(shifts, default=0)
    natural = join(shifted_distances(metric, triplets, 0, largest, **common))
    found = [assess(triplets, natural)]
    for shift in shifts:
        shifted = join(shifted_distances(metric, triplets, shift, largest, **common))
        found.append(assess(triplets, natural, shifted, float(shift)))
    return found


def natural_distances(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    *,
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Distances]:
    """Distances of triplets as they are, from triplet `start` on, part by part; other arguments as in `evaluate`."""
    whole_number("batch", batch, error=TripletsError)
    if isinstance(triplets, IndexedTriplets) and not is_random(metric):
        if start < len(triplets):
            d0, d1 = triplet_distances(cast(Metric, metric), triplets, batch=batch, placement=conditions.placement)
            yield Distances(d0[start:], d1[start:])
        return
    for begin in range(start, len(triplets), batch):
        part = triplets.batch(begin, begin + batch)
        yield _part_distances(metric, part, min(batch, len(triplets)), _judge(key, begin), conditions)


def shifted_distances(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    shift: int,
    largest: int,
    *,
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Distances]:
    """Distances with p0 and p1 shifted against the reference, cropped for the shift `largest`, part by part."""
    whole_number("batch", batch, error=TripletsError)
    for begin in range(start, len(triplets), batch):
        part = triplets.batch(begin, begin + batch)
        height, width = part.reference.shape[1:3]
        if not 0 <= shift <= largest < min(height, width):
            raise TripletsError(f"shifts must be from 1 to {min(height, width) - 1} pixels, got {shift} and {largest}")
        rows, columns = slice(shift, height - largest + shift), slice(shift, width - largest + shift)
        cropped = Triplets(
            part.reference[:, : height - largest, : width - largest],
            part.p0[:, rows, columns],
            part.p1[:, rows, columns],
            part.judgment,
            part.kinds,
        )
        yield _part_distances(metric, cropped, min(batch, len(triplets)), _judge(key, begin), conditions)


def attacked_distances(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    attack: Attack,
    *,
    attacked: str | Sequence[str] = "closer",
    key: PRNGKeyArray,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Distances]:
    """Distances after an attack, part by part from `start` on, which is a multiple of `batch`.

    `attack` is `objective, images, *, key -> AttackResult`, its radius included; other arguments as in `evaluate`. The
    draws of a part depend on the key and its place alone, so that it does not matter where one begins.
    """
    for begin, part in ranked_batches(triplets, batch, conditions.placement, start=start):
        result = attack_triplets(
            metric,
            *part.images,
            attack=attack,
            attacked=attacked,
            surrogate=conditions.surrogate,
            randomness=conditions.randomness,
            key=jax.random.fold_in(key, begin),
        )
        closer, farther = fetch(result.after.closer), fetch(result.after.farther)
        d0, d1 = np.where(part.swapped, farther, closer), np.where(part.swapped, closer, farther)
        yield Distances(d0[: part.length], d1[: part.length])


class RankedBatch(NamedTuple):
    """Triplets as they are attacked.

    Attributes:
        images: references, the images that people find closer, and the others, on the devices.
        swapped: `(k,)`, whether p1 is the closer one.
        length: triplets; the last one is repeated up to a whole batch.
    """

    images: tuple[Images, Images, Images]
    swapped: Bool[np.ndarray, " k"]
    length: int


def ranked_batches(
    triplets: AnyTriplets, batch: int, placement: Placement, *, start: int = 0
) -> Iterator[tuple[int, RankedBatch]]:
    """Triplets from `start` on, batch by batch, with the place where each begins.

    Raises:
        TripletsError: the batch is below 1.
    """
    whole_number("batch", batch, error=TripletsError)
    size = min(batch, len(triplets))
    for begin in range(start, len(triplets), size or 1):
        part = triplets.batch(begin, begin + size)
        rows = _filled_rows(part, size, placement)
        swapped = (part.judgment > 0.5)[rows]
        choose, p0, p1 = swapped[:, None, None, None], part.p0[rows], part.p1[rows]
        images = (part.reference[rows], np.where(choose, p1, p0), np.where(choose, p0, p1))
        reference, closer, farther = (put(array, placement) for array in images)
        yield begin, RankedBatch((reference, closer, farther), swapped, len(part))


def join(parts: Iterator[Distances]) -> Distances:
    """The concatenation of all parts.

    Raises:
        TripletsError: there are none.
    """
    found = list(parts)
    if not found:
        raise TripletsError("there are no triplets to evaluate a metric on")
    return Distances(*(np.concatenate(column) for column in zip(*found, strict=True)))


def assess(
    triplets: AnyTriplets, natural: Distances, attacked: Distances | None = None, epsilon: float = 0.0
) -> Evaluation:
    """Scores of distances, with or without an attack.

    Args:
        triplets: the triplets with these distances.
        natural: distances without an attack.
        attacked: distances after the attack; None without one.
        epsilon: radius of the attack.

    Raises:
        TripletsError: a distance is not finite.
    """
    distances = natural if attacked is None else attacked
    for column in (*natural, *distances):
        if bad := np.count_nonzero(~np.isfinite(column)):
            raise TripletsError(
                f"{bad} of {len(column)} distances are NaN or infinite; a score of the others would mislead"
            )
    judgment = triplets.judgment
    sure = clearly_judged(triplets)
    majority = np.asarray(scores.majority_credit(*distances, judgment))
    credits = {
        "two_afc": np.asarray(scores.two_afc_credit(*distances, judgment)),
        "majority": majority,
        "sure": np.where(sure, majority, np.nan),
    }
    if attacked is not None:
        credits["flip_rate"] = np.asarray(scores.flipped(*natural, *attacked, judgment))

    def of(chosen: Bool[np.ndarray, " n"]) -> Scores:
        return Scores(**{name: _score(credit[chosen]) for name, credit in credits.items()})

    members = [_kinds(label) for label in triplets.kinds]
    kinds = dict.fromkeys(kind for of_triplet in members for kind in of_triplet)
    by_kind = {kind: of(np.array([kind in of_triplet for of_triplet in members])) for kind in kinds}
    return Evaluation(float(epsilon), of(np.ones(len(judgment), bool)), by_kind, distances)


def clearly_judged(triplets: AnyTriplets) -> Bool[np.ndarray, " n"]:
    """Where the teacher is sure, or more than half of the people agree."""
    return np.asarray(scores.has_majority(triplets.judgment) if triplets.sure is None else triplets.sure)


def _kinds(label: str) -> tuple[str, ...]:
    """The distortions of a label such as "blur/jpeg"; other labels may contain slashes too."""
    parts = tuple(label.split("/"))
    return parts if all(part in DISTORTIONS for part in parts) else (label,)


def _score(credits: Float[np.ndarray, " n"]) -> Score:
    counted = credits[~np.isnan(credits)]
    if not len(counted):
        return Score(np.nan, np.nan, np.nan, 0)
    interval = scores.credit_interval(counted)
    return Score(float(counted.mean(dtype=np.float64)), interval.low, interval.high, len(counted))


def _filled_rows(part: Triplets, size: int, placement: Placement) -> Int[np.ndarray, " k"]:
    """Rows of a part, the last one repeated to fill a whole batch: one shape, hence one compiled program."""
    return np.minimum(np.arange(filled_size(size, placement)), len(part) - 1)


def _judge(key: PRNGKeyArray | None, begin: int) -> Any:
    """The key that distances of the part at `begin` are drawn with: the same as after an attack of it."""
    return judge_key(jax.random.fold_in(jax.random.key(0) if key is None else key, begin))


def _part_distances(
    metric: Metric | RandomMetric, part: Triplets, size: int, key: PRNGKeyArray, conditions: Conditions
) -> Distances:
    """Distances of a part, filled up to `size` triplets so that one compiled program serves all parts."""
    placement = conditions.placement
    rows = _filled_rows(part, size, placement if is_random(metric) else None)
    filled = part.select(rows)
    if is_random(metric):
        images = (put(array, placement) for array in (filled.reference, filled.p0, filled.p1))
        found = [fetch(one) for one in _random_distances(metric, *images, key=key, randomness=conditions.randomness)]
    else:
        found = triplet_distances(cast(Metric, metric), filled, batch=size, placement=placement)
    return Distances(*(distances[: len(part)] for distances in found))


@functools.partial(jax.jit, static_argnames="randomness")
def _random_distances(
    metric: RandomMetric, reference: Images, p0: Images, p1: Images, *, key: Array, randomness: Randomness
) -> list[Float[Array, " n"]]:
    return measured_distances(metric, reference, (p0, p1), randomness=randomness, key=key, value_range=UNIT_RANGE)

"""How well a metric agrees with judged triplets: as it is, under attack, and when images are shifted.

    (natural, *attacked) = evaluate(metric, triplets, functools.partial(rl.attacks.pgd, steps=20), [1 / 255, 2 / 255])
    natural.scores.two_afc.mean, attacked[0].scores.flip_rate.mean

An attack knows the judgment and works against it: it makes the image that people find closer the farther one for the
metric. Distances after an attack are measured again, from its images; by an ensemble, with transformations that the
attack has not seen, unless it is one whose draws are known.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from rlpips_jax.attacks import Randomness, attack_triplets
from rlpips_jax.attacks.expectations import ADAPTIVE, judge_key, measured_distances
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import scores
from rlpips_jax.evaluation.distortions import DISTORTIONS
from rlpips_jax.evaluation.placement import Placement, fetch, filled_size, put
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets, Triplets, triplet_distances
from rlpips_jax.images import UNIT_RANGE

BATCH = 50
"""Triplets attacked at once."""

Attack = Callable[..., Any]
"""`objective, images, *, key, epsilon -> AttackResult`, such as `functools.partial(rl.attacks.pgd, steps=20)`."""


class Distances(NamedTuple):
    """Of p0 and p1 from the reference, `(n,)` each."""

    d0: Float[np.ndarray, " n"]
    d1: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Score:
    """A mean over triplets with its bootstrap interval of 95 %; all NaN where no triplet counts.

    Attributes:
        mean: of the triplets' credits.
        low: lower end of the interval.
        high: upper end of the interval.
        count: triplets that count.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Scores:
    """How a metric's distances agree with judgments.

    Attributes:
        two_afc: `rlpips_jax.evaluation.two_afc_score`.
        majority: `rlpips_jax.evaluation.majority_accuracy`.
        sure: the same over the triplets whose judgment is clear: the teacher is sure, or more than half agree.
        flip_rate: `rlpips_jax.evaluation.flip_rate`, share of correctly ranked triplets that the attack reverses; None
            without one.
    """

    two_afc: Score
    majority: Score
    sure: Score
    flip_rate: Score | None = None


@dataclass(frozen=True)
class Evaluation:
    """A metric on a set of triplets.

    Attributes:
        epsilon: of the attack, or pixels of a shift; 0 for none.
        scores: over all triplets.
        by_kind: over those of each kind. A triplet of two distortions counts for both.
        distances: of each triplet, after the attack.
    """

    epsilon: float
    scores: Scores
    by_kind: dict[str, Scores]
    distances: Distances


def evaluate(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    attack: Attack | None = None,
    epsilons: Sequence[float] = (),
    *,
    attacked: str | Sequence[str] = "closer",
    surrogate: Metric | Ensemble | None = None,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
    placement: Placement = None,
) -> list[Evaluation]:
    """Scores of a metric on judged triplets, as they are and under an attack of growing strength.

    Args:
        metric: from `rlpips_jax.load`.
        triplets: from `rlpips_jax.evaluation.triplets` or `triplet_files`.
        attack: `objective, images, *, key, epsilon -> AttackResult`, as `functools.partial(rl.attacks.pgd, steps=20)`.
        epsilons: radii of the attack; images are in [0, 1].
        attacked: whom it moves: "closer" (to people), "farther", "both" or "reference"; of several, the one that does
            most harm to each triplet.
        surrogate: what the attack is made against, in the hope that it transfers; None for `metric` itself.
        randomness: of ensembles, how they are attacked and judged.
        key: a key of `jax.random`; None for `jax.random.key(0)`.
        batch: triplets attacked at once.
        placement: over which devices they are cut, as `over_all_devices()` has it; None for one. Of several processes
            each passes the same triplets, and gets all scores.

    Returns:
        Without attack first, then one for each epsilon.

    Raises:
        TripletsError: no triplets, an attack without epsilons or epsilons without an attack.
        ImageError: the images are too small for the metric.
    """
    if (attack is None) != (not len(epsilons)):
        raise TripletsError("an attack needs epsilons, and epsilons an attack; give both, or neither")
    key = jax.random.key(0) if key is None else key
    natural = join(
        natural_distances(metric, triplets, randomness=randomness, key=key, batch=batch, placement=placement)
    )
    found = [assess(triplets, natural)]
    if attack is None:
        return found
    for epsilon in epsilons:
        parts = attacked_distances(
            metric,
            triplets,
            attack,
            epsilon,
            attacked=attacked,
            surrogate=surrogate,
            randomness=randomness,
            key=key,
            batch=batch,
            placement=placement,
        )
        found.append(assess(triplets, natural, join(parts), float(epsilon)))
    return found


def shift_robustness(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    shifts: Sequence[int] = (1, 2, 3),
    *,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
) -> list[Evaluation]:
    """What a shift by some pixels, which nobody sees, does to the order of triplets (Ghildyal and Liu 2022).

    p0 and p1 are shifted up and left against the reference; all are cropped to what is there at the largest shift.

    Args:
        metric: from `rlpips_jax.load`.
        triplets: of images larger than the largest shift.
        shifts: in pixels, 1 or more.
        randomness: of an ensemble, how many samples a distance averages.
        key: of an ensemble; None for `jax.random.key(0)`.
        batch: triplets in the network at once.

    Returns:
        Without a shift (but cropped) first, then one for each shift; `flip_rate` is against the first.

    Raises:
        TripletsError: a shift that is negative or as large as the images.
        ImageError: what is left is too small for the metric.
    """
    measured = functools.partial(shifted_distances, metric, triplets, randomness=randomness, key=key, batch=batch)
    natural = join(measured(0, max(shifts, default=0)))
    found = [assess(triplets, natural)]
    for shift in shifts:
        shifted = join(measured(shift, max(shifts)))
        found.append(assess(triplets, natural, shifted, float(shift)))
    return found


def natural_distances(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    *,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
    start: int = 0,
    placement: Placement = None,
) -> Iterator[Distances]:
    """Distances of triplets as they are from `start` on, part by part; arguments as in `evaluate`."""
    if isinstance(triplets, IndexedTriplets) and not isinstance(metric, Ensemble):
        if start < len(triplets):
            d0, d1 = triplet_distances(metric, triplets, batch=batch, placement=placement)
            yield Distances(d0[start:], d1[start:])
        return
    for begin in range(start, len(triplets), batch):
        part = triplets.batch(begin, begin + batch)
        drawn = _Drawn(randomness, key, begin)
        yield _filled(metric, part, min(batch, len(triplets)), drawn, placement)


def shifted_distances(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    shift: int,
    largest: int,
    *,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
    start: int = 0,
) -> Iterator[Distances]:
    """Distances with p0 and p1 shifted against the reference, all cropped for the `largest` shift, part by part."""
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
        yield _filled(metric, cropped, min(batch, len(triplets)), _Drawn(randomness, key, begin))


def attacked_distances(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    attack: Attack,
    epsilon: float | int,
    *,
    attacked: str | Sequence[str] = "closer",
    surrogate: Metric | Ensemble | None = None,
    randomness: Randomness = ADAPTIVE,
    key: Any,
    batch: int = BATCH,
    start: int = 0,
    placement: Placement = None,
) -> Iterator[Distances]:
    """Distances after an attack, part by part from `start` on, a multiple of `batch`; arguments as in `evaluate`.

    Each part draws from the key and its place, so that it does not matter where one begins.
    """
    size = min(batch, len(triplets))
    for begin in range(start, len(triplets), size):
        part = triplets.batch(begin, begin + size)
        rows = _filled_rows(part, size, placement)
        swapped = (part.judgment > 0.5)[rows, None, None, None]
        p0, p1 = part.p0[rows], part.p1[rows]
        images = (part.reference[rows], np.where(swapped, p1, p0), np.where(swapped, p0, p1))
        result = attack_triplets(
            metric,
            *(put(array, placement) for array in images),
            attack=functools.partial(attack, epsilon=epsilon),
            attacked=attacked,
            surrogate=surrogate,
            randomness=randomness,
            key=jax.random.fold_in(key, begin),
        )
        closer, farther = fetch(result.after.closer), fetch(result.after.farther)
        swapped = swapped[:, 0, 0, 0]
        d0, d1 = np.where(swapped, farther, closer), np.where(swapped, closer, farther)
        yield Distances(d0[: len(part)], d1[: len(part)])


def _filled_rows(part: Triplets, size: int, placement: Placement) -> Int[np.ndarray, " k"]:
    """Rows of a part, filled up with the last to a whole batch: one shape, and so one compiled program."""
    return np.minimum(np.arange(filled_size(size, placement)), len(part) - 1)


def join(parts: Iterator[Distances]) -> Distances:
    """All parts in one."""
    found = list(parts)
    if not found:
        raise TripletsError("there are no triplets to evaluate a metric on")
    return Distances(*(np.concatenate(column) for column in zip(*found, strict=True)))


def assess(
    triplets: AnyTriplets, natural: Distances, attacked: Distances | None = None, epsilon: float = 0.0
) -> Evaluation:
    """Scores of distances, with and without an attack.

    Args:
        triplets: what they are distances of.
        natural: without attack.
        attacked: after the attack; None for none.
        epsilon: how strong it was.

    Raises:
        TripletsError: a distance is not finite.
    """
    distances = natural if attacked is None else attacked
    for column in (*natural, *distances):
        if bad := np.count_nonzero(~np.isfinite(column)):
            raise TripletsError(
                f"{bad} of {len(column)} distances are NaN or infinite; a score of the rest would mislead"
            )
    judgment = triplets.judgment
    sure = scores.has_majority(judgment) if triplets.sure is None else triplets.sure
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


def _kinds(label: str) -> tuple[str, ...]:
    """A label's distortions, if it is of two; other labels may have slashes too."""
    parts = tuple(label.split("/"))
    return parts if all(part in DISTORTIONS for part in parts) else (label,)


def _score(credits: Float[np.ndarray, " n"]) -> Score:
    counted = credits[~np.isnan(credits)]
    if not len(counted):
        return Score(np.nan, np.nan, np.nan, 0)
    interval = scores.bootstrap_interval(counted)
    return Score(float(counted.mean(dtype=np.float64)), interval.low, interval.high, len(counted))


class _Drawn(NamedTuple):
    """What an ensemble measures a part with: as `attack_triplets` does before an attack."""

    randomness: Randomness
    key: Any
    begin: int

    @property
    def judge(self) -> Any:
        """The key that it draws by."""
        key = jax.random.key(0) if self.key is None else self.key
        return judge_key(jax.random.fold_in(key, self.begin))


def _filled(
    metric: Metric | Ensemble, part: Triplets, size: int, drawn: _Drawn, placement: Placement = None
) -> Distances:
    """Distances of a part in one compiled program for all parts, though the last be shorter."""
    if isinstance(metric, Ensemble):
        rows = _filled_rows(part, size, placement)
        reference, *others = (put(array[rows], placement) for array in (part.reference, part.p0, part.p1))
        found = [fetch(one) for one in _expected(metric, reference, tuple(others), drawn.judge, drawn.randomness)]
    else:
        rows = _filled_rows(part, size, None)
        filled = Triplets(part.reference[rows], part.p0[rows], part.p1[rows], part.judgment[rows], ("",) * size)
        found = triplet_distances(metric, filled, batch=size, placement=placement)
    return Distances(*(distances[: len(part)] for distances in found))


@functools.partial(jax.jit, static_argnums=4)
def _expected(ensemble: Ensemble, reference: Any, others: tuple[Any, Any], key: Any, randomness: Randomness) -> Any:
    drawn = {"randomness": randomness, "key": key, "value_range": UNIT_RANGE}
    return measured_distances(ensemble, reference, others, **drawn)

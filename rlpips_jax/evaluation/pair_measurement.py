"""How well a metric agrees with judged pairs, as they are and under attack.

    >>> import functools
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> rows = ["reference,distorted,opinion"]
    >>> for level in range(3):
    ...     noise = np.random.default_rng(level).normal(0, 10 + 20 * level, (32, 32, 3))
    ...     rl.save_image(f"{level}.png", np.clip(128 + noise, 0, 255).astype(np.uint8))
    ...     rows.append(f"0.png,{level}.png,{-level}")
    >>> _ = Path("pairs.csv").write_text("\\n".join(rows))
    >>> pairs = rl.evaluation.read_pairs("pairs.csv")  # or a folder of TID2013, KADID-10k, CSIQ, LIVE, PIPAL
    >>> attack = functools.partial(rl.attacks.pgd, steps=2)
    >>> metric = rl.load("lpips-tiny")
    >>> natural, attacked = rl.evaluation.evaluate_pairs(metric, pairs, attack, [2 / 255])
    >>> natural.scores["spearman"].mean >= attacked.scores["spearman"].mean
    True

An attack moves the distorted image of each pair within a ball, either against the judgment, or away from the reference:
"against" increases the distance of the half of the pairs that people find more alike, and decreases that of the others,
which does most harm to a ranking; "away" increases all, which shows what a change that nobody sees can do to a number.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from rlpips_jax.arguments import whole_number
from rlpips_jax.attacks import Randomness, directed
from rlpips_jax.attacks.expectations import distance_objective, judge_key, measured_distances
from rlpips_jax.attacks.worst_case import run
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import ImageFileError, TripletsError
from rlpips_jax.evaluation import correlations, scores
from rlpips_jax.evaluation.judged_pairs import JudgedPairs, PairBatch
from rlpips_jax.evaluation.measurement import BATCH, USUAL, Attack, Conditions, Score
from rlpips_jax.evaluation.placement import fetch, filled_size, put
from rlpips_jax.images import UNIT_RANGE, Images
from rlpips_jax.scoring import score

Direction = Literal["against", "away"]

PAIR_SCORES = {"opinion": ("pearson", "spearman", "kendall"), "same": ("jnd_map",)}
"""Names of the scores, by what people were asked for."""

SAVED = 64
"""Distances that are given at a time."""


@dataclass(frozen=True)
class PairEvaluation:
    """A metric on a set of judged pairs.

    Attributes:
        epsilon: radius of the attack; 0 without one.
        scores: over all pairs, by the names of `PAIR_SCORES`; `mean` is the score. NaN, of no pairs, where there are
            too few of them or all are alike.
        by_kind: over the pairs of each kind.
        distances: of each pair, after the attack.
    """

    epsilon: float
    scores: dict[str, Score]
    by_kind: dict[str, dict[str, Score]]
    distances: Float[np.ndarray, " n"]


def evaluate_pairs(
    metric: Metric | RandomMetric,
    pairs: JudgedPairs,
    attack: Attack | None = None,
    epsilons: Sequence[float] = (),
    *,
    direction: Direction = "against",
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
) -> list[PairEvaluation]:
    """Scores of a metric on judged pairs, as they are and under an attack of growing strength.

    Args:
        metric: from `rlpips_jax.load`, or your own.
        pairs: from `read_pairs`.
        attack: `objective, images, *, key, epsilon -> AttackResult`, as `functools.partial(rl.attacks.pgd, steps=20)`.
        epsilons: radii of the attack; images are in [0, 1].
        direction: "against" the judgment, or "away" from the reference.
        key: a key of `jax.random`; None for `jax.random.key(0)`.
        batch: most pairs attacked at once, 1 or more.
        conditions: surrogate, randomness and devices.

    Returns:
        The evaluation without attack first, then one for each epsilon.

    Raises:
        TripletsError: the batch is below 1, only one of attack and epsilons is given, the direction is not one of the
            two, or a distance is not finite.
        ImageFileError: an image cannot be read, or a pair cannot be compared.
    """
    if (attack is None) != (not len(epsilons)):
        raise TripletsError("an attack needs epsilons, and epsilons an attack; give both, or neither")
    common: dict[str, Any] = {"key": key, "batch": batch, "conditions": conditions}
    natural = np.concatenate(list(natural_pair_distances(metric, pairs, **common)))
    found = [assess_pairs(pairs, natural)]
    for epsilon in epsilons:
        bounded = functools.partial(cast(Attack, attack), epsilon=epsilon)
        parts = attacked_pair_distances(metric, pairs, bounded, direction=direction, **common)
        found.append(assess_pairs(pairs, natural, np.concatenate(list(parts)), float(epsilon)))
    return found


def natural_pair_distances(
    metric: Metric | RandomMetric,
    pairs: JudgedPairs,
    *,
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Float32[np.ndarray, " k"]]:
    """Distances of pairs as they are, from pair `start` on, part by part; other arguments as in `evaluate_pairs`."""
    whole_number("batch", batch, error=TripletsError)
    if pairs.size is None and not is_random(metric):
        files = zip(pairs.references[start:], pairs.images[start:], strict=True)
        with closing(score(files, cast(Metric, metric))) as results:
            while part := list(islice(results, SAVED)):
                for result in part:
                    if result.error:
                        raise ImageFileError(result.error)
                yield np.array([result.distance for result in part], np.float32)
        return
    for part, rows, own in _parts(pairs, start, batch, conditions, key):
        reference, image = (put(array[rows], conditions.placement) for array in (part.reference, part.image))
        found = _measured(metric, reference, image, judge_key(own), randomness=conditions.randomness)
        yield fetch(found)[: len(part.rows)].astype(np.float32)


def attacked_pair_distances(
    metric: Metric | RandomMetric,
    pairs: JudgedPairs,
    attack: Attack,
    *,
    direction: Direction = "against",
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    conditions: Conditions = USUAL,
    start: int = 0,
) -> Iterator[Float32[np.ndarray, " k"]]:
    """Distances after an attack, part by part from `start` on, which is where a part begins.

    `attack` is `objective, images, *, key -> AttackResult`, its radius included; other arguments as in
    `evaluate_pairs`.
    """
    whole_number("batch", batch, error=TripletsError)
    if direction not in get_args(Direction):
        raise TripletsError(f"direction must be 'against' or 'away', got {direction!r}")
    signs = np.where(_more_alike(pairs) | (direction == "away"), np.float32(1), np.float32(-1))
    for part, rows, own in _parts(pairs, start, batch, conditions, key):
        arrays = (part.reference, part.image, signs[part.rows])
        reference, image, sign = (jnp.asarray(put(array[rows], conditions.placement)) for array in arrays)
        judge = judge_key(own)
        objective = distance_objective(
            metric if conditions.surrogate is None else conditions.surrogate,
            reference,
            randomness=conditions.randomness,
            key=judge,
            value_range=UNIT_RANGE,
        )
        moved = run(attack, directed(objective, sign), image, own, UNIT_RANGE).adversarial
        found = _measured(metric, reference, moved, judge, randomness=conditions.randomness)
        yield fetch(found)[: len(part.rows)].astype(np.float32)


def assess_pairs(
    pairs: JudgedPairs,
    natural: Float[np.ndarray, " n"],
    attacked: Float[np.ndarray, " n"] | None = None,
    epsilon: float = 0.0,
) -> PairEvaluation:
    """Scores of distances, with or without an attack.

    Args:
        pairs: the pairs with these distances.
        natural: distances without an attack, to which the curve of `correlations.pearson` is fitted.
        attacked: distances after the attack; None without one.
        epsilon: radius of the attack.

    Raises:
        TripletsError: a distance is not finite.
    """
    distances = natural if attacked is None else attacked
    if bad := np.count_nonzero(~np.isfinite(distances)):
        raise TripletsError(f"{bad} of {len(distances)} distances are NaN or infinite; a score would mislead")
    groups = np.unique([str(file) for file in pairs.references], return_inverse=True)[1].reshape(-1)

    def of(chosen: Bool[np.ndarray, " n"]) -> dict[str, Score]:
        columns = (column[chosen] for column in (natural, distances, pairs.judgment, groups))
        return _scores(pairs.asked, *columns)

    kinds = np.array(pairs.kinds)
    by_kind = {kind: of(kinds == kind) for kind in dict.fromkeys(pairs.kinds)}
    return PairEvaluation(float(epsilon), of(np.ones(len(pairs), bool)), by_kind, distances)


def _scores(asked: str, natural: Any, distances: Any, judgment: Any, groups: Any) -> dict[str, Score]:
    if asked == "same":
        value = float(scores.jnd_average_precision(distances, judgment))

        def resampled(rows: np.ndarray) -> float:
            return float(scores.jnd_average_precision(distances[rows], judgment[rows]))

        return {"jnd_map": _score(value, correlations.grouped_interval(resampled, groups), len(judgment))}
    values = {name: getattr(correlations, name)(distances, judgment) for name in ("spearman", "kendall")}
    predicted = np.zeros(len(judgment))
    if len(natural) >= correlations.FEWEST and np.ptp(natural):
        predicted = correlations.logistic_curve(natural, judgment)(distances)
    values["pearson"] = correlations.pearson(predicted, judgment)
    intervals = correlations.correlation_intervals(predicted, distances, judgment, groups)
    return {name: _score(values[name], intervals[name], len(judgment)) for name in PAIR_SCORES[asked]}


def _score(value: float, interval: scores.Interval, count: int) -> Score:
    return Score(np.nan, np.nan, np.nan, 0) if np.isnan(value) else Score(value, interval.low, interval.high, count)


def _more_alike(pairs: JudgedPairs) -> Bool[np.ndarray, " n"]:
    """Which pairs people find more alike than the others: the better half, or what most of them call the same."""
    return pairs.judgment > (0.5 if pairs.asked == "same" else np.median(pairs.judgment))


def _parts(
    pairs: JudgedPairs, start: int, batch: int, conditions: Conditions, key: PRNGKeyArray | None
) -> Iterator[tuple[PairBatch, Any, PRNGKeyArray]]:
    """Batches, the rows that fill each so that devices share it evenly, and their keys."""
    key = jax.random.key(0) if key is None else key
    for part in pairs.batches(start, most=batch):
        count = len(part.rows)
        rows = np.minimum(np.arange(filled_size(count, conditions.placement)), count - 1)
        yield part, rows, jax.random.fold_in(key, int(part.rows[0]))


@functools.partial(jax.jit, static_argnames="randomness")
def _measured(
    metric: Metric | RandomMetric, reference: Images, image: Images, key: Array, *, randomness: Randomness
) -> Float[Array, " n"]:
    (found,) = measured_distances(metric, reference, (image,), randomness=randomness, key=key, value_range=UNIT_RANGE)
    return found

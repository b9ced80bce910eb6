"""How a metric does on validation sets, as it is and under attack, and the table that says so."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rlpips_jax import attacks, reports
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.evaluation import measurement
from rlpips_jax.evaluation.distortions import DISTORTIONS
from rlpips_jax.evaluation.placement import Placement
from rlpips_jax.evaluation.triplets import AnyTriplets
from training.config import Training, radius
from training.devices import say
from training.stopping import Interrupted

T = TypeVar("T")

Scores = dict[str, dict[str, float]]
"""By set: under "natural" and under each radius as it was stated, the 2AFC score; under "sure", the accuracy where the
judgment is clear. With the published protocol also under "majority", and "majority 8/255" under attack, the agreement
with more than half of the people."""

MAJORITY = "majority"


def scores(
    config: Training,
    metric: Metric | RandomMetric,
    sets: Mapping[str, AnyTriplets],
    *,
    placement: Placement = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Scores:
    """Evaluates a metric on sets of triplets with the attack that the configuration names for it.

    Crossed triplets, which show two distortions and were judged by a teacher, are not attacked: their order is an
    opinion. Nor are random metrics, whose attacks take long: `rlpips evaluate` does that.

    Args:
        config: of the run.
        metric: on all devices of the placement.
        sets: by their names.
        placement: over which devices batches are cut.
        interrupted: whether to leave off; asked before each set and after each batch.

    Raises:
        Interrupted: it was.
    """
    found: Scores = {}
    for name, triplets in sets.items():
        if interrupted():
            raise Interrupted
        say(f"evaluating on {name}")
        found[name] = _scores(config, metric, triplets, placement=placement, interrupted=interrupted)
    return found


def _scores(
    config: Training,
    metric: Any,
    triplets: AnyTriplets,
    *,
    placement: Placement,
    interrupted: Callable[[], bool],
) -> dict[str, float]:
    attack = functools.partial(attacks.pgd, norm=config.norm, steps=config.evaluation_steps)
    common: dict[str, Any] = {
        "key": jax.random.key(0),
        "conditions": measurement.Conditions(placement=placement),
    }

    def whole(parts: Iterator[measurement.Distances]) -> measurement.Distances:
        return measurement.join(_unless(interrupted, parts))

    distances = whole(measurement.natural_distances(metric, triplets, **common))
    natural = measurement.assess(triplets, distances).scores
    found = {"natural": natural.two_afc.mean}
    if triplets.sure is not None:
        found["sure"] = natural.sure.mean
    majority = {MAJORITY: natural.majority.mean}
    for text in _radii(config, metric, triplets):
        # Evaluation has images in [0, 1], radii are stated in [-1, 1].
        epsilon = radius(text, "--evaluation-epsilons") / 2
        bounded = functools.partial(attack, epsilon=epsilon)
        parts = measurement.attacked_distances(metric, triplets, bounded, attacked=config.attacked, **common)
        attacked = measurement.assess(triplets, distances, whole(parts), epsilon).scores
        found[text] = attacked.two_afc.mean
        majority[f"{MAJORITY} {text}"] = attacked.majority.mean
    return found | majority if config.protocol == "published" and natural.majority.count else found


def _radii(config: Training, metric: Any, triplets: AnyTriplets) -> Sequence[str]:
    """The radii of the attacks on a set; none where it is not attacked."""
    crossed = all(_is_of_two(kind) for kind in triplets.kinds)
    return () if crossed or is_random(metric) else config.evaluation_radii


def _unless(interrupted: Callable[[], bool], parts: Iterator[T]) -> Iterator[T]:
    """The parts until somebody interrupts."""
    for part in parts:
        yield part
        if interrupted():
            raise Interrupted


def flat(scores: Scores) -> dict[str, float]:
    """Scores as a record of the log has them, under names such as "kodak ordinal/natural"."""
    return {
        f"{name.replace('/', '-')}/{column}": value for name, one in scores.items() for column, value in one.items()
    }


def nested(record: Mapping[str, Any]) -> Scores:
    """The scores in a record of the log."""
    found: Scores = {}
    for key, value in record.items():
        name, slash, column = key.partition("/")
        if slash:
            found.setdefault(name, {})[column] = value
    return found


def summary(scores: Scores) -> float:
    """One number to choose a checkpoint by: the mean of all 2AFC scores, each set counting alike."""
    if not scores:
        return float("nan")
    counting = [
        [value for name, value in one.items() if name != "sure" and not name.startswith(MAJORITY)]
        for one in scores.values()
    ]
    return float(np.mean([np.mean(values) for values in counting]))


def table(before: Scores, after: Scores, names: tuple[str, str]) -> str:
    """Scores of two metrics side by side in percent, one line per set."""
    columns = list(dict.fromkeys(column for one in after.values() for column in one))
    heading = ["set"] + [f"{name} {column}" for column in columns for name in names]
    rows = []
    for each in [*after, *(["mean"] if len(after) > 1 else [])]:
        row = [each]
        for column in columns:
            for found in (before, after):
                values = [one[column] for name, one in found.items() if column in one and each in (name, "mean")]
                row.append(f"{100 * np.mean(values):.2f}" if values else "")
        rows.append(row)
    return reports.table(heading, rows)


def _is_of_two(kind: str) -> bool:
    first, slash, second = kind.partition("/")
    return bool(slash) and {first, second} <= DISTORTIONS.keys()


def document(scores: Scores) -> dict[str, Any]:
    """Scores for the model card, rounded to what they are worth."""
    return {name: {column: round(value, 6) for column, value in one.items()} for name, one in scores.items()}

"""The part of `rlpips evaluate` that measures how metrics agree with judged pairs."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from rlpips_jax import reports
from rlpips_jax.attacks import Randomness
from rlpips_jax.cli.results import Recording, metric_of
from rlpips_jax.cli.threats import Threat
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.evaluation import pair_measurement
from rlpips_jax.evaluation.judged_pairs import JudgedPairs
from rlpips_jax.evaluation.measurement import Conditions, Score
from rlpips_jax.evaluation.pair_measurement import PAIR_SCORES, Direction, PairEvaluation
from rlpips_jax.evaluation.placement import over_all_devices

HEADINGS = {"pearson": "Pearson", "spearman": "Spearman", "kendall": "Kendall", "jnd_map": "JND mAP"}
"""Columns of the tables, by the names of scores."""


@dataclass(frozen=True, kw_only=True)
class PairRun:
    """One metric on one set of pairs under one threat: one result on disk."""

    pairs: JudgedPairs
    label: str
    metric: Metric | RandomMetric
    threat: Threat
    surrogate: Metric | RandomMetric | None
    randomness: Randomness
    seed: int
    batch: int
    out: Path

    @property
    def count(self) -> int:
        """Pairs."""
        return len(self.pairs)

    @property
    def title(self) -> str:
        """The description in a progress bar."""
        threat = self.threat
        what = f" {threat.words} {threat.radii()[0]}" if threat.name else ""
        return f"{self.pairs.name} {self.label}{what}"

    @functools.cached_property
    def recording(self) -> Recording:
        """Where its results are kept."""
        threat = self.threat
        words = [self.pairs.name, self.label, threat.name or "natural"]
        settings: dict[str, Any] = {
            "data": self.pairs.name,
            "pairs": len(self.pairs),
            "source": dict(self.pairs.source),
            "metric": self.label,
            "signature": self.metric.signature,
            "threat": None,
        }
        if is_random(self.metric):
            settings |= {"samples": self.randomness.samples, "seed": self.seed, "batch": self.batch}
        if threat.name:
            words += [threat.norm, f"{threat.epsilon:.6g}", threat.attacked]
            settings["threat"] = threat.document() | {"seed": self.seed, "batch": self.batch}
        if self.surrogate is not None:
            settings["threat"] |= {"surrogate_signature": self.surrogate.signature}
        return Recording(self.out, words, settings, {"distance": np.float32})

    def evaluation(self, natural: np.ndarray | None, done: Callable[[int], Any]) -> PairEvaluation:
        """The scores; results on disk are not computed again.

        Args:
            natural: distances without the threat; None if there is no threat.
            done: called with the number of pairs that are done.
        """
        started = time.monotonic()
        (distances,) = self.recording.collect(len(self.pairs), self._compute, done)
        if natural is None:
            evaluation = pair_measurement.assess_pairs(self.pairs, distances)
        else:
            evaluation = pair_measurement.assess_pairs(self.pairs, natural, distances, self.threat.epsilon)
        by_kind = {kind: _plain(scores) for kind, scores in evaluation.by_kind.items()}
        agreement = {"asked": self.pairs.asked, "scores": _plain(evaluation.scores), "by_kind": by_kind}
        self.recording.finish({"agreement": agreement}, time.monotonic() - started)
        return evaluation

    def _compute(self, start: int) -> Iterator[tuple[np.ndarray]]:
        conditions = Conditions(surrogate=self.surrogate, randomness=self.randomness, placement=over_all_devices())
        options: dict[str, Any] = {
            "key": jax.random.key(self.seed),
            "batch": self.batch,
            "conditions": conditions,
            "start": start,
        }
        if self.threat.name:
            attack = functools.partial(self._attack, epsilon=self.threat.epsilon)
            direction = cast(Direction, self.threat.attacked)
            parts = pair_measurement.attacked_pair_distances(
                self.metric, self.pairs, attack, direction=direction, **options
            )
        else:
            parts = pair_measurement.natural_pair_distances(self.metric, self.pairs, **options)
        return ((part,) for part in parts)

    @property
    def _attack(self) -> Callable[..., Any]:
        # Away from an image itself, `distort` is `pgd`; here it is away from the reference.
        name = "pgd" if self.threat.name == "distort" else self.threat.name
        return dataclasses.replace(self.threat, name=name).function()


def pair_tables(
    documents: Iterable[dict[str, Any]], *, by_kind: bool = False
) -> list[tuple[Sequence[str], list[tuple[str, ...]]]]:
    """Headers and rows of tables, a row per result as it is written, with 95 % intervals: opinions, and same or not.

    Args:
        documents: results of judged pairs.
        by_kind: adds a row for each kind of distortion.
    """
    rows: dict[str, list[tuple[str, ...]]] = {asked: [] for asked in PAIR_SCORES}
    for document in documents:
        threat, agreement = Threat.of(document["threat"]), document["agreement"]
        named = (metric_of(document), threat.words, str(threat.steps or "-"), threat.attacked or "-", *threat.radii())
        kinds = agreement["by_kind"] if by_kind else {}
        for kind, scores in {"": agreement["scores"], **kinds}.items():
            data = f"{document['data']}: {kind}" if kind else document["data"]
            cells = [reports.cell(scores[name]) for name in PAIR_SCORES[agreement["asked"]]]
            count = max((score["count"] for score in scores.values() if score), default=0)
            rows[agreement["asked"]].append((data, *named, *cells, str(count)))
    columns = ("data", "metric", "attack", "steps", "moves", "eps [0,1]", "eps [-1,1]")
    return [
        ((*columns, *(HEADINGS[name] for name in PAIR_SCORES[asked]), "n"), found)
        for asked, found in rows.items()
        if found
    ]


def _plain(scores: dict[str, Score]) -> dict[str, Any]:
    """Scores for JSON, with null where there is not one."""
    return {name: dataclasses.asdict(score) if score.count else None for name, score in scores.items()}

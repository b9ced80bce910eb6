"""`rlpips evaluate`: how well metrics agree with judged triplets, as they are, under attack, and under shifts."""

import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.attacks import Randomness
from rlpips_jax.attacks.expectations import DRAWS, JUDGED
from rlpips_jax.attacks.table import ATTACKS, AttackEntry, names
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.evaluate_pairs import PairRun, pair_tables
from rlpips_jax.cli.options import Flag, load_metric
from rlpips_jax.cli.results import Recording, metric_of, write_whole
from rlpips_jax.cli.terminal import visible
from rlpips_jax.cli.threats import CROPPED, Threat, TripletAttack, epsilon_of
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation import exposure, measurement
from rlpips_jax.evaluation.exposure import Exposed
from rlpips_jax.evaluation.judged_pairs import JudgedPairs
from rlpips_jax.evaluation.measurement import Conditions, Distances, Evaluation, Score
from rlpips_jax.evaluation.pair_sources import pair_source_of
from rlpips_jax.evaluation.placement import filled_size, over_all_devices
from rlpips_jax.evaluation.reversal_radii import Radii, reversal_radii, summarise
from rlpips_jax.evaluation.sources import triplet_source_of
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.json_object import json_object
from rlpips_jax.files.regular import read_regular

SCORES = {"2AFC": "two_afc", "majority": "majority", "sure": "sure", "flipped": "flip_rate"}
"""Columns of the table, and their names in documents."""

RESULTS = ("by_kind", "exposure", "radii", "agreement")
"""Names of results in documents: of triplets, of references, of radii of reversal, and of judged pairs."""

SIDES = Literal["closer", "farther", "both", "reference", "worst"]


@dataclass(frozen=True, kw_only=True)
class Evaluate(TripletOptions):
    """Measure how well metrics agree with people, or with triplets of known order: as they are and under attack.

    --data takes opinion scores too, of TID2013, KADID-10k, CSIQ, LIVE, PIPAL or a .csv file (reference, distorted,
    opinion), and BAPPS's pairs of same or not. Attacks move their distorted images against the judgment; distort moves
    them away from the reference.

    Prints a table. Writes to --out one JSON file per result, the distances of each triplet, curves, and a table of all
    results there, by kinds of distortion. After an interruption the same command continues where it stopped; existing
    results are not computed again.

    Examples:
        rlpips evaluate --data photographs/ --metric lpips-tiny --metric rlpips-tiny
        rlpips evaluate --data triplets.npz --metric lpips-alex --attack pgd --epsilon 1/255 2/255 --out report/
        rlpips evaluate --data tid2013/ --metric dists --metric lpips-vgg
    """

    attack: Annotated[tuple[TripletAttack, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help_behavior_hint="")] = ()
    """Attack to measure too; worst_case is the worst of pgd, apgd, square, minimum and, in l-inf, recolor. distort and
    impostor change references alone: to the largest distance within --epsilon, or to the largest difference of pixels
    within --bound; their table compares with the usual distance and difference. minimum and first_reversal look for the
    smallest change that reverses each triplet; their table has its quartiles. May be given several times."""

    norm: tuple[Literal["linf", "l2"], ...] = ("linf",)
    """Norms in which attacks are bounded."""

    epsilon: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="E [E ...]", help_behavior_hint="(default: 1/255 2/255 4/255; l2 0.5 1 2)"),
    ] = ()
    """Radii as fractions of the range of values: 2/255 is 2 of 255 grey levels, 4/255 for images in [-1, 1]; union has
    2/255 4/255 8/255 by default, first_reversal 0.015. For spatial, pixels (default: 0.5 1); for shift, whole pixels
    (default: 1 to 8)."""

    attacked: Annotated[tuple[SIDES, ...], tyro.conf.arg(help_behavior_hint="(default: closer)")] = ("closer",)
    """Which image attacks move: the one closer to people (pushed away), the farther one (pulled in), both, the
    reference; 'worst' is the one that does most harm to each triplet."""

    steps: int = 20
    """Steps of an attack; for square and noise queries, two per step against a randomised metric. shift tries 16 shifts
    for each, so that by default no shift up to 8 pixels is left out."""

    restarts: int = 1
    """Starts of an attack, of which the best counts; against a randomised metric one after another."""

    bound: float = 0.5
    """Largest distance of an impostor, as a share of the metric's mean distance between references and distorted
    images. Impostors take four times as many --steps."""

    draws: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N [N ...]", help_behavior_hint=f"(default: {DRAWS})")] = ()
    """For randomised metrics: draws that each step of an attack averages (expectation over transformation)."""

    samples: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=f"(default: {JUDGED})")] = None
    """For randomised metrics: draws that a distance averages, before and after an attack."""

    fixed_key: Flag = False
    """For randomised metrics: also measure one that always draws the same --samples, under attacks that know them."""

    surrogate: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """Also measure how attacks on this metric harm the others (transfer)."""

    shift: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PX [PX ...]", help_behavior_hint="(default: none)")] = ()
    """Also shift both images against the reference by this many pixels, up and left; all images are cropped to what the
    largest shift leaves. --attack shift finds the worst of all shifts, and crops nothing."""

    batch: int = measurement.BATCH
    """Triplets attacked at once: bounds memory. The draws depend on it."""

    seed: int = 0
    """For all random draws."""

    out: Path = Path("report")
    """Folder for the results."""

    def run(self) -> int:
        measured = self.measure()
        print(tables(measured.documents))
        write_whole(self.out / "table.txt", tables(written(self.out), by_kind=True) + "\n")
        attacked = any(run.threat.name for run, _ in measured.results)
        pictures = curves(measured.results, self.out) if attacked else []
        print(f"results: {self.out}{os.sep}*.json, table.txt{''.join(f', {path.name}' for path in pictures)}")
        return 0

    def subjects(self) -> "Subjects":
        """What is measured.

        Raises:
            RlpipsError: data or metrics cannot be read.
        """
        judged = [path for path in self.data if pair_source_of(path)]
        # A folder may hold both, as that of BAPPS does.
        paths = [path for path in self.data if path not in judged or triplet_source_of(path)]
        sets = self.sets(paths) if paths or not self.data else []
        return Subjects(sets, self.pairs(judged), self.metrics())

    def measure(self, subjects: "Subjects | None" = None) -> "Measured":
        """Computes what --out does not hold yet.

        Args:
            subjects: from `subjects`, if they are read already.

        Raises:
            RlpipsError: an option makes no sense, or data or metrics cannot be read.
        """
        self._check()
        subjects = self.subjects() if subjects is None else subjects
        sets, pairs, metrics = subjects.sets, subjects.pairs, subjects.metrics
        self._check_attacks(bool(sets), bool(pairs))
        surrogate = None if self.surrogate is None else load_metric(self.surrogate, self.weights_dir)
        self._check_uses(list(metrics.values()), surrogate)
        runs = [
            Run(self, triplets, label, metric, threat, surrogate if threat.surrogate else None)
            for triplets in sets
            for label, metric in metrics.items()
            for threat in self._threats(metric, surrogate)
        ]
        pair_runs = [
            self._pair_run(judged, label, metric, threat, surrogate)
            for judged in pairs
            for label, metric in metrics.items()
            for threat in self._threats(metric, surrogate, pairs=True)
        ]
        results = _measured(runs, pair_runs)
        return Measured(results, [run.recording.document for run in (*runs, *pair_runs)])

    def _check(self) -> None:
        """Raises an AttackError for arguments that make no sense."""
        counts = {"steps": self.steps, "restarts": self.restarts, "batch": self.batch, "samples": self.samples}
        for name, count in (*counts.items(), *(("draws", draws) for draws in self.draws)):
            if count is not None and count < 1:
                raise AttackError(f"--{name} must be 1 or more, got {count}")
        if not 0 < self.bound < float("inf"):
            raise AttackError(f"--bound must be above 0, a share of the metric's usual distance, got {self.bound:g}")
        bounded = [name for name in self.attack if ATTACKS[name].radius == "epsilon"]
        ranked = {*self.attack} - {*names("distance", "goal")}
        options = {"epsilon": (self.epsilon, bounded), "surrogate": (self.surrogate, ranked)}
        options |= {"fixed-key": (self.fixed_key, self.attack), "draws": (self.draws, self.attack)}
        for name, (given, users) in options.items():
            if given and not users:
                raise AttackError(f"--{name} needs an attack that uses it: --attack pgd")
        for name in self.attack:
            if not self._norms(name):
                norms = " or ".join(ATTACKS[name].norms)
                raise AttackError(f"--attack {name} needs --norm {norms}, got {', '.join(self.norm) or 'nothing'}")
        # A share of the range is what a radius in l-inf is.
        units = {norm.replace("range", "linf") for name in bounded for norm in self._norms(name)}
        if self.epsilon and len(units) > 1:
            raise AttackError(
                f"--epsilon cannot be right for {', '.join(sorted(units))} alike: leave it out, or evaluate them one "
                "after another into the same --out"
            )

    def _check_uses(self, metrics: Sequence[Metric | RandomMetric], surrogate: Metric | RandomMetric | None) -> None:
        """Raises an AttackError for options that none of these metrics uses."""
        if surrogate is not None and all(surrogate.signature == metric.signature for metric in metrics):
            raise AttackError(f"--surrogate {self.surrogate} is the only --metric; give one that attacks transfer to")
        random = any(is_random(metric) for metric in metrics)
        for name, given, used in (
            ("samples", self.samples, random),
            ("fixed-key", self.fixed_key, random),
            ("draws", self.draws, random or is_random(surrogate)),
        ):
            if given and not used:
                raise AttackError(f"--{name} is for randomised metrics, such as --metric elpips-squeeze")

    def _check_attacks(self, triplets: bool, pairs: bool) -> None:
        """Raises an AttackError for attacks and shifts that the data have no use for."""
        if pairs and (unfit := {*self.attack} - {"distort", *names("objective")}):
            raise AttackError(
                f"--attack {', '.join(sorted(unfit))} works on triplets; judged pairs are attacked by distort, "
                f"{', '.join(names('objective'))}"
            )
        if self.shift and not triplets:
            raise AttackError("--shift needs triplets, and --data has judged pairs alone")

    def _pair_run(self, pairs: JudgedPairs, label: str, metric: Any, threat: Threat, surrogate: Any) -> PairRun:
        return PairRun(
            pairs=pairs,
            label=label,
            metric=metric,
            threat=threat,
            surrogate=surrogate if threat.surrogate else None,
            randomness=Randomness(threat.draws or DRAWS, self.samples or JUDGED, threat.fixed),
            seed=self.seed,
            batch=self.batch,
            out=self.out,
        )

    def _threats(
        self, metric: Metric | RandomMetric, surrogate: Metric | RandomMetric | None, *, pairs: bool = False
    ) -> list[Threat]:
        """The threats to one metric: none first, then every attack at every strength."""
        threats = [Threat()]
        for name in dict.fromkeys(self.attack):
            attack = ATTACKS[name]
            for norm in self._norms(name):
                for side in self._sides(attack, pairs=pairs):
                    for radius in self._radii(attack, norm):
                        threat = Threat(name, norm, radius, side, attack.pace * self.steps, self.restarts)
                        threats += self._adapted(threat, metric, surrogate)
        shifts = (0, *self.shift) if self.shift and not pairs else ()
        return threats + [Threat(CROPPED, "pixels", float(shift)) for shift in shifts]

    def _sides(self, attack: AttackEntry, *, pairs: bool) -> Sequence[str]:
        """Which images of triplets an attack moves, or which way it moves the distorted images of pairs."""
        alone = attack.takes == "distance"
        if pairs:
            return ("away",) if alone else ("against",)
        return attack.moves if alone else self.attacked

    def _norms(self, name: str) -> tuple[str, ...]:
        """Norms or units in which an attack is measured; "" for a bound on the metric."""
        attack = ATTACKS[name]
        if attack.radius == "bound":
            return ("",)
        return tuple(norm for norm in self.norm if norm in attack.norms) if attack.norms else (attack.unit,)

    def _radii(self, attack: AttackEntry, norm: str) -> list[float]:
        """Radii of an attack; 0 for one that nothing bounds."""
        if attack.radius == "bound":
            return [self.bound]
        return [epsilon_of(text, norm) for text in self.epsilon or attack.radii(norm)] if attack.radius else [0.0]

    def _adapted(
        self, threat: Threat, metric: Metric | RandomMetric, surrogate: Metric | RandomMetric | None
    ) -> list[Threat]:
        """An attack adapted to a metric, and transferred from the surrogate."""

        def against(attacked: Metric | RandomMetric, **more: Any) -> list[Threat]:
            draws = dict.fromkeys(self.draws or (DRAWS,)) if is_random(attacked) else (0,)
            return [dataclasses.replace(threat, draws=count, **more) for count in draws]

        if threat.seeks:
            return [dataclasses.replace(threat, fixed=is_random(metric))]
        threats = against(metric)
        if self.fixed_key and is_random(metric):
            threats.append(dataclasses.replace(threat, fixed=True))
        if not threat.exposes and surrogate is not None and surrogate.signature != metric.signature:
            threats += against(surrogate, surrogate=surrogate.name)
        return threats


@dataclass(frozen=True)
class Run:
    """One metric on one set under one threat: one result on disk."""

    options: Evaluate
    triplets: AnyTriplets
    label: str
    metric: Metric | RandomMetric
    threat: Threat
    surrogate: Metric | RandomMetric | None = None

    @property
    def title(self) -> str:
        """The description in a progress bar."""
        threat = self.threat
        what = f" {threat.words} {threat.radii()[0]}" if threat.name else ""
        return f"{self.triplets.name} {self.label}{what}"

    @functools.cached_property
    def count(self) -> int:
        """Triplets, or different references."""
        return len(exposure.different_references(self.triplets).first) if self.threat.exposes else len(self.triplets)

    @property
    def randomness(self) -> Randomness:
        """How a randomised metric is attacked and judged."""
        return Randomness(self.threat.draws or DRAWS, self.options.samples or JUDGED, self.threat.fixed)

    @functools.cached_property
    def recording(self) -> Recording:
        """Where its results are kept."""
        threat, options = self.threat, self.options
        settings: dict[str, Any] = {
            "data": self.triplets.name,
            "triplets": len(self.triplets),
            "source": dict(self.triplets.source),
            "metric": self.label,
            "signature": self.metric.signature,
            "threat": None,
        }
        words = [self.triplets.name, self.label, threat.name or "natural"]
        if is_random(self.metric):
            settings |= {"samples": self.randomness.samples, "seed": options.seed, "rows": self._rows}
        if threat.name:
            words += [threat.norm, f"{threat.epsilon:.6g}", threat.attacked]
            settings["threat"] = threat.document() | (
                {"largest": max(options.shift)}
                if threat.name == CROPPED
                else {"seed": options.seed, "batch": options.batch}
            )
        if self.surrogate is not None:
            settings["threat"] |= {"surrogate_signature": self.surrogate.signature, "rows": self._rows}
        names = (Exposed if threat.exposes else Radii if threat.seeks else Distances)._fields
        columns: dict[str, Any] = dict.fromkeys(names, np.float32)
        if threat.seeks:
            # Files hold finite numbers alone.
            columns["found"] = np.bool_
        return Recording(options.out, words, settings, columns)

    @property
    def _rows(self) -> int:
        """Rows of a batch, on which the draws of a randomised metric depend."""
        size = min(self.options.batch, self.count)
        return size if self.threat.exposes else filled_size(size, over_all_devices())

    def evaluation(self, natural: Distances | None, done: Callable[[int], Any]) -> Evaluation:
        """The scores; results on disk are not computed again.

        Args:
            natural: distances without the threat; None if there is no threat.
            done: called with the number of triplets that are done.
        """
        started = time.monotonic()
        columns = self.recording.collect(self.count, self._compute, done)
        distances = Distances(*columns)
        if natural is None:
            evaluation = measurement.assess(self.triplets, distances)
        else:
            evaluation = measurement.assess(self.triplets, natural, distances, self.threat.epsilon)
        kinds = {kind: _plain(scores) for kind, scores in evaluation.by_kind.items()}
        results = {"scores": _plain(evaluation.scores), "by_kind": kinds}
        self.recording.finish(results, time.monotonic() - started)
        return evaluation

    def expose(self, natural: Distances, done: Callable[[int], Any]) -> None:
        """How far the references can be driven; results on disk are not computed again.

        Args:
            natural: distances without an attack.
            done: called with the number of triplets that are done.
        """
        started = time.monotonic()
        compute = functools.partial(self._exposed, natural)
        exposed = Exposed(*self.recording.collect(self.count, compute, done))
        results = {
            "usual": {
                "distance": exposure.usual_distance(natural),
                "rms": exposure.usual_difference(self.triplets),
            },
            "distance": dataclasses.asdict(exposure.rise(exposed, natural, self.triplets)),
            "rms": dataclasses.asdict(exposure.spread(exposed, self.triplets)),
        }
        self.recording.finish({"exposure": results}, time.monotonic() - started)

    def _exposed(self, natural: Distances, start: int) -> Iterator[Exposed]:
        threat = self.threat
        options: dict[str, Any] = {"steps": threat.steps, "restarts": threat.restarts, "randomness": self.randomness}
        if not threat.norm:
            options["bound"] = threat.epsilon * exposure.usual_distance(natural)
        else:
            options |= {"epsilon": threat.epsilon, "norm": threat.norm}
        attack = functools.partial(ATTACKS[threat.name].function, **options)
        return exposure.exposed(self.metric, self.triplets, attack, start=start, **self._seeded)

    def seek(self, natural: Distances, done: Callable[[int], Any]) -> None:
        """How small a change reverses each triplet; results on disk are not computed again.

        Args:
            natural: distances without an attack.
            done: called with the number of triplets that are done.
        """
        started = time.monotonic()
        *columns, found = self.recording.collect(self.count, self._sought, done)
        radii = Radii(*(np.where(found, column, np.float32(np.inf)) for column in columns))
        judgment, sure = self.triplets.judgment, measurement.clearly_judged(self.triplets)

        def summary(rows: Any) -> dict[str, Any]:
            chosen = Radii(*(column[rows] for column in radii)), Distances(*(column[rows] for column in natural))
            return _finite(dataclasses.asdict(summarise(*chosen, judgment[rows])))

        results = {"": summary(slice(None))} | ({} if sure.all() or not sure.any() else {"sure": summary(sure)})
        self.recording.finish({"radii": results}, time.monotonic() - started)

    def _sought(self, start: int) -> Iterator[tuple[np.ndarray, ...]]:
        threat = self.threat
        attack: Any = functools.partial(threat.function(), **({"epsilon": threat.epsilon} if threat.epsilon else {}))
        conditions = Conditions(randomness=self.randomness, placement=over_all_devices())
        options: dict[str, Any] = {**self._seeded, "conditions": conditions, "start": start}
        for part in reversal_radii(self.metric, self.triplets, attack, attacked=threat.sides, **options):
            found = np.isfinite(part.radius)
            yield (*(np.where(found, column, np.float32(0)) for column in part), found)

    def _compute(self, start: int) -> Iterator[Distances]:
        threat = self.threat
        placement = None if threat.name == CROPPED else over_all_devices()
        conditions = Conditions(surrogate=self.surrogate, randomness=self.randomness, placement=placement)
        options: dict[str, Any] = {**self._seeded, "conditions": conditions, "start": start}
        if threat.name == CROPPED:
            shift, largest = int(threat.epsilon), max(self.options.shift)
            return measurement.shifted_distances(self.metric, self.triplets, shift, largest, **options)
        if not threat.name:
            return measurement.natural_distances(self.metric, self.triplets, **options)
        attack = functools.partial(threat.function(), epsilon=threat.epsilon)
        return measurement.attacked_distances(self.metric, self.triplets, attack, attacked=threat.sides, **options)

    @property
    def _seeded(self) -> dict[str, Any]:
        return {"key": jax.random.key(self.options.seed), "batch": self.options.batch}


Results = Sequence[tuple[Run, Evaluation]]


@dataclass(frozen=True)
class Subjects:
    """What is measured: sets of triplets, sets of judged pairs, and metrics by their labels."""

    sets: Sequence[AnyTriplets]
    pairs: Sequence[JudgedPairs]
    metrics: Mapping[str, Metric | RandomMetric]


@dataclass(frozen=True)
class Measured:
    """Scores of triplets, and all results as they are written."""

    results: Results
    documents: Sequence[dict[str, Any]]


def _measured(runs: Sequence[Run], pair_runs: Sequence[PairRun]) -> list[tuple[Run, Evaluation]]:
    """Computes results, or finds them on disk; gives the scores of triplets."""
    from tqdm import tqdm

    results: list[tuple[Run, Evaluation]] = []
    total = sum(run.count for run in (*runs, *pair_runs))
    with interrupts.deferred(), tqdm(total=total, unit="example", disable=None) as bar:
        natural: Distances | None = None
        natural_pairs: np.ndarray | None = None
        for run in runs:
            bar.set_description(visible(run.title))
            if run.threat.exposes or run.threat.seeks:
                assert natural is not None
                (run.expose if run.threat.exposes else run.seek)(natural, bar.update)
                continue
            evaluation = run.evaluation(None if run.threat.is_base else natural, bar.update)
            if run.threat.is_base:
                natural = evaluation.distances
            results.append((run, evaluation))
        for run in pair_runs:
            bar.set_description(visible(run.title))
            distances = run.evaluation(None if run.threat.is_base else natural_pairs, bar.update).distances
            if run.threat.is_base:
                natural_pairs = distances
    return results


def tables(documents: Sequence[dict[str, Any]], *, by_kind: bool = False) -> str:
    """A row per result, with 95 % intervals: how triplets are ranked, how far references can be driven, and how pairs
    are judged.

    Args:
        documents: results as they are written.
        by_kind: adds a row for each kind of distortion.
    """
    found: list[Rows] = []
    if ranked := [document for document in documents if "scores" in document]:
        found.append(table(ranked, by_kind=by_kind))
    for name, make in (("exposure", exposure_table), ("radii", radius_table)):
        if documents_of := [document for document in documents if name in document]:
            found.append(make(documents_of))
    found += pair_tables([document for document in documents if "agreement" in document], by_kind=by_kind)
    return "\n\n".join(reports.table(header, rows) for header, rows in found)


Rows = tuple[Sequence[str], list[tuple[str, ...]]]
"""The header and the rows of a table."""


def table(documents: Iterable[dict[str, Any]], *, by_kind: bool = False) -> Rows:
    """How triplets are ranked."""
    header = ("data", "metric", "attack", "steps", "moves", "eps [0,1]", "eps [-1,1]", *SCORES, "n")
    rows = []
    for document in documents:
        threat = Threat.of(document["threat"])
        named = (metric_of(document), threat.words, str(threat.steps or "-"), threat.attacked or "-", *threat.radii())
        for kind, scores in {"": document["scores"], **(document["by_kind"] if by_kind else {})}.items():
            data = f"{document['data']}: {kind}" if kind else document["data"]
            count = scores["two_afc"]["count"]
            rows.append((data, *named, *(reports.cell(scores[name]) for name in SCORES.values()), str(count)))
    return header, rows


def exposure_table(documents: Iterable[dict[str, Any]]) -> Rows:
    """How far references can be driven, relative to the usual distance and difference of distorted images."""
    header = ("data", "metric", "attack", "steps", "within", "usual d", "d / usual", "rms / usual", "n")
    rows = []
    for document in documents:
        threat, found = Threat.of(document["threat"]), document["exposure"]
        rows.append(
            (
                *(document["data"], metric_of(document), threat.words, str(threat.steps), threat.radii()[0]),
                reports.plain(np.float32(found["usual"]["distance"])),
                *(reports.cell(found[name]) for name in ("distance", "rms")),
                str(found["distance"]["count"]),
            )
        )
    return header, rows


def radius_table(documents: Iterable[dict[str, Any]]) -> Rows:
    """How small a change reverses triplets: quartiles in the attack's norm (first_reversal: l2), images in [0, 1]."""
    header = ("data", "metric", "attack", "steps", "moves", "within", "reversed", "radius 25 %", "50 %", "75 %")
    rows = []
    for document in documents:
        threat = Threat.of(document["threat"])
        named = (metric_of(document), threat.words, str(threat.steps), threat.attacked, threat.radii()[0] or "-")
        for part, found in document["radii"].items():
            data = f"{document['data']}: {part}" if part else document["data"]
            quartiles = (_radius(score) for score in found["radius"])
            levels = _radius(found["rms"], 255.0)
            count = str(found["radius"][0]["count"])
            rows.append((data, *named, reports.cell(found["reversed"]), *quartiles, levels, count))
    return (*header, "mean RMSE of 255", "n"), rows


def _radius(score: dict[str, Any] | None, scale: float = 1.0) -> str:
    if score is None:
        return "-"
    ends = (score["mean"], score["low"], score["high"])
    mean, low, high = ("inf" if end is None else f"{scale * end:.4g}" for end in ends)
    return f"{mean} [{low}, {high}]"


def written(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, sorted by set, metric, attack, moved image and radius."""
    found = []
    for path in folder.glob("*.json"):
        # The folder may contain files of other programs.
        with contextlib.suppress(OSError, ValueError):
            document = json_object(read_regular(path))
            threat = document.get("threat") or {}
            if isinstance(threat, dict) and any({"threat", "signature", name} <= document.keys() for name in RESULTS):
                found.append(document)
    return sorted(found, key=_order)


def _order(document: dict[str, Any]) -> tuple[Any, ...]:
    threat = Threat.of(document["threat"])
    what = (threat.name, threat.norm, threat.attacked, threat.steps, threat.epsilon, threat.words)
    count = document.get("triplets", document.get("pairs"))
    return (document["data"], count, document["metric"], *what)


def curves(results: Results, folder: Path) -> list[Path]:
    """A figure per set, attack and norm: 2AFC score over the radius, a line per metric and moved image."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("no curves are drawn: matplotlib is not installed (pip install 'rlpips-jax[viz]')")
        return []
    groups: dict[tuple[str, str, str], list[tuple[Run, Evaluation]]] = {}
    natural: dict[tuple[str, str], Evaluation] = {}
    for run, evaluation in results:
        if run.threat.name:
            groups.setdefault((run.triplets.name, run.threat.name, run.threat.norm), []).append((run, evaluation))
        else:
            natural[run.triplets.name, run.label] = evaluation
    paths = []
    for (data, attack, norm), members in groups.items():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        lines: dict[str, dict[float, Score]] = {}
        for run, evaluation in members:
            line = lines.setdefault(
                ", ".join(filter(None, (run.label, *run.threat.line))),
                {0.0: natural[data, run.label].scores.two_afc},
            )
            line[run.threat.epsilon] = evaluation.scores.two_afc
        scale = 255 if norm in ("linf", "range") else 1
        for label, points in lines.items():
            radii = sorted(points)
            means, lows, highs = zip(*((points[r].mean, points[r].low, points[r].high) for r in radii), strict=True)
            positions = [scale * radius for radius in radii]
            axes.plot(positions, means, marker="o", label=label)
            axes.fill_between(positions, lows, highs, alpha=0.15, linewidth=0)
        levels = "l-inf radius in grey levels of 255"
        units = {"linf": levels, "range": levels, "l2": "l2 radius, images in [0, 1]"}
        axes.set(xlabel=units.get(norm, "pixels"), ylabel="2AFC score", ylim=(-0.02, 1.02), title=f"{data}: {attack}")
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path = folder / f"curves-{re.sub(r'[^A-Za-z0-9.]+', '-', data)}-{attack}-{norm}.png"
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=150)
        paths.append(path)
    return paths


def _plain(scores: measurement.Scores) -> dict[str, Any]:
    """Scores for JSON, with null for NaN."""
    return {
        name: None
        if score is None or not score["count"]
        else {key: value if key == "count" else np.float64(value) for key, value in score.items()}
        for name, score in dataclasses.asdict(scores).items()
    }


def _finite(results: Any) -> Any:
    """Nested results for JSON, with null for infinity and for scores of nothing."""
    if isinstance(results, dict):
        if results.get("count") == 0:
            return None
        return {name: _finite(value) for name, value in results.items()}
    if isinstance(results, tuple):
        return [_finite(value) for value in results]
    return results if np.isfinite(results) else None

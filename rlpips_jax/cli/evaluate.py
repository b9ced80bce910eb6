"""`rlpips evaluate`: how well metrics agree with judged triplets, naturally, under attack, and under shifts."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.attacks import Randomness
from rlpips_jax.attacks.expectations import DRAWS, JUDGED
from rlpips_jax.attacks.table import ATTACKS, RADII, names
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import load_metric
from rlpips_jax.cli.results import Recording, write_whole
from rlpips_jax.cli.threats import PictureAttack, Threat, epsilon_of
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation import exposure, measurement
from rlpips_jax.evaluation.exposure import Exposed
from rlpips_jax.evaluation.measurement import Distances, Evaluation, Score
from rlpips_jax.evaluation.placement import filled_size, over_all_devices
from rlpips_jax.evaluation.triplets import AnyTriplets

SCORES = {"2AFC": "two_afc", "majority": "majority", "sure": "sure", "flipped": "flip_rate"}
"""Columns of the table, and what documents call them."""

SIDES = Literal["closer", "farther", "both", "reference", "worst"]


@dataclass(frozen=True, kw_only=True)
class Evaluate(TripletOptions):
    """Measure how well metrics agree with people, or with triplets that are known: as they are and under attack.

    Prints a table. Writes to --out one JSON a result, the distances of each triplet, curves, and a table of all that is
    there, by kinds of distortion. Interrupted, the same command goes on where it stood, and results that are there
    already are not computed again.
    """

    attack: Annotated[tuple[PictureAttack, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help_behavior_hint="")] = ()
    """Attack to measure besides; worst_case is the worst of pgd, apgd and square. distort and impostor move references
    alone: to where the metric measures most within --epsilon, or where pixels differ most within --bound; their table
    says how many times that is what is usual. May be given several times."""

    norm: tuple[Literal["linf", "l2"], ...] = ("linf",)
    """Norms in which attacks are bounded."""

    epsilon: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="E [E ...]", help_behavior_hint="(default: 1/255 2/255 4/255; l2 0.5 1 2)"),
    ] = ()
    """Radii as fractions of the whole range of values: 2/255 is 2 of 255 grey levels, 4/255 for images in [-1, 1]. Of
    spatial, pixels (default: 0.5 1)."""

    attacked: Annotated[tuple[SIDES, ...], tyro.conf.arg(help_behavior_hint="(default: closer)")] = ("closer",)
    """Whom attacks move: the image that is closer to people (pushed away), the farther one (pulled in), both, the
    reference; 'worst' is what does most harm to each triplet."""

    steps: int = 20
    """Steps of an attack; of square and noise, queries, which against an ensemble are two each."""

    restarts: int = 1
    """Starts of an attack, of which the best counts; against an ensemble one after another."""

    bound: float = 0.5
    """What an impostor may measure, as a share of the metric's mean distance between references and distorted images.
    It takes four times as many --steps."""

    draws: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N [N ...]", help_behavior_hint=f"(default: {DRAWS})")] = ()
    """Of ensembles: transformations that each step of an attack averages (expectation over transformation)."""

    samples: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=f"(default: {JUDGED})")] = None
    """Of ensembles: transformations that a distance averages, before and after an attack."""

    fixed_key: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of ensembles: also measure one that always draws the same --samples, under attacks that know them."""

    surrogate: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    """Also measure what attacks on this metric do to the others (transfer)."""

    shift: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PX [PX ...]", help_behavior_hint="(default: none)")] = ()
    """Also shift both images against the reference by so many pixels."""

    batch: int = measurement.BATCH
    """Triplets attacked at once: bounds memory, and is part of the seeding."""

    seed: int = 0
    """Of everything that attacks draw."""

    out: Path = Path("report")
    """Folder for the results."""

    def run(self) -> int:
        self._check()
        sets, metrics = self.sets(), self.metrics(random=True)
        surrogate = None if self.surrogate is None else load_metric(self.surrogate, self.weights_dir)
        self._check_uses(metrics, surrogate)
        runs = [
            Run(self, triplets, metric, threat, surrogate if threat.surrogate else None)
            for triplets in sets
            for metric in metrics
            for threat in self._threats(metric, surrogate)
        ]
        from tqdm import tqdm

        results: list[tuple[Run, Evaluation]] = []
        with (
            interrupts.deferred(),
            tqdm(total=sum(run.count for run in runs), unit="triplet", disable=None) as bar,
        ):
            natural: Distances | None = None
            for run in runs:
                bar.set_description(run.title)
                if run.threat.exposes:
                    assert natural is not None
                    run.expose(natural, bar.update)
                    continue
                evaluation = run.evaluation(None if run.threat.is_base else natural, bar.update)
                if run.threat.is_base:
                    natural = evaluation.distances
                results.append((run, evaluation))
        print(tables([run.recording.document for run in runs]))
        write_whole(self.out / "table.txt", tables(written(self.out), by_kind=True) + "\n")
        attacked = any(run.threat.name for run, _ in results)
        pictures = curves(results, self.out) if attacked else []
        print(f"results: {self.out}{os.sep}*.json, table.txt{''.join(f', {path.name}' for path in pictures)}")
        return 0

    def _check(self) -> None:
        """Raises an AttackError for arguments that make no sense."""
        counts = {"steps": self.steps, "restarts": self.restarts, "batch": self.batch, "samples": self.samples}
        for name, count in (*counts.items(), *(("draws", draws) for draws in self.draws)):
            if count is not None and count < 1:
                raise AttackError(f"--{name} must be 1 or more, got {count}")
        if not 0 < self.bound < float("inf"):
            raise AttackError(f"--bound must be above 0, a share of the metric's usual distance, got {self.bound:g}")
        bounded = [name for name in self.attack if ATTACKS[name].radius == "epsilon"]
        ranked = {*self.attack} - {*names("distance")}
        options = {"epsilon": (self.epsilon, bounded), "surrogate": (self.surrogate, ranked)}
        options |= {"fixed-key": (self.fixed_key, self.attack), "draws": (self.draws, self.attack)}
        for name, (given, users) in options.items():
            if given and not users:
                raise AttackError(f"--{name} needs an attack that it is for: --attack pgd")
        units = {norm for name in bounded for norm in self._norms(name)}
        if self.epsilon and len(units) > 1:
            raise AttackError(
                f"--epsilon cannot be right for {', '.join(sorted(units))} alike: leave it out, or evaluate one after "
                "the other into the same --out"
            )

    def _check_uses(self, metrics: Sequence[Metric | Ensemble], surrogate: Metric | Ensemble | None) -> None:
        """Raises an AttackError for options that none of these metrics has a use for."""
        if surrogate is not None and all(surrogate.signature == metric.signature for metric in metrics):
            raise AttackError(f"--surrogate {self.surrogate} is the only --metric; give one that attacks transfer to")
        random = any(isinstance(metric, Ensemble) for metric in metrics)
        for name, given, used in (
            ("samples", self.samples, random),
            ("fixed-key", self.fixed_key, random),
            ("draws", self.draws, random or isinstance(surrogate, Ensemble)),
        ):
            if given and not used:
                raise AttackError(f"--{name} is for ensembles, such as --metric elpips-squeeze")

    def _threats(self, metric: Metric | Ensemble, surrogate: Metric | Ensemble | None) -> list[Threat]:
        """To one metric: nothing first, then every attack at every strength."""
        threats = [Threat()]
        for name in dict.fromkeys(self.attack):
            attack = ATTACKS[name]
            alone = attack.takes == "distance"
            for norm in self._norms(name):
                for side in attack.moves if alone else self.attacked:
                    radii = [epsilon_of(text, norm) for text in self.epsilon or RADII[norm]] if norm else [self.bound]
                    for radius in radii:
                        threat = Threat(name, norm, radius, side, attack.pace * self.steps, self.restarts)
                        threats += self._adapted(threat, metric, None if alone else surrogate)
        return threats + [Threat("shift", "pixels", float(shift)) for shift in ((0, *self.shift) if self.shift else ())]

    def _norms(self, name: str) -> tuple[str, ...]:
        """Norms or units in which an attack is measured; "" for a bound on the metric."""
        attack = ATTACKS[name]
        if attack.radius == "bound":
            return ("",)
        return tuple(norm for norm in self.norm if norm in attack.norms) if attack.norms else (attack.unit,)

    def _adapted(self, threat: Threat, metric: Metric | Ensemble, surrogate: Metric | Ensemble | None) -> list[Threat]:
        """An attack as it adapts to a metric, and transferred from the surrogate."""

        def against(attacked: Metric | Ensemble, **more: Any) -> list[Threat]:
            draws = dict.fromkeys(self.draws or (DRAWS,)) if isinstance(attacked, Ensemble) else (0,)
            return [dataclasses.replace(threat, draws=count, **more) for count in draws]

        threats = against(metric)
        if self.fixed_key and isinstance(metric, Ensemble):
            threats.append(dataclasses.replace(threat, fixed=True))
        if surrogate is not None and surrogate.signature != metric.signature:
            threats += against(surrogate, surrogate=surrogate.name)
        return threats


@dataclass(frozen=True)
class Run:
    """One metric on one set under one threat: one result on disk."""

    options: Evaluate
    triplets: AnyTriplets
    metric: Metric | Ensemble
    threat: Threat
    surrogate: Metric | Ensemble | None = None

    @property
    def title(self) -> str:
        """What a progress bar says."""
        threat = self.threat
        what = f" {threat.words} {threat.radii()[0]}" if threat.name else ""
        return f"{self.triplets.name} {self.metric.name}{what}"

    @functools.cached_property
    def count(self) -> int:
        """Triplets, or different references."""
        return len(exposure.different_references(self.triplets).first) if self.threat.exposes else len(self.triplets)

    @property
    def randomness(self) -> Randomness:
        """How an ensemble is attacked and judged."""
        return Randomness(self.threat.draws or DRAWS, self.options.samples or JUDGED, self.threat.fixed)

    @functools.cached_property
    def recording(self) -> Recording:
        """Where its results are kept."""
        threat, options = self.threat, self.options
        settings: dict[str, Any] = {
            "data": self.triplets.name,
            "triplets": len(self.triplets),
            "source": dict(self.triplets.source),
            "metric": self.metric.name,
            "signature": self.metric.signature,
            "threat": None,
        }
        words = [self.triplets.name, self.metric.name, threat.name or "natural"]
        if isinstance(self.metric, Ensemble):
            settings |= {"samples": self.randomness.samples, "seed": options.seed, "rows": self._rows}
        if threat.name:
            words += [threat.norm, f"{threat.epsilon:.6g}", threat.attacked]
            settings["threat"] = threat.document() | (
                {"largest": max(options.shift)}
                if threat.name == "shift"
                else {"seed": options.seed, "batch": options.batch}
            )
        if self.surrogate is not None:
            settings["threat"] |= {"surrogate_signature": self.surrogate.signature, "rows": self._rows}
        names = Exposed._fields if threat.exposes else Distances._fields
        return Recording(options.out, words, settings, dict.fromkeys(names, np.float32))

    @property
    def _rows(self) -> int:
        """Of a batch, which an ensemble's draws depend on."""
        size = min(self.options.batch, self.count)
        return size if self.threat.exposes else filled_size(size, over_all_devices())

    def evaluation(self, natural: Distances | None, done: Callable[[int], Any]) -> Evaluation:
        """The scores; what is on disk already is not computed again.

        Args:
            natural: distances without the threat, if there is one.
            done: is told how many triplets are done.
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
        """What the metric can be made to say of the references; what is on disk already is not computed again.

        Args:
            natural: distances without an attack, which say what is usual.
            done: is told how many triplets are done.
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
        options: dict[str, Any] = {
            "steps": threat.steps,
            "restarts": threat.restarts,
            "randomness": self.randomness,
            "key": jax.random.key(self.options.seed),
            "batch": self.options.batch,
            "start": start,
        }
        if not threat.norm:
            bound = threat.epsilon * exposure.usual_distance(natural)
            return exposure.impostors(self.metric, self.triplets, bound, **options)
        return exposure.distorted(self.metric, self.triplets, threat.epsilon, norm=threat.norm, **options)

    def _compute(self, start: int) -> Iterator[Distances]:
        threat = self.threat
        options: dict[str, Any] = {
            "randomness": self.randomness,
            "key": jax.random.key(self.options.seed),
            "batch": self.options.batch,
            "start": start,
        }
        if threat.name == "shift":
            shift, largest = int(threat.epsilon), max(self.options.shift)
            return measurement.shifted_distances(self.metric, self.triplets, shift, largest, **options)
        options["placement"] = over_all_devices()
        if not threat.name:
            return measurement.natural_distances(self.metric, self.triplets, **options)
        return measurement.attacked_distances(
            self.metric,
            self.triplets,
            threat.function(),
            threat.epsilon,
            attacked=threat.sides,
            surrogate=self.surrogate,
            **options,
        )


Results = Sequence[tuple[Run, Evaluation]]


def tables(documents: Sequence[dict[str, Any]], *, by_kind: bool = False) -> str:
    """A row for each result, with 95 % intervals: how triplets are ranked, and what references can be made to measure.

    Args:
        documents: results as they are written.
        by_kind: adds a row for each kind of each.
    """
    found = [table([document for document in documents if "scores" in document], by_kind=by_kind)]
    if exposures := [document for document in documents if "exposure" in document]:
        found.append(exposure_table(exposures))
    return "\n\n".join(found)


def table(documents: Iterable[dict[str, Any]], *, by_kind: bool = False) -> str:
    """How triplets are ranked."""
    header = ("data", "metric", "attack", "steps", "moves", "eps [0,1]", "eps [-1,1]", *SCORES, "n")
    rows = []
    for document in documents:
        threat = Threat.of(document["threat"])
        named = (_metric(document), threat.words, str(threat.steps or "-"), threat.attacked or "-", *threat.radii())
        for kind, scores in {"": document["scores"], **(document["by_kind"] if by_kind else {})}.items():
            data = f"{document['data']}: {kind}" if kind else document["data"]
            count = scores["two_afc"]["count"]
            rows.append((data, *named, *(_cell(scores[name]) for name in SCORES.values()), str(count)))
    return reports.table(header, rows)


def exposure_table(documents: Iterable[dict[str, Any]]) -> str:
    """What references can be made to measure, in units of what is usual between them and distorted images."""
    header = ("data", "metric", "attack", "steps", "within", "usual d", "d / usual", "rms / usual", "n")
    rows = []
    for document in documents:
        threat, found = Threat.of(document["threat"]), document["exposure"]
        rows.append(
            (
                *(document["data"], _metric(document), threat.words, str(threat.steps), threat.radii()[0]),
                reports.plain(np.float32(found["usual"]["distance"])),
                *(_cell(found[name]) for name in ("distance", "rms")),
                str(found["distance"]["count"]),
            )
        )
    return reports.table(header, rows)


def _metric(document: dict[str, Any]) -> str:
    """The metric's name, and how many samples an ensemble averages."""
    samples = document.get("samples")
    return f"{document['metric']} ({samples})" if samples else document["metric"]


def written(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, by set, metric, attack, whom it moves and radius."""
    found = []
    for path in folder.glob("*.json"):
        # Other programs may have put files there.
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and any(
                {"threat", "signature", *names} <= document.keys() for names in (("scores", "by_kind"), ("exposure",))
            ):
                found.append(document)
    return sorted(found, key=_order)


def _order(document: dict[str, Any]) -> tuple[Any, ...]:
    threat = Threat.of(document["threat"])
    what = (threat.name, threat.norm, threat.attacked, threat.steps, threat.epsilon, threat.words)
    return (document["data"], document["triplets"], document["metric"], *what)


def curves(results: Results, folder: Path) -> list[Path]:
    """A picture for each set, attack and norm: 2AFC score over the radius, a line for each metric and side."""
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
            natural[run.triplets.name, run.metric.name] = evaluation
    paths = []
    for (data, attack, norm), members in groups.items():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        lines: dict[str, dict[float, Score]] = {}
        for run, evaluation in members:
            line = lines.setdefault(
                ", ".join(filter(None, (run.metric.name, *run.threat.line))),
                {0.0: natural[data, run.metric.name].scores.two_afc},
            )
            line[run.threat.epsilon] = evaluation.scores.two_afc
        scale = 1 if norm != "linf" else 255
        for label, points in lines.items():
            radii = sorted(points)
            means, lows, highs = zip(*((points[r].mean, points[r].low, points[r].high) for r in radii), strict=True)
            positions = [scale * radius for radius in radii]
            axes.plot(positions, means, marker="o", label=label)
            axes.fill_between(positions, lows, highs, alpha=0.15, linewidth=0)
        units = {"linf": "l-inf radius in grey levels of 255", "l2": "l2 radius, images in [0, 1]"}
        axes.set(xlabel=units.get(norm, "pixels"), ylabel="2AFC score", ylim=(-0.02, 1.02), title=f"{data}: {attack}")
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path = folder / f"curves-{re.sub(r'[^A-Za-z0-9.]+', '-', data)}-{attack}-{norm}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths


def _plain(scores: measurement.Scores) -> dict[str, Any]:
    """Scores as JSON has them: what is NaN is null."""
    return {
        name: None
        if score is None or not score["count"]
        else {key: value if key == "count" else np.float64(value) for key, value in score.items()}
        for name, score in dataclasses.asdict(scores).items()
    }


def _cell(score: dict[str, float] | None) -> str:
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else "-"

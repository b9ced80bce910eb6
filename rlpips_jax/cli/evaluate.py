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

from rlpips_jax import attacks, reports
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.results import Recording, write_whole
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.errors import AttackError
from rlpips_jax.evaluation import measurement
from rlpips_jax.evaluation.measurement import Distances, Evaluation, Score
from rlpips_jax.evaluation.placement import over_all_devices
from rlpips_jax.evaluation.radii import read_radius
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.metric import Metric

NAMES = Literal["pgd", "apgd", "square", "noise", "spatial", "worst_case"]
"""Attacks by the names of their functions in `rlpips_jax.attacks`."""

SCORES = {"2AFC": "two_afc", "majority": "majority", "sure": "sure", "flipped": "flip_rate"}
"""Columns of the table, and what documents call them."""

LINF = ("1/255", "2/255", "4/255")

SIDES = Literal["closer", "farther", "both", "reference", "worst"]


@dataclass(frozen=True)
class Threat:
    """What is done to triplets before a metric is asked.

    Attributes:
        name: of the attack, "shift", or "" for nothing.
        norm: of the ball; "pixels" for flows and shifts.
        epsilon: radius, as a fraction of the range of values, or in pixels.
        attacked: whom the attack moves.
        steps: gradients, or queries without gradients.
        restarts: starts.
    """

    name: str = ""
    norm: str = ""
    epsilon: float = 0.0
    attacked: str = ""
    steps: int = 0
    restarts: int = 1

    @classmethod
    def of(cls, document: dict[str, Any] | None) -> "Threat":
        """The threat that a result on disk was found under."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in (document or {}).items() if name in names})

    @property
    def is_base(self) -> bool:
        """Whether others are compared with it: nothing is done, or a shift by 0."""
        return self.name == "" or (self.name == "shift" and self.epsilon == 0)

    def function(self) -> measurement.Attack:
        """The attack, as `rlpips_jax.evaluation.evaluate` takes it."""
        options: dict[str, Any] = {"steps": self.steps}
        if self.name != "spatial":
            options["norm"] = self.norm
        if self.name != "noise":
            options["restarts"] = self.restarts
        if self.name != "worst_case":
            return functools.partial(getattr(attacks, self.name), **options)

        def worst(objective: Any, images: Any, *, key: Any, epsilon: Any, **more: Any) -> Any:
            parts = [functools.partial(part, epsilon=epsilon, **options) for part in (attacks.pgd, attacks.apgd)]
            parts.append(functools.partial(attacks.square, epsilon=epsilon, **options))
            return attacks.worst_case(objective, images, key=key, attacks=parts, **more)

        return worst

    @property
    def sides(self) -> Sequence[str]:
        """Whom the attack moves; of several, whoever does most harm."""
        return attacks.ATTACKED if self.attacked == "worst" else (self.attacked,)

    def radii(self) -> tuple[str, str]:
        """The radius for images in [0, 1] and in [-1, 1], as a table has it."""
        if not self.name:
            return "", ""
        if self.norm == "pixels":
            return f"{self.epsilon:g} px", f"{self.epsilon:g} px"
        return _fraction(self.epsilon), _fraction(2 * self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Evaluate(TripletOptions):
    """Measure how well metrics agree with people, or with triplets that are known: as they are and under attack.

    Prints a table. Writes to --out one JSON a result, the distances of each triplet, curves, and a table of all that is
    there, by kinds of distortion. Interrupted, the same command goes on where it stood, and results that are there
    already are not computed again.
    """

    attack: Annotated[tuple[NAMES, ...], tyro.conf.UseAppendAction, tyro.conf.arg(help_behavior_hint="")] = ()
    """Attack to measure besides; worst_case is the worst of pgd, apgd and square. May be given several times."""

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
    """Steps of an attack; of square and noise, queries."""

    restarts: int = 1
    """Starts of an attack, of which the best counts."""

    shift: Annotated[tuple[int, ...], tyro.conf.arg(metavar="PX [PX ...]", help_behavior_hint="(default: none)")] = ()
    """Also shift both images against the reference by so many pixels."""

    batch: int = measurement.BATCH
    """Triplets attacked at once: bounds memory, and is part of the seeding."""

    seed: int = 0
    """Of everything that attacks draw."""

    out: Path = Path("report")
    """Folder for the results."""

    def run(self) -> int:
        threats = self._threats()
        sets, metrics = self.sets(), self.metrics()
        runs = [Run(self, triplets, metric, threat) for triplets in sets for metric in metrics for threat in threats]
        from tqdm import tqdm

        results = []
        with (
            interrupts.deferred(),
            tqdm(total=sum(len(run.triplets) for run in runs), unit="triplet", disable=None) as bar,
        ):
            natural: Distances | None = None
            for run in runs:
                bar.set_description(run.title)
                evaluation = run.evaluation(None if run.threat.is_base else natural, bar.update)
                if run.threat.is_base:
                    natural = evaluation.distances
                results.append((run, evaluation))
        print(table(run.recording.document for run in runs))
        write_whole(self.out / "table.txt", table(written(self.out), by_kind=True) + "\n")
        pictures = curves(results, self.out) if any(threat.name for threat in threats) else []
        print(f"results: {self.out}{os.sep}*.json, table.txt{''.join(f', {path.name}' for path in pictures)}")
        return 0

    def _threats(self) -> list[Threat]:
        """Nothing first, then every attack at every strength."""
        for name, count in (("steps", self.steps), ("restarts", self.restarts), ("batch", self.batch)):
            if count < 1:
                raise AttackError(f"--{name} must be 1 or more, got {count}")
        if self.epsilon and not self.attack:
            raise AttackError("--epsilon needs an attack: --attack pgd")
        units = {"spatial" if name == "spatial" else norm for name in self.attack for norm in self.norm}
        if self.epsilon and len(units) > 1:
            raise AttackError(
                f"--epsilon cannot be right for {', '.join(sorted(units))} alike: leave it out, or evaluate one after "
                "the other into the same --out"
            )
        threats = [Threat()]
        for name in dict.fromkeys(self.attack):
            for norm in ("pixels",) if name == "spatial" else self.norm:
                default = ("0.5", "1") if norm == "pixels" else ("0.5", "1", "2") if norm == "l2" else LINF
                threats += [
                    Threat(name, norm, epsilon_of(text, norm), side, self.steps, self.restarts)
                    for side in self.attacked
                    for text in self.epsilon or default
                ]
        return threats + [Threat("shift", "pixels", float(shift)) for shift in ((0, *self.shift) if self.shift else ())]


@dataclass(frozen=True)
class Run:
    """One metric on one set under one threat: one result on disk."""

    options: Evaluate
    triplets: AnyTriplets
    metric: Metric
    threat: Threat

    @property
    def title(self) -> str:
        """What a progress bar says."""
        threat = self.threat
        what = f" {threat.name} {threat.norm} {threat.radii()[0]}" if threat.name else ""
        return f"{self.triplets.name} {self.metric.name}{what}"

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
        if threat.name:
            words += [threat.norm, f"{threat.epsilon:.6g}", threat.attacked]
            settings["threat"] = dataclasses.asdict(threat) | (
                {"largest": max(options.shift)}
                if threat.name == "shift"
                else {"seed": options.seed, "batch": options.batch}
            )
        return Recording(options.out, words, settings, {"d0": np.float32, "d1": np.float32})

    def evaluation(self, natural: Distances | None, done: Callable[[int], Any]) -> Evaluation:
        """The scores; what is on disk already is not computed again.

        Args:
            natural: distances without the threat, if there is one.
            done: is told how many triplets are done.
        """
        started = time.monotonic()
        columns = self.recording.collect(len(self.triplets), self._compute, done)
        distances = Distances(*columns)
        if natural is None:
            evaluation = measurement.assess(self.triplets, distances)
        else:
            evaluation = measurement.assess(self.triplets, natural, distances, self.threat.epsilon)
        kinds = {kind: _plain(scores) for kind, scores in evaluation.by_kind.items()}
        results = {"scores": _plain(evaluation.scores), "by_kind": kinds}
        self.recording.finish(results, time.monotonic() - started)
        return evaluation

    def _compute(self, start: int) -> Iterator[Distances]:
        options, threat, placement = self.options, self.threat, over_all_devices()
        if not threat.name:
            return measurement.natural_distances(
                self.metric, self.triplets, batch=options.batch, start=start, placement=placement
            )
        if threat.name == "shift":
            shift, largest = int(threat.epsilon), max(options.shift)
            return measurement.shifted_distances(
                self.metric, self.triplets, shift, largest, batch=options.batch, start=start
            )
        return measurement.attacked_distances(
            self.metric,
            self.triplets,
            threat.function(),
            threat.epsilon,
            attacked=threat.sides,
            key=jax.random.key(options.seed),
            batch=options.batch,
            start=start,
            placement=placement,
        )


Results = Sequence[tuple[Run, Evaluation]]


def epsilon_of(text: str, norm: str) -> float:
    """A radius such as "2/255" or "0.03".

    Args:
        text: what was given.
        norm: "linf" and "l2" are as fractions of the range of values, "pixels" are pixels.

    Raises:
        AttackError: it is none.
    """
    try:
        value = read_radius(text)
    except ValueError:
        raise AttackError(f"--epsilon {text} is not a number such as 2/255 or 0.01") from None
    if value < 0 or (norm == "linf" and value > 1):
        raise AttackError(
            f"--epsilon {text} is a fraction of the range of values, from 0 to 1 in l-inf: 2 grey levels are 2/255"
        )
    return value


def table(documents: Iterable[dict[str, Any]], *, by_kind: bool = False) -> str:
    """A row for each result, with 95 % intervals.

    Args:
        documents: results as they are written.
        by_kind: adds a row for each kind of each.
    """
    header = ("data", "metric", "attack", "steps", "moves", "eps [0,1]", "eps [-1,1]", *SCORES, "n")
    rows = []
    for document in documents:
        threat = Threat.of(document["threat"])
        attack = f"{threat.name} {threat.norm}" if threat.name else "-"
        named = (document["metric"], attack, str(threat.steps or "-"), threat.attacked or "-", *threat.radii())
        for kind, scores in {"": document["scores"], **(document["by_kind"] if by_kind else {})}.items():
            data = f"{document['data']}: {kind}" if kind else document["data"]
            count = scores["two_afc"]["count"]
            rows.append((data, *named, *(_cell(scores[name]) for name in SCORES.values()), str(count)))
    return reports.table(header, rows)


def written(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, by set, metric, attack, whom it moves and radius."""
    found = []
    for path in folder.glob("*.json"):
        # Other programs may have put files there.
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict) and {"threat", "scores", "by_kind", "signature"} <= document.keys():
                found.append(document)
    return sorted(found, key=_order)


def _order(document: dict[str, Any]) -> tuple[Any, ...]:
    threat = Threat.of(document["threat"])
    what = (threat.name, threat.norm, threat.attacked, threat.steps, threat.epsilon)
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
            side = f", {run.threat.attacked}" if run.threat.attacked else ""
            line = lines.setdefault(f"{run.metric.name}{side}", {0.0: natural[data, run.metric.name].scores.two_afc})
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


def _fraction(value: float) -> str:
    levels = value * 255
    return f"{round(levels)}/255" if levels >= 0.5 and abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"

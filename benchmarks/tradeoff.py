"""`python -m benchmarks.tradeoff`: robustness against agreement with the teacher, for R-LPIPS trained in several ways.

Trains one mode at several weights of the loss on unattacked triplets and several seeds. The table and the curves
(`tradeoff.md`, `tradeoff.png`) are of all runs in the folder, so commands with other options add to them: without
`--test` on the validation triplets, to choose by; with it on triplets that nothing was trained or chosen on. All runs
of a folder have the same triplets (`learn.npz`, `choose.npz`), which may be links to those of another folder.
Interrupted, the same command goes on where it stood.
"""

import dataclasses
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

import rlpips_jax as rl
from benchmarks.report import Table
from rlpips_jax.cli.results import write_whole
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import triplet_files
from rlpips_jax.evaluation.distortions import DISTORTIONS, training_kinds
from rlpips_jax.evaluation.sources import read
from rlpips_jax.evaluation.triplets import AnyTriplets, crossed, ordinal
from rlpips_jax.weights import native
from training import evaluate
from training.config import Lin, Training, Tune
from training.train import train

MODES: Mapping[str, type[Training]] = {"lin": Lin, "tune": Tune}

EPSILONS = ("2/255", "4/255", "8/255")
"""Of the evaluation's attack, in units of [-1, 1]."""

SIZE = 64
"""Height and width of the triplets' images."""

MARKERS = {"lin": "o", "tune": "s"}

WAYS = (
    *("mode", "metric", "initial_heads", "first_layer", "head_range", "epsilon", "attack_steps", "attack_judged"),
    *("floor", "backbone_rate", "steps", "batch", "average"),
)
"""Options that tell curves apart; along one the natural weight changes."""


@dataclass(frozen=True)
class TradeOff:
    """Train R-LPIPS in several ways, and show what robustness costs."""

    photographs: Path
    """Folder of photographs to train on."""
    validation: Path
    """Folder of other photographs, to choose on. Their triplets are of all ten distortions, one of which nothing is
    trained on."""
    test: Path | None = None
    """Triplets to measure all runs of the folder on, an .npz file with ordinal and crossed ones."""
    out: Path = Path("runs/tradeoff")
    """Folder for runs and results."""
    metric: str = "lpips-alex"
    """Lpips to start from."""
    teacher: str = "lpips-alex"
    """Lpips that judges crossed triplets."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    mode: Literal["lin", "tune"] = "lin"
    """What is trained: heads, or backbone too."""
    initial_heads: Literal["metric", "equal"] = "metric"
    """Heads to start from: the metric's, or equal weights of all channels."""
    natural_weights: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Weights of the loss on crossed triplets as they are: points of a curve."""
    first_layer: float = 1.0
    """Share of the first layer's weights to start from."""
    head_range: float | None = None
    """Factor of their start within which heads stay; none if not given."""
    floor: float = 0.0
    """Floor of norms to start from; 0 for the paper's form."""
    epsilon: str | None = None
    """Radius of the attack in training, in units of [-1, 1]; by default that of the mode."""
    attack_steps: int | None = None
    """Steps of the attack in training; by default those of the mode."""
    attack_judged: bool = False
    """Attack crossed triplets too."""
    backbone_rate: float | None = None
    """Learning rate of the backbone in tune; by default that of the mode."""
    average: float = 0.0
    """Decay of the moving average that is evaluated; 0 for none."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the order and the attack; the triplets are the same for all."""
    steps: int = 300
    """Steps of each run."""
    batch: int | None = None
    """Triplets a step; by default that of the mode."""
    triplets: int = 8000
    """Triplets of each sort that are made of the photographs."""
    validation_triplets: int = 400
    """The same, of the other photographs."""


class Point(NamedTuple):
    """A run, and how it did.

    Attributes:
        options: its configuration.
        scores: of each set, as `training.evaluate.scores` has them.
    """

    options: dict[str, Any]
    scores: evaluate.Scores


def main(options: TradeOff) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = rl.load(options.teacher, weights_dir=options.weights_dir)
    _make(options.out / "learn.npz", options.photographs, options.triplets, 0, teacher)
    _make(options.out / "choose.npz", options.validation, options.validation_triplets, 2, teacher, tuple(DISTORTIONS))
    sets: dict[str, AnyTriplets] = {}
    if options.test is not None:
        sets = {triplets.name: triplets for triplets in read(options.test)}
    for config in _grid(options):
        train(config)
        print(_table(_finished(options, sets)), flush=True)
    points = _finished(options, sets)
    (options.out / "tradeoff.md").write_text(str(_table(points)))
    _draw(points, options.out / "tradeoff.png")


def _grid(options: TradeOff) -> Iterator[Training]:
    for seed in options.seeds:
        for weight in options.natural_weights:
            config = MODES[options.mode](
                metric=options.metric,
                weights_dir=options.weights_dir,
                data=str(options.out / "learn.npz"),
                validation=options.out / "choose.npz",
                initial_heads=options.initial_heads,
                epsilon=options.epsilon,
                attack_steps=options.attack_steps,
                attack_judged=options.attack_judged,
                natural_weight=weight,
                first_layer=options.first_layer,
                head_range=options.head_range,
                floor=options.floor,
                backbone_rate=options.backbone_rate,
                average=options.average,
                batch=options.batch,
                steps=options.steps,
                evaluate_every=options.steps,
                evaluation_epsilons=EPSILONS,
                seed=seed,
            )
            document = config.document()
            words = [f"{document[name]}".replace("/", "of") for name in (*WAYS, "natural_weight", "seed")]
            yield dataclasses.replace(config, out=options.out / "-".join(words))


def _make(path: Path, folder: Path, count: int, seed: int, teacher: Lpips, kinds: Sequence[str] | None = None) -> None:
    """Writes ordinal and crossed triplets, once for all runs.

    Raises:
        TripletsError: there is a file, and it was made with other options, or does not say with which.
    """
    kinds = training_kinds() if kinds is None else kinds
    if path.exists():
        _check_made(path, folder, count, seed, teacher, kinds)
        return
    sets = {
        "ordinal": ordinal(folder, count, seed=seed, kinds=kinds, size=SIZE),
        "crossed": crossed(folder, count, seed=seed + 1, teacher=teacher, kinds=kinds, size=SIZE),
    }
    triplet_files.write_npz(path, sets)


def _check_made(path: Path, folder: Path, count: int, seed: int, teacher: Lpips, kinds: Sequence[str]) -> None:
    parts, differing = triplet_files.summarise_npz(path), []
    options: dict[str, Any] = {"count": count, "kinds": list(kinds), "size": SIZE}
    for part, more in (("ordinal", {"seed": seed}), ("crossed", {"seed": seed + 1, "teacher": teacher.signature})):
        made = dict(parts[part].made) if part in parts else {}
        while isinstance(made.get("made"), dict):  # Read from one file, and written to another.
            made = made["made"]
        if made.get("made") != part:
            raise TripletsError(f"{path} does not say what its {part} triplets were made of; give another --out")
        if not _may_be_one(made["folder"], folder):
            differing.append(f"photographs {made['folder']} (now {folder})")
        for name, value in (options | more).items():
            if _without_version(made.get(name)) != _without_version(value):
                differing.append(f"{part} {name} {made.get(name)} (now {value})")
    if differing:
        raise TripletsError(
            f"{path} was made with {', '.join(dict.fromkeys(differing))}; give another --out, or the same options"
        )


def _may_be_one(recorded: str, folder: Path) -> bool:
    """Whether two paths may lead to one folder: their last two names agree, or one name where there are no more.

    They may have been given from different places, and folders are linked and moved.
    """
    recordings, folders = (recorded, os.path.realpath(recorded)), (os.path.abspath(folder), os.path.realpath(folder))
    ways = itertools.product(recordings, folders)
    return any(all(map(operator.eq, _last_names(one), _last_names(other))) for one, other in ways)


def _last_names(path: str) -> list[str]:
    """The last two names of a path, the last one first."""
    return [name for name in Path(path).parts if name not in (Path(path).anchor, "..")][:-3:-1]


def _without_version(value: Any) -> Any:
    """An option, of a teacher's signature without the library's version, which is no option."""
    return value.split(" ", 2)[2:] if isinstance(value, str) else value


def _finished(options: TradeOff, sets: Mapping[str, AnyTriplets]) -> list[Point]:
    """All finished runs of the folder: on test sets where there are some, else as their cards have it."""
    points = []
    for path in sorted(options.out.glob("*/rlpips-*.safetensors")):
        card = json.loads(native.read_metadata(path)["card"])
        if sets:
            scores = measured(rl.load(path, weights_dir=options.weights_dir), sets, path.parent / "test.json")
        else:
            scores = card["scores"]["trained"]
        points.append(Point(card["trained"], scores))
    return points


def measured(metric: Any, sets: Mapping[str, AnyTriplets], path: Path) -> evaluate.Scores:
    """The scores of a metric on test sets, computed once and kept in a file."""
    of = [metric.signature, [str(triplets.source.get("sha256")) for triplets in sets.values()]]
    return kept(path, of, lambda: evaluate.scores(Lin(evaluation_epsilons=EPSILONS), metric, sets))


def kept(path: Path, of: Any, find: Callable[[], Any]) -> Any:
    """What a file says about something; found and written to it where it says nothing or is about something else."""
    if path.exists() and (document := json.loads(path.read_text()))["of"] == of:
        return document["scores"]
    document = {"of": of, "scores": find()}
    write_whole(path, json.dumps(document, indent=1))
    return document["scores"]


def columns(scores: evaluate.Scores) -> dict[str, float]:
    """The numbers of a point."""
    (ordinal,) = (one for one in scores.values() if "sure" not in one)
    (crossed,) = (one for one in scores.values() if "sure" in one)
    return {"agreement": crossed["sure"], "natural": ordinal["natural"], **{name: ordinal[name] for name in EPSILONS}}


def _curves(points: Sequence[Point]) -> dict[tuple[Any, ...], dict[float, list[dict[str, float]]]]:
    """The numbers of all seeds, by way and natural weight."""
    curves: dict[tuple[Any, ...], dict[float, list[dict[str, float]]]] = {}
    for point in points:
        way = tuple(point.options.get(name) for name in WAYS)
        along = curves.setdefault(way, {})
        along.setdefault(point.options["natural_weight"], []).append(columns(point.scores))
    return {way: dict(sorted(along.items())) for way, along in sorted(curves.items(), key=str)}


def _table(points: Sequence[Point]) -> Table:
    header = (*WAYS, "natural weight", "seeds", "agreement", "natural", *EPSILONS)
    rows = []
    for way, along in _curves(points).items():
        for weight, members in along.items():
            cells = summary(members)
            rows.append((*(str(option) for option in way), f"{weight:g}", str(len(members)), *cells))
    return Table("Robustness against agreement (mean and standard deviation over seeds)", header, rows)


def summary(members: Sequence[Mapping[str, float]]) -> list[str]:
    """Each number of several seeds as a cell of a table: its mean, and its standard deviation."""
    cells = []
    for name in members[0]:
        values = [one[name] for one in members]
        spread = f" ± {deviation(values):.3f}" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.3f}{spread}")
    return cells


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw(points: Sequence[Point], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    curves = _curves(points)
    labels = _labels(list(curves))
    for axes, epsilon in zip(np.ravel(figure.subplots(1, len(EPSILONS))), EPSILONS, strict=True):
        for way, along in curves.items():
            agreements, attacked = (
                [[one[name] for one in seeds] for seeds in along.values()] for name in ("agreement", epsilon)
            )
            means = [np.mean(values) for values in agreements], [np.mean(values) for values in attacked]
            spreads = [deviation(values) for values in agreements], [deviation(values) for values in attacked]
            option = dict(zip(WAYS, way, strict=True))
            line = {"marker": MARKERS[option["mode"]], "linestyle": "-" if option["floor"] else "--"}
            axes.errorbar(*means, *reversed(spreads), label=labels[way], markersize=5, elinewidth=0.8, **line)
            for weight, *place in zip(along, *means, strict=True):
                axes.annotate(f"{weight:g}", place, (4, 4), textcoords="offset points", fontsize=8, color="0.3")
        axes.set_title(f"attacked, l-inf {epsilon} in [-1, 1]")
        axes.set_xlabel("agreement with the teacher")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel("ordinal accuracy")
    handles = figure.axes[0].get_legend_handles_labels()
    title = "beside each point, the natural weight; bars, the standard deviation over seeds"
    figure.legend(*handles, title=title, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)


def _labels(ways: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], str]:
    """What a legend says of each curve: metric, mode, radius, floor, and what else differs among those of one mode."""
    labels = {}
    for way in ways:
        option = dict(zip(WAYS, way, strict=True))
        alike = [dict(zip(WAYS, other, strict=True)) for other in ways]
        alike = [other for other in alike if all(other[name] == option[name] for name in ("mode", "metric"))]
        differing = [
            f"{name.replace('_', ' ')} {option[name]}"
            for name in WAYS
            if name not in ("epsilon", "floor") and len({other[name] for other in alike}) > 1
        ]
        floor = f"floor {option['floor']:g}" if option["floor"] else "no floor"
        labels[way] = ", ".join((option["metric"], option["mode"], str(option["epsilon"]), floor, *differing))
    return labels


if __name__ == "__main__":
    main(tyro.cli(TradeOff))

"""`python -m benchmarks.tradeoff`: robustness against agreement with the teacher, for R-LPIPS trained in several ways.

Trains `lin` and `tune` at several weights of the loss on unattacked triplets and several seeds, evaluates what comes
out on triplets that nothing was trained or chosen on, and writes a table (tradeoff.md) and the curves (tradeoff.png).
Interrupted, the same command goes on where it stood.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

import rlpips_jax as rl
from benchmarks.report import Table
from rlpips_jax.evaluation import triplet_files
from rlpips_jax.evaluation.triplets import crossed, ordinal
from rlpips_jax.metric import Metric
from training import evaluate
from training.config import Lin, Training, Tune
from training.loop import train

MODES: Mapping[str, type[Training]] = {"lin": Lin, "tune": Tune}

EPSILONS = ("2/255", "4/255", "8/255")
"""Of the evaluation's attack, in units of [-1, 1]."""

COLOURS = {"lin": "#0f766e", "tune": "#c2410c"}


@dataclass(frozen=True)
class TradeOff:
    """Train R-LPIPS in several ways, and show what robustness costs."""

    photographs: Path
    """Folder of photographs to train on."""
    validation: Path
    """Folder of other photographs, to choose on."""
    test: Path
    """Triplets to measure on, an .npz file with ordinal and crossed ones."""
    out: Path = Path("runs/tradeoff")
    """Folder for runs and results."""
    metric: str = "lpips-alex"
    """Metric to start from."""
    teacher: str = "lpips-alex"
    """Metric that judges crossed triplets."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    modes: tuple[Literal["lin", "tune"], ...] = ("lin", "tune")
    """What is trained: heads, or backbone too."""
    natural_weights: tuple[float, ...] = (0.25, 1.0, 4.0)
    """Weights of the loss on crossed triplets as they are: points of a curve."""
    floors: tuple[float, ...] = (0.0,)
    """Floors of norms to start from; 0 for the paper's form."""
    epsilons: tuple[str, str] = ("3/255", "6/255")
    """Radii of the attack in training, of lin and of tune, in units of [-1, 1]."""
    backbone_rate: float = 2e-4
    """Learning rate of the backbone in tune."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the order and the attack; the triplets are the same for all."""
    steps: int = 300
    """Steps of each run."""
    batch: int = 80
    """Triplets a step."""
    triplets: int = 8000
    """Triplets of each sort that are made of the photographs."""
    validation_triplets: int = 300
    """The same, of the other photographs."""


class Point(NamedTuple):
    """A run, and how it is told apart.

    Attributes:
        mode: "lin" or "tune".
        natural_weight: of the loss.
        floor: that norms start from.
        seed: of everything drawn.
        scores: of each set, as `training.evaluate.scores` has them.
    """

    mode: str
    natural_weight: float
    floor: float
    seed: int
    scores: evaluate.Scores


def main(options: TradeOff) -> None:
    sets = {triplets.name: triplets for triplets in triplet_files.read(options.test)}
    tested = [triplets.source.get("sha256") for triplets in sets.values()]
    measured = Lin(evaluation_epsilons=EPSILONS)
    start = rl.load(options.metric, weights_dir=options.weights_dir)
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = rl.load(options.teacher, weights_dir=options.weights_dir)
    made = {
        "learn": (options.photographs, options.triplets),
        "choose": (options.validation, options.validation_triplets),
    }
    for seed, (name, (folder, count)) in enumerate(made.items()):
        _make(options.out / f"{name}.npz", folder, count, 2 * seed, teacher)
    points = [
        Point(
            options.metric,
            0.0,
            0.0,
            0,
            _kept(
                options.out / "start.json", [start.signature, tested], lambda: evaluate.scores(measured, start, sets)
            ),
        )
    ]
    for config, point in _grid(options):

        def scores(config: Training = config) -> evaluate.Scores:
            return evaluate.scores(measured, rl.load(train(config), weights_dir=options.weights_dir), sets)

        points.append(point._replace(scores=_kept(config.out / "test.json", [config.document(), tested], scores)))
        print(_table(points), flush=True)
    (options.out / "tradeoff.md").write_text(str(_table(points)))
    _draw(points, options.out / "tradeoff.png")


def _grid(options: TradeOff) -> Iterator[tuple[Training, Point]]:
    for seed in options.seeds:
        for mode in options.modes:
            for floor in options.floors:
                for weight in options.natural_weights:
                    own: dict[str, Any] = {"epsilon": options.epsilons[0]}
                    if mode == "tune":
                        own = {"epsilon": options.epsilons[1], "backbone_rate": options.backbone_rate}
                    config = MODES[mode](
                        out=options.out / f"{mode}-{weight:g}-{floor:g}-{seed}",
                        metric=options.metric,
                        weights_dir=options.weights_dir,
                        data=str(options.out / "learn.npz"),
                        validation=options.out / "choose.npz",
                        natural_weight=weight,
                        floor=floor,
                        batch=options.batch,
                        steps=options.steps,
                        evaluate_every=options.steps,
                        evaluation_epsilons=EPSILONS,
                        seed=seed,
                        **own,
                    )
                    yield config, Point(mode, weight, floor, seed, {})


def _make(path: Path, folder: Path, count: int, seed: int, teacher: Metric) -> None:
    """Writes ordinal and crossed triplets, once for all runs; a file that is there is taken as it is."""
    if path.exists():
        return
    sets = {
        "ordinal": ordinal(folder, count, seed=seed),
        "crossed": crossed(folder, count, seed=seed + 1, teacher=teacher),
    }
    triplet_files.write_npz(path, sets)


def _kept(path: Path, key: Any, compute: Callable[[], evaluate.Scores]) -> evaluate.Scores:
    """What is computed once, and kept beside the run with what it is of."""
    key = json.loads(json.dumps(key, default=str))
    if path.exists() and (found := json.loads(path.read_text()))["of"] == key:
        return found["scores"]
    found = {"of": key, "scores": compute()}
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(path)
    return found["scores"]


def _columns(scores: evaluate.Scores) -> dict[str, float]:
    """The numbers of a point."""
    (ordinal,) = (one for one in scores.values() if "sure" not in one)
    (crossed,) = (one for one in scores.values() if "sure" in one)
    return {"agreement": crossed["sure"], "natural": ordinal["natural"], **{name: ordinal[name] for name in EPSILONS}}


def _table(points: Sequence[Point]) -> Table:
    header = ("mode", "natural weight", "floor", "seeds", "agreement", "natural", *EPSILONS)
    groups: dict[tuple[str, float, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.mode, point.natural_weight, point.floor), []).append(point)
    rows = []
    for (mode, weight, floor), members in groups.items():
        columns = [_columns(point.scores) for point in members]
        cells = []
        for name in columns[0]:
            values = [one[name] for one in columns]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        rows.append((mode, f"{weight:g}", f"{floor:g}", str(len(members)), *cells))
    return Table("Robustness against agreement (mean and standard deviation over seeds)", header, rows)


def _draw(points: Sequence[Point], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, epsilon in zip(np.ravel(figure.subplots(1, 2)), EPSILONS[:2], strict=True):
        for mode, floor in dict.fromkeys((point.mode, point.floor) for point in points):
            found = [_columns(point.scores) for point in points if (point.mode, point.floor) == (mode, floor)]
            found.sort(key=lambda one: one["agreement"])
            axes.plot(
                [one["agreement"] for one in found],
                [one[epsilon] for one in found],
                "o" if floor == 0 else "s",
                linestyle="-" if floor == 0 else "--",
                color=COLOURS.get(mode, "#52525b"),
                label=mode if floor == 0 else f"{mode}, floor",
            )
        axes.set_title(f"attacked, l-inf {epsilon} in [-1, 1]")
        axes.set_xlabel("agreement with the teacher")
        axes.set_ylabel("ordinal accuracy")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(tyro.cli(TradeOff))

"""`python -m benchmarks.frontier`: robustness against agreement, with LPIPS and with people.

A table and a picture of several metrics: agreement with `lpips-alex` on crossed Kodak triplets, with people on
materials, and accuracy on ordinal triplets under attack. Files of one metric trained with several seeds become one
point, with its standard deviation. Numbers are kept in the folder, so a command with more metrics adds to them.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.report import Table
from benchmarks.tradeoff import EPSILONS, columns, deviation, kept, measured, summary
from rlpips_jax.cli.options import load_metric
from rlpips_jax.cli.results import write_whole
from rlpips_jax.evaluation import evaluate, read_judgments, read_npz
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.weights import native

METRICS = (
    *("benchmarks.pixel_metrics:L2", "benchmarks.pixel_metrics:SSIM", "lpips-alex", "lpips-squeeze", "lpips-tiny"),
    *("rlpips-alex", "rlpips-squeeze", "rlpips-tiny@1", "rlpips-tiny"),
)
"""What is compared where nothing else is asked for."""

SHOWN = "4/255"
"""The radius in the picture."""

PEOPLE = "materials"

LEFT = ("lpips-squeeze", "rlpips-alex")
"""Whose name stands left of their point, where there is room."""

Points = dict[str, list[dict[str, float]]]
"""By metric, the numbers of each seed."""


@dataclass(frozen=True)
class Frontier:
    """Compare metrics in agreement and robustness."""

    shared: Path = Path("../shared")
    """Folder of the reference data: triplets/kodak.npz and judgments/materials."""
    metric: tuple[str, ...] = METRICS
    """Metrics, as `rlpips evaluate --metric` takes them, or weight files."""
    weights_dir: Path | None = None
    """Folder with weights."""
    out: Path = Path("frontier")
    """Folder for the results."""


def main(options: Frontier) -> None:
    """Measures, prints and writes the table and the picture."""
    options.out.mkdir(parents=True, exist_ok=True)
    sets = {triplets.name: triplets for triplets in read_npz(options.shared / "triplets" / "kodak.npz")}
    people = read_judgments(options.shared / "judgments" / PEOPLE)
    points: Points = {}
    for name in options.metric:
        metric: Any = load_metric(name, options.weights_dir)
        label = metric.name if name.endswith(native.SUFFIX) or ":" in name else name
        path = options.out / f"{label}-{hashlib.sha256(metric.signature.encode()).hexdigest()[:8]}.json"
        find = functools.partial(_judged, metric, people)
        judged = kept(path.with_suffix(".people.json"), [metric.signature, people.source["sha256"]], find)
        points.setdefault(label, []).append(columns(measured(metric, sets, path)) | {PEOPLE: judged})
        write_whole(options.out / "frontier.md", str(_table(points)))
    print(_table(points))
    _draw(points, options.out / "frontier.png")


def _judged(metric: Any, people: AnyTriplets) -> float:
    return evaluate(metric, people)[0].scores.two_afc.mean


def _table(points: Points) -> Table:
    rows: list[Sequence[str]] = [(label, str(len(members)), *summary(members)) for label, members in points.items()]
    header = ("metric", "seeds", "agreement", "natural", *EPSILONS, PEOPLE)
    return Table("Robustness against agreement (mean and standard deviation over seeds)", header, rows)


def _draw(points: Points, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "agreement": "agreement with lpips-alex, crossed Kodak triplets",
        PEOPLE: "agreement with people, materials",
    }
    for axes, (across, title) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for label, members in points.items():
            values = [[one[name] for one in members] for name in (across, SHOWN)]
            (x, y), (wide, high) = ([of(each) for each in values] for of in (np.mean, deviation))
            marker = "s" if label.startswith("r") else "o"
            axes.errorbar(x, y, high, wide, fmt=marker, markersize=6, elinewidth=0.8)
            left = label in LEFT
            place: Any = {"xytext": (-6, 5) if left else (6, 5), "ha": "right" if left else "left"}
            axes.annotate(label, (x, y), textcoords="offset points", fontsize=9, color="0.2", **place)
        axes.set_xlabel(title)
        axes.margins(0.15)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].set_ylabel(f"ordinal accuracy under PGD, l-inf {SHOWN} in [-1, 1]")
    figure.suptitle("Squares: trained under attack. Up is more robust, right agrees more")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Frontier, prog="python -m benchmarks.frontier"))

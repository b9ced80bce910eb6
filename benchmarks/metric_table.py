"""`python -m benchmarks.metric_table`: every metric people compare, against people, shifts, attacks and certificates.

Each cell comes from a result that `rlpips evaluate` or `rlpips certify` has written below --out, so an interrupted run
goes on where it stood, and a larger --triplets or another --metric adds to what is there. The table goes to
`table.md` there.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro

import rlpips_jax as rl
from benchmarks.report import Table
from benchmarks.timing import side_by_side, slowdown
from benchmarks.tiny import finished
from rlpips_jax.cli.options import load_metric
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.evaluation import read_npz, write_npz

METRICS = (
    *("benchmarks.pixel_metrics:L2", "benchmarks.pixel_metrics:SSIM"),
    *("lpips-alex", "lpips-squeeze", "lpips-vgg", "lpips+-alex", "stlpips-alex", "dists", "elpips-squeeze"),
    *("rlpips-alex", "rlpips-squeeze", "rlpips-vgg", "rlpips-stalex", "rlpips-tiny"),
)
"""What is compared where nothing else is asked for."""

RADII = ("1/255", "2/255", "4/255")
"""Of attacks, images in [0, 1]: 2, 4 and 8 over 255 of [-1, 1]."""

VALUES = 64 * 64 * 3
"""Of an image of the triplets: an l2 length is the RMSE times the root of it."""

CERTIFIED = ("36/255", "72/255", "108/255")
"""l2 radii of certificates, images in [0, 1]."""

LARGE = ("lpips-vgg", "rlpips-vgg", "dists", "stlpips-alex", "stlpips-vgg", "rlpips-stalex", "elpips-squeeze")
"""Metrics that take long, for which there are fewer triplets and draws."""


@dataclass(frozen=True)
class MetricTable:
    """Compare metrics in agreement, robustness and speed."""

    shared: Path = Path("../shared")
    """Folder of the reference data: triplets/kodak.npz and judgments/materials."""
    metric: tuple[str, ...] = METRICS
    """Metrics, as `rlpips evaluate --metric` takes them."""
    weights_dir: Path | None = None
    """Folder with weights."""
    out: Path = Path("metric-table")
    """Folder for the results."""
    triplets: int = 50
    """Ordinal triplets to attack, the first of the set."""
    certified: int = 12
    """Ordinal triplets to certify, the first of the set."""
    draws: int = 10_000
    """Draws of a certificate."""
    large: tuple[str, ...] = LARGE
    """Metrics for which the next three numbers count instead."""
    large_triplets: int = 20
    """Ordinal triplets to attack, with a large network."""
    large_certified: int = 6
    """Ordinal triplets to certify, with a large network."""
    large_draws: int = 3_000
    """Draws of a certificate of a large network; at sigma 0.15 they are enough for 108/255."""
    samples: int = 8
    """Draws of an ensemble for each vote; more take hours on a CPU."""
    steps: int = 20
    """Of attacks."""
    repeats: int = 15
    """Timed repetitions."""


class Stage(NamedTuple):
    """One command for each metric, and the cells that its results fill.

    Attributes:
        name: of its folder.
        command: arguments of `rlpips`, without metric and folder.
    """

    name: str
    command: tuple[object, ...]


def stages(config: MetricTable, ordinal: Path, crossed: Path, *, large: bool, random: bool) -> list[Stage]:
    """All commands, for a metric with a large network or a small one, an ensemble or not."""
    triplets, certified, draws = (
        (config.large_triplets, config.large_certified, config.large_draws)
        if large
        else (config.triplets, config.certified, config.draws)
    )
    drawn = ("--samples", config.samples) if random else ()
    attacked = ("evaluate", "--data", ordinal, "--limit", triplets, "--steps", config.steps)
    return [
        Stage("agreement", ("evaluate", "--data", crossed)),
        Stage("materials", ("evaluate", "--data", config.shared / "judgments" / "materials", *drawn)),
        Stage("shift", ("evaluate", "--data", crossed, "--shift", 1, 2, 4)),
        Stage("pgd", (*attacked, "--attack", "pgd", "--epsilon", *RADII)),
        Stage("union", (*attacked, "--attack", "union", "--epsilon", *RADII)),
        Stage("minimum", (*attacked, "--attack", "minimum", "--norm", "linf", "l2")),
        Stage(
            "certify",
            (
                *("certify", "--data", ordinal, "--limit", certified, "--sigma", 0.15, "--samples", draws),
                *("--radius", *CERTIFIED),
            ),
        ),
    ]


def run(config: MetricTable, metric: str, stage: Stage) -> list[dict[str, Any]]:
    """The results of one metric in one stage; commands whose results are there take a moment."""
    folder = config.out / stage.name
    where = ("--weights-dir", config.weights_dir) if config.weights_dir is not None else ()
    arguments = [str(part) for part in (*stage.command, "--metric", metric, *where, "--out", folder)]
    program = "from rlpips_jax.cli import main; main()"
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, stdout=subprocess.DEVNULL)
    signature = load_metric(metric, config.weights_dir).signature
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [document for document in documents if document["signature"] == signature and _asked(document, stage)]


def _asked(document: dict[str, Any], stage: Stage) -> bool:
    """Whether a result is of this command, and not of an earlier one with other numbers."""
    values = dict(zip(stage.command, stage.command[1:], strict=False))
    limit = values.get("--limit", document["triplets"])
    samples = values.get("--samples")
    steps = values.get("--steps")
    return (
        document["triplets"] == limit
        and samples in (None, document.get("certificate", document).get("samples"))
        and steps in (None, (document.get("threat") or {}).get("steps", steps))
    )


def cells(stage: str, documents: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Column and content of each cell that results of a stage fill."""
    for document in documents:
        threat = document.get("threat") or {}
        if stage == "agreement":
            yield "agreement", _share(document["scores"]["majority"])
        elif stage == "materials":
            yield "materials", _share(document["scores"]["two_afc"])
        elif stage == "shift" and threat.get("epsilon"):
            yield f"flips, shift {threat['epsilon']:g}", _share(document["scores"]["flip_rate"])
        elif stage in ("pgd", "union") and threat:
            yield f"{stage} {round(255 * threat['epsilon'])}/255", _share(document["scores"]["majority"])
        elif stage == "minimum" and threat:
            found = document["radii"][""]
            median = 255 * found["radius"][1]["mean"]
            if threat["norm"] == "l2":
                yield "median RMSE to reverse, of 255", f"{median / VALUES**0.5:.2f}"
            else:
                yield "median l-inf to reverse, of 255", f"{median:.2f}"
        elif stage == "certify":
            for radius, share in zip(CERTIFIED, document["certified_accuracy"], strict=True):
                yield f"certified {radius}", f"{share['share']:.2f}"


def _share(score: dict[str, float]) -> str:
    return f"{score['mean']:.3f}"


def times(config: MetricTable) -> dict[str, float]:
    """How many times as long as `lpips-alex` each metric takes for 50 pairs of 64x64, in turns."""
    pair = [jax.random.uniform(jax.random.key(seed), (50, 64, 64, 3)) for seed in (0, 1)]
    found = {}
    base = rl.load("lpips-alex", weights_dir=config.weights_dir)
    function = jax.jit(lambda metric, x, y: rl.distance(x, y, metric))
    drawing = jax.jit(lambda metric, x, y: rl.distance(x, y, metric, key=jax.random.key(0), samples=1))
    for name in config.metric:
        metric = load_metric(name, config.weights_dir)
        call = drawing if is_random(metric) else function
        taken = side_by_side(
            {
                "base": functools.partial(finished, function, base, *pair),
                "metric": functools.partial(finished, call, metric, *pair),
            },
            config.repeats,
        )
        found[name] = slowdown(taken["metric"], taken["base"]).median
    return found


def main(config: MetricTable) -> None:
    """Runs all commands and writes the table."""
    config.out.mkdir(parents=True, exist_ok=True)
    sets = {part.name.split()[-1]: part for part in read_npz(config.shared / "triplets" / "kodak.npz")}
    paths = {name: config.out / f"{name}.npz" for name in sets}
    for name, path in paths.items():
        if not path.exists():
            write_npz(path, {name: sets[name]})
    rows: dict[str, dict[str, str]] = {}
    for name in config.metric:
        metric = load_metric(name, config.weights_dir)
        row = rows[metric.name] = {}
        of = {"large": name in config.large, "random": is_random(metric)}
        for stage in stages(config, paths["ordinal"], paths["crossed"], **of):
            row |= dict(cells(stage.name, run(config, name, stage)))
        _write(config, rows)
    for name, ratio in times(config).items():
        rows[load_metric(name, config.weights_dir).name]["time"] = f"{ratio:.2f}"
    print(_write(config, rows))


def _write(config: MetricTable, rows: dict[str, dict[str, str]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines: list[Sequence[str]] = [[label, *(row.get(column, "-") for column in columns)] for label, row in rows.items()]
    text = str(Table("Metrics compared", ("metric", *columns), lines))
    (config.out / "table.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    main(tyro.cli(MetricTable))

"""A minute of training: the heads of lpips-tiny, trained under attack, before and after."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import rlpips_jax as rl
from examples.stage import Stage
from rlpips_jax.evaluation.measurement import Evaluation, Score
from rlpips_jax.reports.charts import Chart, Curve, curve_chart
from rlpips_jax.reports.page import Cell, Charts, Section, Source, Table, Text
from training.config import Lin
from training.train import train

HELD_OUT = 2
"""Photographs that are not learnt from."""
LEVELS = (1, 2, 4)
NAME = "trained here"
BATCH = 32


def show(stage: Stage) -> Section:
    """Trains, and compares what comes of it with the two metrics that ship."""
    of_part = parts(list(stage.photographs))
    learnt, others = of_part["learnt"], of_part["held-out"]
    for part, names in of_part.items():
        for name in names:
            stage.keep(f"{part}/{name}.png", stage.photographs[name])
    fragile, robust = stage.pair
    with tempfile.TemporaryDirectory() as folder:
        config = Lin(
            photographs=stage.out / "learnt",
            metric=fragile,
            teacher=fragile,
            triplets=300,
            batch=BATCH,
            steps=stage.effort.training_steps,
            out=Path(folder) / "run",
        )
        weights = train(config)
        records = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
        kept = stage.out / f"{NAME.replace(' ', '-')}.safetensors"
        shutil.copy(weights, kept)
    metrics = {fragile: stage.metrics[fragile], NAME: rl.load(kept), robust: stage.metrics[robust]}
    scores = measured(stage, metrics)
    stage.say(f"{stage.effort.training_steps} steps of training heads; triplets of other photographs ranked right:")
    header = ("metric", "as they are", *(f"{level}/255" for level in LEVELS))
    stage.tell([header, *((name, *(f"{one.mean:.2f}" for one in row)) for name, row in scores.items())])
    rows = [(name, *(_cell(one) for one in row)) for name, row in scores.items()]
    command = (
        f"python -m training lin --photographs {stage.out}/learnt --metric {fragile} --teacher {fragile} "
        f"--triplets 300 --batch {BATCH} --steps {stage.effort.training_steps} --out runs/demo"
    )
    evaluate = (
        f"rlpips evaluate --data {stage.out}/held-out --count {stage.effort.triplets} --metric {kept} --attack pgd"
    )
    source = Source((command, evaluate), tuple(metric.signature for metric in metrics.values()))
    text = (
        f"R-LPIPS trains a metric under attack. Here the heads of `{fragile}`, {heads(metrics[fragile])} numbers, "
        f"learn for {stage.effort.training_steps} steps from triplets that are made of photographs of this page "
        f"({', '.join(learnt)}); the network stays as it is. `{robust}`, which ships, learnt longer, from more "
        f"photographs, and with its whole network. Then all three rank {stage.effort.triplets} triplets made of other "
        f"photographs ({', '.join(others)})."
    )
    caption = "How training went, and what it changed. Bands are intervals of 95 %."
    charts = [_learning(records), _curves(list(metrics), scores)]
    table = Table(header, rows, "Share of triplets that are ranked right, under `pgd` with 20 steps")
    return Section("A minute of training", [Text(text), Charts(charts, caption, source), table])


def parts(names: list[str]) -> dict[str, list[str]]:
    """Photographs to learn from and others; a single one serves for both."""
    if len(names) <= HELD_OUT:
        return {"learnt": names[:1], "held-out": names[-1:]}
    # The second and the last: of the bundled ones a cat and a motorcycle.
    others = [names[1], names[-1]]
    return {"learnt": [name for name in names if name not in others], "held-out": others}


def measured(stage: Stage, metrics: dict) -> dict[str, list[Score]]:
    """Scores of each metric, as images are and at each radius."""
    triplets = rl.evaluation.ordinal(stage.out / "held-out", stage.effort.triplets)
    attack = functools.partial(rl.attacks.pgd, steps=20)
    found: dict[str, list[Score]] = {}
    for name, metric in tqdm(metrics.items(), desc="evaluation", unit="metric", disable=None):
        every: list[Evaluation] = rl.evaluation.evaluate(
            metric, triplets, attack, [level / 255 for level in LEVELS], key=jax.random.key(0)
        )
        found[name] = [one.scores.two_afc for one in every]
    return found


def heads(metric) -> int:
    """Numbers that the heads of a metric have."""
    return sum(int(np.size(one)) for one in metric.parameters["heads"])


def _learning(records: list[dict]) -> Chart:
    steps = [record for record in records if record["kind"] == "step"]
    # The mean of ten steps, since a batch is small.
    width = max(1, min(10, len(steps) // 2))
    blocks = [steps[first : first + width] for first in range(0, len(steps) - width + 1, width)]
    x = [float(np.mean([record["step"] for record in block])) for block in blocks]
    y = [float(np.mean([record["attacked"] for record in block])) for block in blocks]
    curve = Curve(NAME, 2, x, y, marks=False)
    return curve_chart([curve], title="While it learns", x_label="step", y_label="right under attack", level=0.5)


def _curves(names: list[str], scores: dict[str, list[Score]]) -> Chart:
    colours = dict(zip(names, (0, 2, 1), strict=True))
    curves = [
        Curve(
            name,
            colours[name],
            [0, *LEVELS],
            [one.mean for one in row],
            ([one.low for one in row], [one.high for one in row]),
        )
        for name, row in scores.items()
    ]
    label = "change allowed, in grey levels of 255"
    return curve_chart(curves, title="Before and after", x_label=label, y_label="ranked right", level=0.5)


def _cell(score: Score) -> Cell:
    return Cell(f"{score.mean:.2f}", f"[{score.low:.2f}, {score.high:.2f}]")

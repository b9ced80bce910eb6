"""`python -m benchmarks.sets`: `rlpips distance --pairs` on thousands of files of many sizes.

Draws the files, scores them in a process of its own, and prints what the README promises of it: how long it takes, how
many programs are compiled, whether memory stays flat, whether every number is that of its pair alone, and whether a run
that is killed half-way and started again ends with the same results.
"""

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import tyro
from PIL import Image

import rlpips_jax as rl

MIB = 2**20

SCORE = """
import json, sys
import jax
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(seconds) if event.endswith("/backend_compile_duration") else None
)
from rlpips_jax.cli import main
report, *arguments = sys.argv[1:]
sys.argv = ["rlpips", *arguments]
try:
    main()
finally:
    with open(report, "w") as file:
        json.dump(compiled, file)
"""
"""`rlpips` that writes down how long each program took to compile."""


@dataclass(frozen=True)
class Sets:
    """Score a large set of pairs, and check the results."""

    out: Path
    """Folder for the files and the results; files that are there already are used again."""
    files: int = 20_000
    """How many to draw; half of them are references."""
    sizes: int = 30
    """Of how many different sizes."""
    smallest: int = 48
    """Shortest side in pixels."""
    largest: int = 160
    """Longest side in pixels."""
    metric: str = "lpips-tiny"
    """Name of the metric."""
    weights_dir: Path | None = None
    """Folder with its weights."""
    workers: int | None = None
    """Processes that read images; by default one a core."""
    check: int = 300
    """Pairs, drawn at random, that are scored one by one for comparison."""
    check_all: bool = False
    """Score every pair one by one for comparison."""


class Sample(NamedTuple):
    """Memory of a run at one moment, in MiB, and how many pairs were recorded."""

    scoring: float
    reading: float
    recorded: int


def draw(config: Sets) -> Path:
    """Draws the files; the path of the list of pairs."""
    listing = config.out / f"pairs-{config.files}-{config.sizes}-{config.smallest}-{config.largest}.csv"
    if listing.exists():
        return listing
    rng = np.random.default_rng(0)
    # Sizes and the order in which they come are random: nothing is sorted for the program's comfort.
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < config.sizes:
        height, width = map(int, rng.integers(config.smallest, config.largest + 1, 2))
        sizes.add((height, width))
    of_pair = rng.permuted(np.arange(config.files // 2) % config.sizes)
    rows = ["reference,image\n"]
    for number, which in enumerate(of_pair):
        height, width = sorted(sizes)[which]
        folder = config.out / listing.stem / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        smooth = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        reference = smooth + rng.normal(0, 12, smooth.shape)
        image = reference + rng.normal(0, rng.uniform(2, 40), smooth.shape)
        paths = folder / f"{number:06d}-reference.png", folder / f"{number:06d}-image.jpg"
        drawn = [Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)) for pixels in (reference, image)]
        drawn[0].save(paths[0], compress_level=1)
        drawn[1].save(paths[1], quality=92)
        rows.append(f"{paths[0]},{paths[1]}\n")
    listing.write_text("".join(rows))
    return listing


def command(config: Sets, listing: Path, scores: Path) -> list[str]:
    """What scores the list into a file."""
    arguments = ["distance", "--pairs", listing, "--out", scores, "--metric", config.metric]
    arguments += ["--weights-dir", config.weights_dir] if config.weights_dir else []
    arguments += ["--workers", config.workers] if config.workers is not None else []
    return [sys.executable, "-c", SCORE, str(scores.with_suffix(".compiled")), *map(str, arguments)]


def recorded(path: Path) -> int:
    """Whole lines of results in a file."""
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def watched(arguments: list[str], scores: Path, stop_at: float = math.inf) -> list[Sample]:
    """Runs a command and samples its memory; kills it, with no warning, once so many pairs are recorded."""
    samples = []
    with subprocess.Popen(arguments) as process:
        watched_process = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                reading = sum(child.memory_info().rss for child in watched_process.children(recursive=True))
                samples.append(Sample(watched_process.memory_info().rss / MIB, reading / MIB, recorded(scores)))
            except psutil.Error:
                continue
            if samples[-1].recorded >= stop_at:
                # In the midst of the next window.
                time.sleep(0.5)
                process.kill()
                break
            time.sleep(0.2)
    if process.returncode not in (0, -9):
        raise SystemExit(f"{arguments[5:]} ended with status {process.returncode}")
    return samples


def results_of(path: Path) -> list[dict]:
    """The results in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def names(results: list[dict]) -> list[tuple[str, str]]:
    """Which pairs the results are of."""
    return [(result["reference"], result["image"]) for result in results]


def largest_difference(results: list[dict], others: list[float]) -> float:
    """Between distances in a file and others."""
    return float(np.abs(np.subtract([result["distance"] for result in results], others)).max())


def memory(samples: list[Sample], total: int) -> str:
    """Rows of a table: medians in the four quarters of the pairs, after the first window is recorded."""
    quarters: list[list[Sample]] = [[], [], [], []]
    for sample in samples:
        if 0 < sample.recorded < total:
            quarters[4 * sample.recorded // total].append(sample)
    rows = []
    for name, field in (("scoring process", "scoring"), ("reading processes, sum", "reading")):
        values = [[getattr(sample, field) for sample in quarter] for quarter in quarters]
        cells = [f"{np.median(quarter):.0f}" if quarter else "-" for quarter in values]
        rows.append(
            f"| {name} | " + " | ".join(cells) + f" | {max(getattr(sample, field) for sample in samples):.0f} |"
        )
    return "\n".join(rows)


def main(config: Sets) -> None:
    """Draws, measures, checks and prints."""
    config.out.mkdir(parents=True, exist_ok=True)
    listing = draw(config)
    wanted = [(pair.reference, pair.image) for pair in rl.scoring.pairs_in_list(listing)]

    whole, killed = config.out / "whole.jsonl", config.out / "killed.jsonl"
    for path in (whole, killed):
        path.unlink(missing_ok=True)
    started = time.perf_counter()
    samples = watched(command(config, listing, whole), whole)
    seconds = time.perf_counter() - started
    compiled = json.loads(whole.with_suffix(".compiled").read_text())
    results = results_of(whole)

    kills = []
    for share in (1 / 4, 1 / 2):
        watched(command(config, listing, killed), killed, stop_at=share * len(wanted))
        kills.append(recorded(killed))
    watched(command(config, listing, killed), killed)
    resumed = results_of(killed)

    metric = rl.load(config.metric, weights_dir=config.weights_dir)
    count = len(wanted) if config.check_all else min(config.check, len(wanted))
    chosen = [results[at] for at in np.random.default_rng(1).permutation(len(results))[:count]]
    alone = [
        float(rl.distance(rl.load_image(result["reference"]), rl.load_image(result["image"]), metric))
        for result in chosen
    ]

    print(f"{metric.signature}\n\n| | |\n|---|---|")
    sides = f"{config.smallest} to {config.largest} pixels a side"
    print(f"| files, pairs, sizes | {config.files}, {len(wanted)}, {config.sizes} ({sides}) |")
    print(f"| time, pairs a second | {seconds:.0f} s, {len(wanted) / seconds:.0f} |")
    print(f"| programs compiled | {len(compiled)}, in {sum(compiled):.1f} s |")
    print(f"| every pair once and in order | {names(results) == wanted} |")
    print(f"| largest difference from one by one, {count} pairs | {largest_difference(chosen, alone):.1e} |")
    print(f"| killed twice, with so many pairs recorded | {kills[0]}, {kills[1]} |")
    print(f"| resumed: every pair once and in order | {names(resumed) == wanted} |")
    difference = largest_difference(resumed, [result["distance"] for result in results])
    print(f"| resumed: largest difference from the whole run | {difference:.1e} |")
    print("\n| memory in MiB, median by quarter of the pairs | first | second | third | last | most |")
    print("|---|---|---|---|---|---|")
    print(memory(samples, len(wanted)))


if __name__ == "__main__":
    main(tyro.cli(Sets, prog="python -m benchmarks.sets"))

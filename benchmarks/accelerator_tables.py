"""`python -m benchmarks.accelerator_tables`: speed on this machine's accelerator, by the metric that ships.

Steps of PGD a second by the size of the batch, files scored a second, and large images in tiles.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

import rlpips_jax as rl
from benchmarks.accelerator_checks import pair, slope
from benchmarks.process import device_peak, resident
from benchmarks.report import Table, seconds
from benchmarks.timing import median, side_by_side


@dataclass(frozen=True)
class Tables:
    """Measure on the default device."""

    only: tuple[str, ...] = ()
    """Which tables; by default all."""
    small: bool = False
    """Small sizes, for a machine without an accelerator."""


def pgd(config: Tables) -> Table:
    """Steps of PGD a second on the closer image, by the number of images."""
    metric, steps, side = rl.load("lpips-tiny"), 20, 64
    table = Table(
        f"PGD on lpips-tiny, {side}x{side}, float32", ["images", "steps a second", "images x steps a second"], []
    )
    for count in (2, 8) if config.small else (16, 64, 256, 1024):
        x, y = jax.device_put(pair(count, side))
        objective = rl.attacks.distance_from(metric, x)

        def attack(objective: rl.attacks.Objective = objective, y: jax.Array = y) -> object:
            return jax.block_until_ready(
                rl.attacks.pgd(objective, y, key=jax.random.key(0), epsilon=4 / 255, steps=steps).adversarial
            )

        taken = median(side_by_side({"pgd": attack}, 2 if config.small else 5)["pgd"])
        table.rows.append([str(count), f"{steps / taken:.0f}", f"{count * steps / taken:.0f}"])
    return table


def files(config: Tables) -> Table:
    """Pairs of PNG files a second, decoding included, after the first batches."""
    side, count = (64, 64) if config.small else (256, 512)
    metric = rl.load("lpips-tiny")
    with tempfile.TemporaryDirectory() as name:
        pairs = []
        x, y = pair(8, side)
        for at in range(count):
            paths = [Path(name) / f"{kind}{at}.png" for kind in "xy"]
            for path, images in zip(paths, (x, y), strict=True):
                rl.save_image(path, np.round(255 * np.roll(images[at % 8], at, axis=0)).astype(np.uint8))
            pairs.append(paths)
        started = time.perf_counter()
        errors = [result.error for result in rl.scoring.score(pairs, metric) if result.error is not None]
        if errors:
            raise RuntimeError(errors[0])
        taken = time.perf_counter() - started
    row = [f"{count} pairs of {side}x{side}", seconds(taken), f"{count / taken:.0f}"]
    title = "Files, by lpips-tiny, with compilation and the start of readers"
    return Table(title, ["", "time", "pairs a second"], [row])


def tiles(config: Tables) -> Table:
    """A large pair and its gradient, at once and within a bound of memory."""
    side = 512 if config.small else 4096
    x, y = jax.device_put(pair(1, side))
    table = Table(f"One pair of {side}x{side}, lpips-tiny", ["max_memory", "distance", "gradient"], [])
    calls: dict[str, Callable[[], object]] = {}
    for limit in (None, 16 if config.small else 256):
        metric = rl.load("lpips-tiny", max_memory=None if limit is None else limit << 20)
        name = "none" if limit is None else f"{limit} MiB"
        gradient = jax.jit(slope)
        calls[f"{name} distance"] = lambda metric=metric: jax.block_until_ready(rl.distance(x, y, metric))
        calls[f"{name} gradient"] = lambda metric=metric, f=gradient: jax.block_until_ready(f(metric, x, y))
    times = side_by_side(calls, 2)
    for name in dict.fromkeys(call.rpartition(" ")[0] for call in calls):
        table.rows.append([name, *(seconds(median(times[f"{name} {what}"])) for what in ("distance", "gradient"))])
    return table


TABLES: dict[str, Callable[[Tables], Table]] = {"pgd": pgd, "files": files, "tiles": tiles}


def main(config: Tables) -> None:
    """Measures and prints."""
    for name in config.only or TABLES:
        print(TABLES[name](config))
    memory = device_peak()
    on_device = "" if memory is None else f", of the accelerator {memory:.0f} MiB"
    print(f"Peak memory of the process {resident('VmHWM'):.0f} MiB{on_device}.")


if __name__ == "__main__":
    main(tyro.cli(Tables, prog="python -m benchmarks.accelerator_tables"))

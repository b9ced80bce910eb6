"""`python -m benchmarks.large`: memory and time of a large pair, and of its gradient, in tiles and at once.

Each is measured in a process of its own, so that its peak is its own; what the tiles change in the numbers is printed.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.process import MIB, resident

What = Literal["distance", "gradient"]

ONE = "one"
"""The first argument of a process of its own; the second says as JSON what it measures."""


@dataclass(frozen=True)
class Large:
    """Measure a pair of large images: a photograph enlarged to this size, and the same with noise and blur."""

    image: Path | None = None
    """The photograph; by default drawn."""
    metric: str = "lpips-vgg"
    weights_dir: Path | None = None
    """Folder with its weights."""
    height: int = 3000
    width: int = 4000
    limits: tuple[int, ...] = (0, 1024)
    """MiB of `max_memory` that are compared; 0 is none."""
    what: tuple[What, ...] = ("distance", "gradient")


def pair(config: Large) -> tuple[np.ndarray, np.ndarray]:
    """The photograph and its distorted copy, as bytes."""
    from PIL import Image, ImageFilter

    rng = np.random.default_rng(0)
    if config.image is None:
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    else:
        small = Image.open(config.image).convert("RGB")
    x = small.resize((config.width, config.height), Image.Resampling.BICUBIC)
    y = np.asarray(x.filter(ImageFilter.GaussianBlur(2)), np.int16)
    y = y + rng.integers(-12, 13, y.shape, np.int16)
    return np.asarray(x), np.clip(y, 0, 255).astype(np.uint8)


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds, peak MiB of this process and the number, or the gradient in a file."""
    import jax
    import jax.numpy as jnp

    import rlpips_jax as rl

    config, limit = Large(**order["config"]), order["limit"]
    metric = rl.load(config.metric, weights_dir=config.weights_dir, max_memory=limit * int(MIB) or None)
    x, y = pair(config)
    started = time.perf_counter()
    if order["what"] == "distance":
        result = np.asarray(rl.distance(x, y, metric))
    else:
        floats = jnp.asarray(y, jnp.float32) / 255
        result = np.asarray(jax.jit(jax.grad(lambda y, x, metric: rl.distance(x, y, metric)))(floats, x, metric))
    seconds = time.perf_counter() - started
    np.save(order["out"], result)
    return {"seconds": seconds, "peak": resident("VmHWM")}


def main(config: Large) -> None:
    """Measures and prints, one line for each process."""
    print(f"{config.metric}, {config.width}x{config.height}, one pair; times with compilation")
    with tempfile.TemporaryDirectory() as folder:
        for what in config.what:
            kept: dict[int, np.ndarray] = {}
            for limit in sorted(config.limits, reverse=True):
                out = Path(folder) / "result.npy"
                order = json.dumps({"config": asdict(config), "what": what, "limit": limit, "out": out}, default=str)
                run = subprocess.run(
                    [sys.executable, "-m", "benchmarks.large", ONE, order],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=False,
                )
                name = f"{what}, " + (f"max_memory {limit} MiB" if limit else "at once")
                if run.returncode:
                    print(f"{name}: ended with status {run.returncode}", flush=True)
                    continue
                found = json.loads(run.stdout.splitlines()[-1])
                print(f"{name}: {found['seconds']:.1f} s, peak of the process {found['peak']:.0f} MiB", flush=True)
                kept[limit] = np.load(out)
            values = list(kept.values())
            for other in values[1:]:
                error = np.abs(other - values[0]).max() / np.abs(values[0]).max()
                print(f"{what}: they differ by {error:.1e} of the largest value", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        main(tyro.cli(Large, prog="python -m benchmarks.large"))

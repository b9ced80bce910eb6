"""`python -m benchmarks.accelerator_checks`: whether the numbers of this machine's accelerator are right.

Needs no file and no network: weights and images are drawn, or ship. What is right comes from the goldens of the tests,
which PyTorch computed in float64, and from this library on the CPU.
"""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlpips_jax as rl

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Checks:
    """Check the numbers of the default device."""

    only: tuple[str, ...] = ()
    """Which checks; by default all."""
    small: bool = False
    """Fewer networks, for a machine without an accelerator."""


def within(what: str, found: Any, expected: Any, limit: float) -> None:
    """Prints the largest difference relative to the largest value, and ends the program if it is too large."""
    expected = np.asarray(expected, np.float64)
    error = float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())
    print(f"- {what}: {error:.1e} (limit {limit:.0e})", flush=True)
    if not error <= limit:
        sys.exit(f"{what} differs by {error:.1e}, more than {limit:.0e}")


def on_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return jax.device_get(function(*jax.device_put(arguments, cpu)))


def goldens(config: Checks) -> None:
    """Distances by drawn weights, against PyTorch's in float64."""
    from tests.goldens.make import GOLDENS, images
    from tests.test_goldens import metric_of

    expected = json.loads(GOLDENS.read_text())
    for name in ("lpips-alex",) if config.small else ("lpips-alex", "lpips-vgg", "lpips-squeeze"):
        metric = metric_of(name)
        x, y = images(metric.backbone.name)
        right = expected[name]["0.1"]["layers"]
        for options, limit in (
            ({"precision": "highest"}, 1e-5),
            ({"precision": "default"}, 2e-2),
            ({"dtype": "bfloat16"}, 5e-2),
        ):
            found = rl.layer_distances(x, y, dataclasses.replace(metric, **options))
            within(f"{name}, {', '.join(options.values())}, distances", found, right, limit)


def pair(count: int = 4, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy copies, in [0, 1]."""
    rng = np.random.default_rng(0)
    x = np.asarray(jax.image.resize(rng.uniform(0, 1, (count, 9, 9, 3)), (count, side, side, 3), "cubic"))
    x = np.clip(x, 0, 1)
    return x.astype(np.float32), np.clip(x + rng.normal(0, 0.05, x.shape), 0, 1).astype(np.float32)


def slope(metric: Any, x: Any, y: Any) -> Any:
    return jax.grad(lambda y: rl.distance(x, y, metric).sum())(y)


def gradients(config: Checks) -> None:
    """Of a metric that ships, in every precision, against the CPU's."""
    metric, (x, y) = rl.load("lpips-tiny"), pair()
    right = on_cpu(slope, metric, x, y)
    norm = np.linalg.norm(right)
    every = ({}, 1e-3), ({"dtype": "bfloat16"}, 0.3), ({"precision": "default"}, 0.1)
    for options, limit in every[: 2 if config.small else 3]:
        found = np.asarray(slope(dataclasses.replace(metric, **options), x, y))
        # A maximum that rounding decides moves single entries.
        error = float(np.linalg.norm(found - right) / norm)
        name = next(iter(options.values()), "highest")
        print(f"- lpips-tiny, {name}, gradient: {error:.1e} of its norm (limit {limit:.0e})", flush=True)
        if not error <= limit:
            sys.exit(f"the gradient, {name}, differs by {error:.1e} of its norm")
    tiles = dataclasses.replace(metric, max_memory=24 << 20)
    x, y = pair(1, 700)
    within("lpips-tiny, 700x700 in tiles, distance", rl.distance(x, y, tiles), rl.distance(x, y, metric), 1e-5)


def adversarial(_: Checks) -> None:
    """One step of PGD in l2 and what it gains, against the CPU's."""
    metric, (x, y) = rl.load("lpips-tiny"), pair()

    def attack(metric: Any, x: Any, y: Any) -> Any:
        objective = rl.attacks.distance_from(metric, x)
        result = rl.attacks.pgd(
            objective, y, key=jax.random.key(0), epsilon=1.0, norm="l2", steps=1, random_start=False
        )
        return rl.distance(x, result.adversarial, metric)

    within("distances after a step of PGD", attack(metric, x, y), on_cpu(attack, metric, x, y), 1e-4)


def ensemble(_: Checks) -> None:
    """E-LPIPS under the same draws, against the CPU's."""
    metric, (x, y) = rl.load("elpips-tiny"), pair(2)

    def estimate(metric: Any, x: Any, y: Any) -> Any:
        return rl.distance(x, y, metric, key=jax.random.key(3), samples=8)

    within("elpips-tiny, 8 draws", estimate(metric, x, y), on_cpu(estimate, metric, x, y), 1e-4)


def feed(_: Checks) -> None:
    """Grain's batches of judged triplets, placed on the device as they were made."""
    from training.data.feed import batches
    from training.data.sources import MemorySource

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 32, 32, 3), np.uint8)
    judgment = rng.uniform(0, 1, 64).astype(np.float32)
    source = MemorySource(rl.evaluation.Triplets(images[0], images[1], images[2], judgment, ("drawn",) * 64))
    stream = batches([source], batch=16, seed=0)
    for batch in itertools.islice(stream, 8):
        placed = np.asarray(jnp.asarray(batch["reference"]))
        np.testing.assert_array_equal(placed, images[0][batch["index"]])
    stream.close()
    print("- 8 batches of 16 triplets arrived unchanged")


KILLED = """
import os, signal, sys
from training import __main__, logs

write = logs.MetricLog.write

def call(log, step, kind, *others):
    if (step, kind) == (3, "step"):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(log, step, kind, *others)

logs.MetricLog.write = call
if __name__ == "__main__":
    sys.exit(__main__.main())
"""
"""The training program, which dies after three steps, one of them not yet in a checkpoint."""

OPTIONS = (
    "lin --metric lpips-tiny --teacher lpips-tiny --triplets 16 --validation-triplets 4 --size 32 --batch 8 --steps 4 "
    "--norm l2 --epsilon 0.5 --attack-steps 2 --evaluation-steps 2 --evaluation-epsilons 0.5 --checkpoint-every 2"
)


def resume(_: Checks) -> None:
    """Training that is killed after three of its steps ends with the same parameters, to the last bit."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, part in enumerate(("photographs", "validation")):
            for at in range(2):
                x = pair(1, 160)[0]
                noise = np.random.default_rng(10 * seed + at).normal(0, 12, x.shape[1:])
                rl.save_image(folder / part / f"{at}.png", np.clip(255 * x[0] + noise, 0, 255).astype(np.uint8))
        places = [f"--{part}={folder / part}" for part in ("photographs", "validation")]

        def train(out: str, program: tuple[str, str] = ("-m", "training")) -> int:
            command = [sys.executable, *program, *OPTIONS.split(), *places, "--out", str(folder / out)]
            return subprocess.run(
                command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.DEVNULL, check=False
            ).returncode

        found = [train("whole"), train("parts", ("-c", KILLED)), train("parts")]
        if found != [0, -signal.SIGKILL, 0]:
            sys.exit(f"training, training that is killed, and its resumption ended with the statuses {found}")
        whole, parts = (rl.load(folder / out / "rlpips-tiny.safetensors") for out in ("whole", "parts"))
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            np.testing.assert_array_equal(one, other)
    print("- a run of 4 steps, killed in the third and resumed, ends with the same bits")


CHECKS: dict[str, Callable[[Checks], None]] = {
    "goldens": goldens,
    "gradients": gradients,
    "adversarial": adversarial,
    "ensemble": ensemble,
    "feed": feed,
    "resume": resume,
}


def main(config: Checks) -> None:
    """Runs the checks."""
    for name in config.only or CHECKS:
        CHECKS[name](config)


if __name__ == "__main__":
    main(tyro.cli(Checks, prog="python -m benchmarks.accelerator_checks"))

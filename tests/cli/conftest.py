"""What the tests of the command line's parts share: pictures, and `rlpips` as a function and as a process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl

ROOT = Path(__file__).parent.parent.parent

# Programs started in the background by a shell script ignore Ctrl-C, and so would what they start.
START = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rlpips_jax.scoring import batches
batches.WINDOW = {window}
from rlpips_jax.cli import main
sys.argv[0] = "rlpips"
main()
"""


class Run(NamedTuple):
    """What a run of `rlpips` came to."""

    status: int
    out: str
    err: str


Rlpips = Callable[..., Run]
Draw = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture
def rlpips(command: Callable[..., tuple[int, str, str]]) -> Rlpips:
    """Runs `rlpips distance` by lpips-tiny with these arguments, in this process."""
    return lambda *arguments: Run(*command("distance", *arguments, "--metric", "lpips-tiny"))


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen]:
    """Starts `rlpips distance` by lpips-tiny as a process, in a group of its own."""

    def run(*arguments: object, window: int = 4, **options: Any) -> subprocess.Popen:
        words = ["distance", *map(str, arguments), "--metric", "lpips-tiny"]
        return subprocess.Popen(
            [sys.executable, "-c", START.format(window=window), *words],
            cwd=ROOT,
            text=True,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    return run


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Writes a picture of patches with grain, as photographs have; 16-bit ones are grey."""

    def save(path: Path, seed: int = 0, size: tuple[int, int] = (32, 40), *, deep: bool = False) -> Path:
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        smooth = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float32)
        picture = Image.fromarray(np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8))
        path.parent.mkdir(parents=True, exist_ok=True)
        if deep:
            picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256 + 77)
        picture.save(path)
        return path

    return save


def alone(pairs: list[tuple[Path, Path]], metric: rl.Lpips) -> list[float]:
    """The distances by the library itself, a pair at a time."""
    return [float(rl.distance(rl.load_image(one), rl.load_image(other), metric)) for one, other in pairs]


@pytest.fixture(scope="session")
def one_by_one() -> Callable[[list[tuple[Path, Path]], rl.Lpips], list[float]]:
    return alone

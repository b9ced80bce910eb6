"""`python -m benchmarks.startup`: what importing the library costs over importing JAX and Flax."""

import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro


@dataclass(frozen=True)
class Startup:
    """Time imports in fresh processes, taken in turns."""

    repeats: int = 15
    """Processes of each kind."""


def seconds(program: str) -> float:
    """How long a fresh interpreter takes to run a program."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def main(config: Startup) -> None:
    """Measures and prints the medians."""
    programs = {"jax, flax.linen": "import jax, flax.linen", "rlpips_jax": "import jax, flax.linen, rlpips_jax"}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        seconds(program)
    for _ in range(config.repeats):
        for name, program in programs.items():
            taken[name].append(seconds(program))
    base, whole = (float(np.median(taken[name])) for name in programs)
    extra = float(np.median(np.subtract(taken["rlpips_jax"], taken["jax, flax.linen"])))
    print(f"jax and flax {base:.2f} s, with rlpips_jax {whole:.2f} s; median of the differences {extra:.3f} s")


if __name__ == "__main__":
    main(tyro.cli(Startup, prog="python -m benchmarks.startup"))

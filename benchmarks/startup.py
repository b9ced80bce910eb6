"""`python -m benchmarks.startup`: what importing the library costs over importing JAX and Flax."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tyro

from benchmarks.timing import Times, median, run_program, side_by_side

BASE, WHOLE = "jax, flax.linen", "rlpips_jax"
PROGRAMS = {BASE: "import jax, flax.linen", WHOLE: "import jax, flax.linen, rlpips_jax.distances.lpips"}


@dataclass(frozen=True)
class Startup:
    """Time imports in fresh processes, taken in turns."""

    repeats: int = 15
    """Processes of each kind."""


def process_times(programs: Mapping[str, str], repeats: int) -> Times:
    """Seconds that fresh interpreters take to run programs."""
    return side_by_side({name: functools.partial(run_program, text) for name, text in programs.items()}, repeats)


def main(config: Startup) -> None:
    """Measures and prints the medians."""
    taken = process_times(PROGRAMS, config.repeats)
    extra = float(np.median(np.subtract(taken[WHOLE], taken[BASE])))
    print(
        f"jax and flax {median(taken[BASE]):.2f} s, with rlpips_jax {median(taken[WHOLE]):.2f} s; "
        f"median of the differences {extra:.3f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(Startup, prog="python -m benchmarks.startup"))

"""Timing in turns, so that whatever else the machine does falls on all alike."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

PAUSE = 0.01
"""Seconds between timed calls: PyTorch's threads wait busily for a few milliseconds after theirs."""

Result = TypeVar("Result")

Times = dict[str, list[float]]
"""Seconds of each contestant, one entry a round."""


class Ratio(NamedTuple):
    """How many times as long one takes as another: quartiles over the rounds."""

    lower: float
    median: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})"


def side_by_side(calls: Mapping[str, Callable[[], object]], repeats: int, pause: float = 0.0) -> Times:
    """Seconds of each call, taken in turns after a warm-up; who begins rotates from round to round.

    Args:
        calls: by name; a call returns when its result is there.
        repeats: rounds.
        pause: seconds of rest before each call. Threads of one library that wait busily for more work
            would otherwise slow the next.
    """
    for call in calls.values():
        call()
    names = list(calls)
    times: Times = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            started = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - started)
    return times


def median(taken: Sequence[float]) -> float:
    """Median seconds."""
    return float(np.median(taken))


def slowdown(taken: Sequence[float], base: Sequence[float]) -> Ratio:
    """Quartiles of the ratios of each round."""
    ratios = np.divide(taken, base)
    return Ratio(*(float(np.quantile(ratios, share)) for share in (0.25, 0.5, 0.75)))


def run_program(program: str) -> None:
    """Runs a program in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", program], check=True)


def processor_seconds() -> tuple[float, float] | None:
    """Seconds that all processes have kept processors busy, and those of this one and its finished children.

    None where the system does not tell (it tells on Linux).
    """
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    except (OSError, ValueError):
        return None
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


def alone(measure: Callable[[], Result]) -> tuple[Result, float]:
    """What a part found, and how many processors others kept busy meanwhile; NaN where that is not known."""
    before, started = processor_seconds(), time.perf_counter()
    measured = measure()
    elapsed, after = time.perf_counter() - started, processor_seconds()
    if before is None or after is None:
        return measured, float("nan")
    everybody, here = np.subtract(after, before)
    return measured, max(0.0, float(everybody - here) / elapsed)

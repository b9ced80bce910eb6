"""`python -m benchmarks.process JSON`: one contestant in a process of its own; prints what it measured as JSON.

Imports nothing that the contestant does not.
"""

import functools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import Contestant, Setting, make

BATCH = 16
MIB = 2**20


def resident(field: str) -> float:
    """Resident memory in MiB: `VmRSS` for now, `VmHWM` for the most there was.

    `ru_maxrss` starts at the size of the process that started this one, so it serves only where /proc is absent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def forget_peak() -> None:
    """Makes `VmHWM` start again from what is resident now."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def memory(contestant: Contestant, order: dict[str, Any]) -> dict[str, float | None]:
    """Peaks in MiB beyond what is there once libraries, weights and images are."""
    with np.load(order["images"]) as images:
        x, y = contestant.place(images["x"]), contestant.place(images["y"])
    call = functools.partial(getattr(contestant, order["what"]), x, y)
    forget_peak()
    before = resident("VmRSS")
    call()
    first = resident("VmHWM") - before
    forget_peak()
    for _ in range(2):
        call()
    return {"first": first, "later": resident("VmHWM") - before, "device": device_peak()}


def device_peak() -> float | None:
    """Most memory that a GPU's allocator gave out, in MiB; None without a GPU."""
    if "torch" in sys.modules:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else None
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return statistics["peak_bytes_in_use"] / MIB if "peak_bytes_in_use" in statistics else None


def first(contestant: Contestant, order: dict[str, Any]) -> dict[str, float]:
    """Seconds from the start of this process to the first distance."""
    with np.load(order["images"]) as images:
        contestant.distance(contestant.place(images["x"]), contestant.place(images["y"]))
    return {"seconds": time.time() - order["started"]}


def files(contestant: Contestant, order: dict[str, Any]) -> dict[str, list[float]]:
    """Distances of the images of the same name in two folders: the loop that one writes without thinking."""
    from PIL import Image

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1

    paths = sorted(Path(order["references"]).iterdir())
    distances: list[float] = []
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        x = np.stack([read(path) for path in batch])
        y = np.stack([read(Path(order["images"]) / path.name) for path in batch])
        result = contestant.distance(contestant.place(x), contestant.place(y))
        distances += contestant.numbers(result).tolist()
    return {"distances": distances}


TASKS = {"memory": memory, "first": first, "files": files}


def main() -> None:
    """Does what the JSON says."""
    order = json.loads(sys.argv[1])
    contestant = make(order["contestant"], Setting(**order["setting"]))
    print(json.dumps(TASKS[order["task"]](contestant, order)))


if __name__ == "__main__":
    main()

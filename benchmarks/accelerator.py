"""`python -m benchmarks.accelerator --out FOLDER`: what matters on a machine with an accelerator, in one run.

Checks first: goldens at precision "highest", the errors of TF32 and bfloat16, gradients, one adversarial step against
the CPU's, E-LPIPS, the feed of training, exact resumption. Then the tables of the other benchmarks: distance and
gradient beside `torch.compile`, an adversarial step beside the published one, steps of PGD by batch, files a second,
memory. Each part is a process of its own with a limit of time, so that one that fails or hangs spoils no other; needs
no network. `report.md` has everything, ready for RESULTS.md, and is written anew after every part.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.contestants import weight_file

LEAST = 10.0
"""Seconds that a part must have left to be started."""


@dataclass(frozen=True)
class Accelerator:
    """Check and measure on this machine's accelerator, or on its CPU."""

    out: Path
    """Folder for the report, and for what each part says."""
    small: bool = False
    """Small sizes, for a machine without an accelerator."""
    seconds: float = 480.0
    """Of everything; parts that do not fit any more are left out."""
    shared: Path = Path("../shared")
    """Folder of the reference data, whose photographs are taken if it is there."""
    weights_dir: Path | None = None
    """Folder with the library's weights; by default made of the reference data, or drawn without it."""


class Part(NamedTuple):
    """A program, its arguments, and the most seconds it may take."""

    name: str
    command: Sequence[str]
    limit: float


def parts(config: Accelerator) -> list[Part]:
    """What is run, most important first."""
    weights = ["--weights-dir", str(config.weights_dir or made_weights(config))]
    shared = ["--shared", str(config.shared)]
    small = ["--small"] if config.small else []
    checks = [Part(f"check: {name}", ["accelerator_checks", *small, "--only", name], 120) for name in CHECKS]
    tables = [Part(f"table: {name}", ["accelerator_tables", *small, "--only", name], 60) for name in TABLES]
    sizes = ["2x64"] if config.small else ["50x64", "16x256"]
    networks = ["alex"] if config.small else ["alex", "vgg"]
    rounds = "2" if config.small else "10"
    speed = ["lpips", "--parts", "speed", "--networks", *networks, "--sizes", *sizes, "--repeats", rounds]
    small_step = ["--steps", "2", "--batch", "2", "--size", "32", "--repeats", "1"]
    step = ["training", "--parts", "step", *(small_step if config.small else ["--repeats", "3"])]
    memory = ["memory", *(["--images", "20", "--gradient-side", "128", "--checked", "4"] if config.small else [])]
    return [
        *checks,
        *tables,
        Part("table: distance and gradient", [*speed, *shared, *weights], 150),
        Part("table: adversarial step", [*step, *shared, *weights], 90),
        Part("table: memory", [*memory, *weights], 60),
    ]


def made_weights(config: Accelerator) -> Path:
    """A folder with the weights of `NETWORKS`: official ones, as the peers have, if the reference data has them.

    Drawn ones take as long, but can only be compared with themselves.
    """
    folder = config.out / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    official = {name: weight_file(config.shared, name) for name in NETWORKS}
    heads = config.shared / "weights" / "lpips_heads"
    if all(file.is_file() for file in official.values()):
        commands = [
            ["-m", "convert", "--weights", str(file), "--heads", str(heads / f"v0.1-{name}.pth"), "--out", str(folder)]
            for name, file in official.items()
        ]
    else:
        commands = [["-c", DRAW, str(folder), *(f"lpips-{name}" for name in NETWORKS)]]
    for command in commands:
        # On the CPU, so that the accelerator is free for the parts.
        subprocess.run([sys.executable, *command], env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
    return folder


NETWORKS = ("alex", "vgg")
DRAW = """
import sys
from pathlib import Path
import rlpips_jax as rl
from tests.test_goldens import metric_of
for name in sys.argv[2:]:
    rl.save(metric_of(name), Path(sys.argv[1]) / f"{name}.safetensors")
"""
"""Saves the drawn weights of the goldens under the names of official ones."""
CHECKS = ("goldens", "gradients", "adversarial", "ensemble", "feed", "resume")
TABLES = ("pgd", "files", "tiles")
"""Parts of `benchmarks.accelerator_checks` and `benchmarks.accelerator_tables`."""


def run(part: Part, config: Accelerator, left: float) -> tuple[str, str, float]:
    """What a part said, what became of it, and its seconds."""
    limit = min(part.limit, left)
    started = time.monotonic()
    # Each process takes the memory of a GPU as it needs it; what one compiled, the next need not.
    variables = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(config.out.absolute() / "compiled"),
    }
    module, *arguments = part.command
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            env=variables,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return "", f"did not end within {limit:.0f} s", time.monotonic() - started
    last = (done.stderr.strip().splitlines() or [""])[-1]
    became = "passed" if done.returncode == 0 else f"failed: {last[:300]}"
    return done.stdout, became, time.monotonic() - started


def report(rows: Sequence[tuple[str, str, float]], said: Sequence[tuple[str, str]], here: str) -> str:
    """Everything as Markdown."""
    lines = [f"{here}\n", "| part | | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {became.replace('|', '/')} | {seconds:.0f} |" for name, became, seconds in rows]
    return "\n".join([*lines, "", *(f"### {name}\n\n{text.strip()}\n" for name, text in said if text.strip())])


def device() -> str:
    """What the parts run on, found out by a process that gives it back."""
    program = "import benchmarks.report as r, json; print(json.dumps([r.machine(), r.versions()]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    machine, versions = json.loads(done.stdout.splitlines()[-1])
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version != "absent")
    return f"{', '.join(machine['devices'])}; {machine['processor']}, {machine['cores']} cores; {packages}"


def main(config: Accelerator) -> int:
    """Runs all parts; 1 if one did not pass."""
    begun = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    here = device()
    rows: list[tuple[str, str, float]] = []
    said: list[tuple[str, str]] = []
    for part in parts(config):
        left = config.seconds - (time.monotonic() - begun)
        if left < LEAST:
            rows.append((part.name, "left out: no time was left", 0.0))
            continue
        text, became, seconds = run(part, config, left)
        rows.append((part.name, became, seconds))
        said.append((part.name, text))
        print(f"{part.name}: {became} ({seconds:.0f} s)", flush=True)
        (config.out / "report.md").write_text(report(rows, said, here) + "\n")
    return int(any(became != "passed" for _, became, _ in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Accelerator, prog="python -m benchmarks.accelerator")))

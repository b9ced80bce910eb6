"""`python -m benchmarks.break --minutes 60`: kills, hostile files and random pairs, as many as fit into the time.

- A kill: a command gets SIGKILL at random moments and is started again, until it ends; then its results are compared
  with those of an uninterrupted run, byte by byte. A stop is the same with two SIGTERM.
- A file: a whole file of a format, with damage or hostile content at random places, is read. It must be read or refused
  with the documented error, within 10 seconds and 1 GiB, run nothing, and stay as it is.
- A pair: two random images, by a network in float32 or bfloat16. Distance and gradient must be finite, the distance of
  identical images 0.

What is tried depends on the seed and on how often its target was tried before. Every attempt is recorded in
`FOLDER/attempts.jsonl`; the same command goes on there, and ends with the table of all attempts.
"""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from safetensors.numpy import save_file

import rlpips_jax as rl
from benchmarks.report import Table
from rlpips_jax.cli.results import Recording
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.errors import RlpipsError
from rlpips_jax.files.journal import Journal
from rlpips_jax.geometry import snapshots
from rlpips_jax.loading import recipes
from rlpips_jax.scoring import Pair, Result, pairs_in_list
from rlpips_jax.scoring.records import form_of, recorded_results
from rlpips_jax.weights import store
from rlpips_jax.weights.pytorch import read_checkpoint, write_checkpoint
from training import logs

SHARES = {"kills": 0.6, "stops": 0.1, "files": 0.15, "pairs": 0.15}
"""Of the time, by group."""

MOST_KILLS = 8
"""Of one run, which may then end."""

FILES, BATCH, SIDE = 100, 64, 48
"""Files of an attempt; pairs of one, and their height and width."""

SLOW, LARGE = 10.0, 1 << 30
"""Seconds and bytes that no file may take."""

TRAINING = "--photographs {data} --validation {data} --triplets 16 --validation-triplets 4 --batch 8 --steps 4 "
TRAINING += "--size 32 --metric lpips-tiny --teacher lpips-tiny --checkpoint-every 1 --evaluate-every 4 "
TRAINING += "--evaluation-steps 2 --out {out}"
SETS = "--data {data} --count 16 --metric lpips-tiny --out {out}"
DESCENT = "--metric lpips-tiny --square 64 --steps 40 --coarsest 32 --out {out}"
RLPIPS = "-c from\xa0rlpips_jax.cli\xa0import\xa0main;main()"
COMMANDS = {
    "lin": f"-m training lin {TRAINING} --epsilon 1/255 --attack-steps 2",
    "tune": f"-m training tune {TRAINING} --epsilon 1/255 --attack-steps 2",
    "natural": f"-m training natural {TRAINING}",
    "classifier": "-m training classifier --data {data}-classes --defence pgd --held-out 4 --batch 4 --steps 6 "
    "--widths 8 --checkpoint-every 1 --evaluate-every 3 --evaluation-steps 1 --attack-steps 2 --out {out}",
    "distance": f"{RLPIPS} distance --pairs {{data}}/pairs.csv --metric lpips-tiny --workers 2 --out {{out}}/s.jsonl",
    "evaluate": f"{RLPIPS} evaluate {SETS} --attack pgd --steps 4 --batch 8",
    "certify": f"{RLPIPS} certify {SETS} --samples 64 --selection-samples 16",
    "average": f"{RLPIPS} average {{data}}/0.png {{data}}/1.png {{data}}/2.png {DESCENT}",
    "geodesic": f"{RLPIPS} geodesic {{data}}/0.png {{data}}/1.png --frames 5 {DESCENT}",
}
"""Arguments of Python."""
RESULTS = ("*.safetensors", "*.jsonl", "*.png", "*.txt")
"""What of a run is compared; documents have the time in them."""


@dataclass(frozen=True, kw_only=True)
class Break:
    """Try to break everything, and count."""

    minutes: float = 60.0
    """How long to try."""
    seed: int = 0
    """Of all that is random."""
    folder: Path = Path("build/break")
    """Where attempts are recorded, and files are made."""
    weights_dir: Path | None = None
    """Folder to look for weights in first; a network without weights is left out, nothing is downloaded."""
    only: str = ""
    """Try only targets whose names contain this."""


class Broken(Exception):
    """Something is not as it must be."""


@dataclass(frozen=True)
class Target:
    """Something to break: `attempt` takes a folder of its own and a generator, and returns how often it tried."""

    group: str
    name: str
    attempt: Callable[[Path, np.random.Generator], int]


# Kills and stops


def draw_photographs(folder: Path) -> Path:
    """Pictures of smooth patches with grain; small parts of them, in two classes, in the folder `NAME-classes`."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [folder.with_name(f"{folder.name}-classes") / name for name in ("even", "odd")]
    for path in classes:
        path.mkdir(parents=True, exist_ok=True)
    for index in range(12):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        smooth = np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.png")
        Image.fromarray(noisy[:16, :16]).save(classes[index % 2] / f"{index}.png")
    rows = (f"{folder}/{x}.png,{folder}/{y}.png\n" for x in range(12) for y in range(12))
    (folder / "pairs.csv").write_text("".join(rows))
    return folder


class Command:
    """A command, and what it results in when nothing interrupts it."""

    def __init__(self, words: str, folder: Path, number: signal.Signals) -> None:
        self._words, self._folder, self._number = words, folder, number
        self._seconds = 0.0

    def attempt(self, out: Path, rng: np.random.Generator) -> int:
        """Starts the command until it ends; returns how often it was interrupted."""
        wanted = self._uninterrupted()
        count = 0
        while not self._start(out, rng, last=count == MOST_KILLS):
            count += 1
        found = results_in(out)
        if found.keys() != wanted.keys():
            raise Broken(f"{sorted(found)} instead of {sorted(wanted)}")
        if wrong := [name for name in found if found[name] != wanted[name]]:
            raise Broken(f"after {count} interruptions other contents: {', '.join(wrong)}")
        return count

    def _uninterrupted(self) -> dict[str, bytes]:
        """The results of one run; how long it took is kept beside them."""
        out = self._folder.parent / f"{self._folder.name.partition('-')[2]}-uninterrupted"
        kept = out.with_suffix(".seconds")
        if not kept.exists():
            shutil.rmtree(out, ignore_errors=True)
            begun = time.monotonic()
            self._start(out, None, last=True)
            kept.write_text(str(time.monotonic() - begun))
        self._seconds = float(kept.read_text())
        return results_in(out)

    def _start(self, out: Path, rng: np.random.Generator | None, *, last: bool) -> bool:
        """Whether the command came to its end."""
        out.mkdir(parents=True, exist_ok=True)
        data = draw_photographs(self._folder.parent / "photographs")
        words = [word.replace("\xa0", " ") for word in self._words.format(data=data, out=out).split(" ")]
        with open(out.with_suffix(".err"), "w+") as told:
            process = subprocess.Popen(
                [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
            )
            patience = None if rng is None else 60 + 20 * self._seconds if last else rng.uniform(0, self._seconds)
            try:
                process.wait(patience)
                interrupted = False
            except subprocess.TimeoutExpired:
                interrupted = True
                process.send_signal(self._number)
                if self._number == signal.SIGTERM and rng is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(0, 0.5))
                    process.send_signal(self._number)
                process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            told.seek(0)
            text = told.read()
        if "Traceback" in text or (not interrupted and process.returncode):
            raise Broken(f"status {process.returncode}: {text[-500:]}")
        if interrupted and last:
            raise Broken(f"no end within {patience} s")
        return not interrupted


def results_in(out: Path) -> dict[str, bytes]:
    """The compared files of a run, by their names."""
    paths = [path for pattern in RESULTS for path in out.rglob(pattern) if "checkpoints" not in path.parts]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(paths)}


# Files


@dataclass(frozen=True)
class Format:
    """How a whole file is made, and how one is read."""

    suffix: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def picture(kind: str, mode: str = "RGB") -> Callable[[Path], object]:
    """Makes a file of a picture."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    image = Image.fromarray(levels).convert(mode)
    return lambda path: image.save(path, kind)


TENSORS = {f"lin{tap}.model.1.weight": np.full((1, size, 1, 1), 0.5, np.float32) for tap, size in enumerate((8, 16))}
PAIRS = [("photographs/0.png", f"photographs/{number}.png") for number in range(6)]
RUN = {"metric": "lpips-tiny", "steps": 3}


def make_triplets(path: Path) -> None:
    """An archive of two triplets."""
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
    arrays: dict[str, Any] = {f"part/{name}": images[place] for place, name in enumerate(("ref", "p0", "p1"))}
    np.savez(path, **arrays, **{"part/judge": np.array([0.0, 1.0], np.float32)})  # pyright: ignore[reportArgumentType]


def make_scores(path: Path) -> None:
    """The results of pairs."""
    form = form_of(path)(rl.load("lpips-tiny"))
    results = (Result(*pair, distance=np.float32(0.1 * place)) for place, pair in enumerate(PAIRS))
    path.write_text(form.header + "".join(map(form.line, results)))


def read_scores(path: Path) -> None:
    """What a run that goes on reads of them."""
    form = form_of(path)(rl.load("lpips-tiny"))
    with Journal(path, form.header) as journal:
        list(recorded_results(journal, form, (Pair(*pair) for pair in PAIRS)))


def read_recording(path: Path) -> object:
    """A part of an evaluation."""
    recording = Recording(path.parent, (path.stem,), {}, {"d0": np.float32, "same": np.bool_})
    path.replace(recording.columns_path)
    try:
        return recording.collect(2, lambda count: iter(()), lambda count: None)
    finally:
        recording.columns_path.replace(path)


FORMATS = {
    "weights .pth": Format(".pth", lambda path: write_checkpoint(path, TENSORS), read_checkpoint),
    "weights .npy": Format(
        ".npy", lambda path: np.save(path, np.array(TENSORS, object), allow_pickle=True), read_checkpoint
    ),
    "weights .safetensors": Format(
        ".safetensors",
        lambda path: shutil.copy(store.SHIPPED / "lpips-tiny.safetensors", path),
        lambda path: rl.load(path),
    ),
    "checkpoint .safetensors": Format(".safetensors", lambda path: save_file(TENSORS, path), read_checkpoint),
    **{
        f"image {kind}": Format(f".{kind.lower()}", picture(kind, mode), rl.load_image)
        for kind, mode in {"PNG": "RGBA", "JPEG": "RGB", "WEBP": "RGB", "TIFF": "RGB", "GIF": "P", "BMP": "RGB"}.items()
        | {"PPM": "RGB", "TGA": "RGB", "AVIF": "RGB", "JPEG2000": "RGB"}.items()
    },
    "triplets .npz": Format(".npz", make_triplets, rl.evaluation.read),
    "snapshot .npz": Format(
        ".npz",
        lambda path: snapshots.write(path, RUN, {"images": np.zeros((2, 8, 8, 3), np.float32)}),
        lambda path: snapshots.read(path, RUN),
    ),
    "scores .jsonl": Format(".jsonl", make_scores, read_scores),
    "scores .csv": Format(".csv", make_scores, read_scores),
    "training log .jsonl": Format(
        ".jsonl",
        lambda path: path.write_text("".join(f'{{"step": {n}, "kind": "step", "loss": 0.5}}\n' for n in range(9))),
        logs.read,
    ),
    "evaluation .jsonl": Format(
        ".jsonl",
        lambda path: path.write_text('{"columns": ["d0", "same"]}\n[[0.5, 1.5], [true, false]]\n'),
        read_recording,
    ),
    "pairs .csv": Format(
        ".csv",
        lambda path: path.write_text("reference,image\n" + "".join(f'"{x}",{y}\n' for x, y in PAIRS)),
        lambda path: list(pairs_in_list(path)),
    ),
}


def hostile(content: bytes, rng: np.random.Generator, mark: Path) -> bytes:
    """A file with one or several kinds of damage, or hostile content."""
    found = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(found) + 1))
        end = min(len(found), at + int(2 ** rng.uniform(0, 10)))
        match rng.integers(0, 9):
            case 0 | 1:
                for place in rng.integers(0, max(1, len(found)), rng.integers(1, 9)) if found else ():
                    found[place] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del found[at:]
            case 3:
                found[at:end] = rng.bytes(end - at)
            case 4:
                found[at:at] = found[at:end] * int(rng.integers(1, 50))
            case 5:
                del found[at:end]
            case 6:
                found[at : at + 4] = struct.pack("<I" if rng.random() < 0.5 else ">I", int(rng.choice(NUMBERS)))
            case 7:
                found[at:at] = bytes(rng.choice(TEXTS)) * int(rng.choice([1, 1, 1, 100_000]))
            case 8:
                found[at:end] = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    return bytes(found)


NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
TEXTS = np.array([b"[", b'{"a":', b"null", b"NaN", b"1e999", b'"', b"\n", b",", b"\xff\xd8", b"\xff\xda"], object)


def read_files(form: Format, folder: Path, rng: np.random.Generator) -> int:
    """Reads damaged files."""
    folder.mkdir(parents=True)
    whole, path, mark = folder / f"whole{form.suffix}", folder / f"hostile{form.suffix}", folder / "mark"
    form.make(whole)
    content = whole.read_bytes()
    appended = form.read in (read_scores, read_recording)  # A whole part of a results file is gone on with.
    for _ in range(FILES):
        damaged = hostile(content, rng, mark)
        path.write_bytes(damaged)
        before, begun, refused = memory(), time.monotonic(), False
        try:
            form.read(path)
        except RlpipsError:
            refused = True
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}; {kept(path, damaged)}") from error
        if mark.exists():
            raise Broken(f"something was run; {kept(path, damaged)}")
        if time.monotonic() - begun > SLOW or memory() - before > LARGE:
            raise Broken(f"{time.monotonic() - begun:.0f} s, {memory() - before} bytes; {kept(path, damaged)}")
        if (refused or not appended) and path.read_bytes() != damaged:
            raise Broken(f"it was changed; {kept(path, damaged)}")
    return FILES


def memory() -> int:
    """The most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept(path: Path, content: bytes) -> str:
    """Keeps a file to look at; returns where."""
    place = path.parent.with_suffix(path.suffix)
    place.write_bytes(content)
    return f"the file is {place}"


# Pairs


def pairs_by(name: str, dtype: str, weights_dir: Path | None) -> Callable[[Path, np.random.Generator], int]:
    """Measures a batch of random pairs, some of them of identical images."""

    @jax.jit
    def measure(metric: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradient = jax.grad(lambda few: rl.distance(x[:8], few, metric).sum())
        return rl.distance(x, y, metric), gradient(y[:8])

    def attempt(folder: Path, rng: np.random.Generator) -> int:
        metric = rl.load(name, weights_dir=weights_dir, dtype=dtype)
        x, y = (np.stack([random_image(rng) for _ in range(BATCH)]) for _ in range(2))
        alike = rng.random(BATCH) < 0.2
        close = (rng.random(BATCH) < 0.3)[:, None, None, None]
        y = np.where(close, np.clip(x + rng.normal(0, 10.0 ** rng.uniform(-7, -1), x.shape), 0, 1), y)
        y = np.where(alike[:, None, None, None], x, y).astype(np.float32)
        values, gradient = map(np.asarray, measure(metric, jnp.asarray(x), jnp.asarray(y)))
        if not np.isfinite(values).all() or not np.isfinite(gradient).all():
            raise Broken(f"not finite: {values}, gradient {np.isfinite(gradient).all(axis=(1, 2, 3))}")
        if values[alike].any():
            raise Broken(f"identical images have the distances {values[alike]}")
        return BATCH

    return attempt


def random_image(rng: np.random.Generator) -> np.ndarray:
    """Flat, black or white, smooth, noise, of few values, or with one other pixel."""
    shape = (SIDE, SIDE, 3)
    image = np.full(shape, rng.choice([0, 1, rng.random()]), np.float32)
    match rng.integers(0, 5):
        case 0:
            image[tuple(rng.integers(0, SIDE, 2))] = rng.random(3)
        case 1:
            image = rng.random(shape, np.float32)
        case 2:
            image = rng.integers(0, 2, shape).astype(np.float32)
        case 3:
            image = np.linspace(0, rng.random(), SIDE * SIDE * 3, dtype=np.float32).reshape(shape)
    return image


# The loop


def targets(config: Break) -> Iterator[Target]:
    """All that is to be broken."""
    for group, number in (("kills", signal.SIGKILL), ("stops", signal.SIGTERM)):
        for name, words in COMMANDS.items():
            command = Command(words, config.folder.absolute() / f"{group}-{name}", number)
            yield Target(group, f"{group}: {name}", command.attempt)
    for name, form in FORMATS.items():
        yield Target("files", f"files: {name}", lambda folder, rng, form=form: read_files(form, folder, rng))
    for name, recipe in recipes().items():
        here = [store.locate(part, config.weights_dir) for part in recipe.parts]
        if None in here:
            continue
        if is_random(rl.load(name, weights_dir=config.weights_dir)):
            continue
        for dtype in ("float32", "bfloat16"):
            yield Target("pairs", f"pairs: {name} {dtype}", pairs_by(name, dtype, config.weights_dir))


def main(config: Break) -> int:
    """Tries until the time is over, and prints the table."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.folder.absolute() / "compiled"))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    known = {target.name: target for target in targets(config) if config.only in target.name}
    attempts: list[dict[str, Any]] = []
    ends = time.monotonic() + 60 * config.minutes
    header = json.dumps({"seed": config.seed, "library": rl.__version__}) + "\n"
    with Journal(config.folder / "attempts.jsonl", header) as journal, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempts += map(json.loads, journal.recorded())
        while time.monotonic() < ends:
            target = known[next_name(known, attempts)]
            number = sum(one["target"] == target.name for one in attempts)
            rng = np.random.default_rng([config.seed, *target.name.encode(), number])
            folder = config.folder.absolute() / f"{target.name.replace(': ', '-').replace(' ', '-')}" / str(number)
            shutil.rmtree(folder, ignore_errors=True)
            begun, count, broken = time.monotonic(), 0, ""
            try:
                count = target.attempt(folder, rng)
                shutil.rmtree(folder, ignore_errors=True)
            except Broken as error:
                broken = str(error)
                print(f"{target.name}, attempt {number}: {broken}", file=sys.stderr)
            attempts.append(
                {"target": target.name, "count": count, "seconds": time.monotonic() - begun, "broken": broken}
            )
            journal.append(json.dumps(attempts[-1]) + "\n")
    print(table(attempts))
    return 1 if any(one["broken"] for one in attempts) else 0


def next_name(known: dict[str, Target], attempts: list[dict[str, Any]]) -> str:
    """The target that has had the least time, of the group that is furthest behind its share."""
    spent = dict.fromkeys(known, 0.0)
    for one in attempts:
        if one["target"] in spent:
            spent[one["target"]] += one["seconds"]
    groups = dict.fromkeys((target.group for target in known.values()), 0.0)
    for name, seconds in spent.items():
        groups[known[name].group] += seconds
    group = min(groups, key=lambda name: groups[name] / SHARES[name])
    return min((name for name in spent if known[name].group == group), key=lambda name: spent[name])


def table(attempts: list[dict[str, Any]]) -> str:
    """A row for each target, as Markdown."""
    rows = []
    for name in dict.fromkeys(one["target"] for one in attempts):
        own = [one for one in attempts if one["target"] == name]
        count, broken = sum(one["count"] for one in own), sum(bool(one["broken"]) for one in own)
        rows.append((name, f"{count:,}", str(broken), f"{sum(one['seconds'] for one in own):.0f} s"))
    for group in SHARES:
        own = [one for one in attempts if one["target"].startswith(f"{group}:")]
        broken = sum(bool(one["broken"]) for one in own)
        rows.append((f"all {group}", f"{sum(one['count'] for one in own):,}", str(broken), ""))
    return str(Table("Attempts to break it", ("target", "tried", "broken", "time"), rows))


if __name__ == "__main__":
    logging.disable()  # Pillow's own remarks.
    sys.exit(main(tyro.cli(Break, prog="python -m benchmarks.break")))

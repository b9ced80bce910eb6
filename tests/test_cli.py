"""The command line as its users meet it: what it prints where, with which status, and what it says of mistakes."""

import contextlib
import csv
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from convert.program import main as convert
from rlpips_jax import cli
from rlpips_jax.backbones import SQUEEZE, TINY, Sequential
from rlpips_jax.cli import doctor
from rlpips_jax.cli import weights as weights_command
from rlpips_jax.cli.weights import ACTIONS
from rlpips_jax.distances import lpips
from rlpips_jax.errors import WeightsNotFound
from rlpips_jax.files.official import Official
from rlpips_jax.loading import parts, recipes
from rlpips_jax.weights import native, store
from rlpips_jax.weights.parameters import Parameters, digest, to_pytorch, unflatten, with_heads
from rlpips_jax.weights.pytorch import write_checkpoint

ROOT = Path(__file__).parent.parent


class Run(NamedTuple):
    """What a run of `rlpips` came to."""

    status: int
    out: str
    err: str


Rlpips = Callable[..., Run]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has caches of its own and no `lpips` package; gives the folder of this library's."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lpips" else find_spec(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return store.cache_folder()


@pytest.fixture
def rlpips(command: Callable[..., tuple[int, str, str]]) -> Rlpips:
    """Runs `rlpips` with these arguments, in this process."""
    return lambda *arguments: Run(*command(*arguments))


def draw(architecture: Sequential) -> Parameters:
    """Parameters from a fixed seed."""
    rng = np.random.default_rng(0)
    tensors = {f"heads.{tap}": rng.uniform(size=size) for tap, size in enumerate(architecture.channels)}
    for path, shape in architecture.convolutions():
        name = "backbone." + ".".join(path)
        tensors[f"{name}.kernel"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
        tensors[f"{name}.bias"] = rng.normal(0, 0.01, shape[-1:])
    return unflatten(tensors, with_heads(architecture), "drawn")


SQUEEZENET = draw(SQUEEZE)
BACKBONE = {"backbone": SQUEEZENET["backbone"]}
HEADS = {"heads": SQUEEZENET["heads"]}


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn weights for "lpips-tiny"."""
    folder = tmp_path_factory.mktemp("weights")
    native.write(folder / "lpips-tiny.safetensors", draw(TINY), with_heads(TINY), metric="lpips-tiny")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> rl.Lpips:
    return rl.load("lpips-tiny", weights_dir=tiny_dir)


@pytest.fixture(scope="session")
def options(tiny_dir: Path) -> tuple[object, ...]:
    return ("--metric", "lpips-tiny", "--weights-dir", tiny_dir)


def save(path: Path, seed: int = 0, size: tuple[int, int] = (40, 48)) -> Path:
    """A picture of smooth patches."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A reference and two others."""
    return [save(tmp_path / f"{name}.png", seed) for seed, name in enumerate(("ref", "one", "two"))]


def expected(reference: Path, images: list[Path], metric: rl.Lpips) -> list[float]:
    """The distances by the library itself, a pair at a time."""
    return [float(rl.distance(rl.load_image(reference), rl.load_image(image), metric)) for image in images]


def one_line(run: Run) -> str:
    """The message of a run that failed as it should: status 2, one line, no result."""
    assert run.status == 2, run
    assert run.out == ""
    assert run.err.startswith("rlpips: ")
    assert run.err.count("\n") == 1, run.err
    return run.err


# The whole


@pytest.mark.parametrize("arguments", [*([name] for name in cli.COMMANDS), *(["weights", name] for name in ACTIONS)])
def test_everything_has_help_with_examples(rlpips: Rlpips, arguments: list[str]) -> None:
    run = rlpips(*arguments, "--help")
    assert run.status == 0
    assert f"usage: rlpips {' '.join(arguments)}" in run.out
    assert f"Examples:\n    rlpips {' '.join(arguments)}" in run.out
    text = " ".join(run.out.replace("\u2502", " ").split())
    assert [
        noise for noise in ("(default: None)", "(default: )", "(default: False)", "{None}", "pyright") if noise in text
    ] == []


def test_a_misspelt_subcommand_and_a_file_like_an_option(rlpips: Rlpips, tmp_path: Path, monkeypatch) -> None:
    assert "did you mean distance?" in one_line(rlpips("distnace", "a.png", "b.png"))
    monkeypatch.chdir(tmp_path)
    Path("-a.png").touch()
    assert "write ./-a.png" in one_line(rlpips("distance", "-a.png", "b.png"))


def test_every_subcommand_is_in_the_help(rlpips: Rlpips) -> None:
    run = rlpips("--help")
    assert run.status == 0
    assert "usage: rlpips" in run.out
    assert all(re.search(rf"\b{name}\b", run.out) for name in cli.COMMANDS)


def test_every_subcommand_is_in_the_docs() -> None:
    docs = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert [name for name in cli.COMMANDS if f"rlpips {name}" not in docs] == []


def test_a_line_in_the_table_is_a_subcommand(rlpips: Rlpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greeting_command.py").write_text(
        "from dataclasses import dataclass\n\n"
        "@dataclass(frozen=True)\n"
        "class Greet:\n"
        '    """Greet somebody."""\n\n'
        "    name: str\n\n"
        "    def run(self) -> int:\n"
        "        print('hello', self.name)\n"
        "        return 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "greet", "greeting_command:Greet")
    assert rlpips("greet", "--name", "you") == (0, "hello you\n", "")
    assert "Greet somebody." in rlpips("--help").out


# Compiled programs


CACHED = """
import sys
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
from rlpips_jax import cli
cli.MIN_COMPILE_SECONDS = 0  # A fast machine compiles this program in less than what is worth keeping.
sys.argv[0] = "rlpips"
try:
    cli.main()
finally:
    print(len(hits), jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_the_second_run_reads_what_the_first_compiled(pictures: list[Path], options: tuple, caches: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}

    def run() -> list[str]:
        command = [sys.executable, "-c", CACHED, "distance", *map(str, (*pictures, *options))]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    *first, cold = run()
    kept = set((caches / "compiled").iterdir())
    *second, warm = run()
    assert first == second
    assert cold == f"0 {caches / 'compiled'}"
    assert int(warm.split()[0]) > 0
    # A program that was read is not kept again.
    assert kept <= set((caches / "compiled").iterdir())
    assert any("distance" in path.name for path in kept)


CACHE_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def kept_in() -> Iterator[Callable[[str | None], str | None]]:
    """Where compiled programs are kept by a JAX that was told of this folder before; restores its options."""
    before = {name: getattr(jax.config, name) for name in CACHE_OPTIONS}

    def place(told: str | None) -> str | None:
        jax.config.update(CACHE_OPTIONS[0], told)
        cli.keep_compiled_programs()
        return getattr(jax.config, CACHE_OPTIONS[0])

    yield place
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("asked", "told", "expected"),
    [
        (None, None, "compiled"),
        ("0", None, None),
        ("own", None, "own"),
        (None, "theirs", "theirs"),
        ("own", "theirs", "theirs"),
    ],
)
def test_where_compiled_programs_are_kept(
    caches: Path, monkeypatch: pytest.MonkeyPatch, kept_in, asked: str | None, told: str | None, expected: str | None
) -> None:
    def place(name: str | None) -> str | None:
        return name if name in (None, "0") else str(caches / name)

    monkeypatch.delenv(cli.COMPILATION_CACHE, raising=False)
    if asked is not None:
        monkeypatch.setenv(cli.COMPILATION_CACHE, place(asked) or "")
    assert kept_in(place(told)) == place(expected)


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_in
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv(cli.COMPILATION_CACHE, str(tmp_path / "file" / "inside"))
    assert kept_in(None) is None


def test_version(rlpips: Rlpips) -> None:
    assert rlpips("--version") == (0, f"rlpips-jax {rl.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["bogus"], [], ["distance", "--bogus"], ["map", "one.png"]])
def test_wrong_arguments_are_told_without_a_traceback(rlpips: Rlpips, arguments: list[str]) -> None:
    run = rlpips(*arguments)
    assert run.status == 2
    assert "--help" in run.out + run.err
    assert "Traceback" not in run.out + run.err


def test_interruption_is_quiet(rlpips: Rlpips, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(weights_command.List, "run", interrupt)
    assert rlpips("weights", "list") == (130, "", "")


def test_a_full_device_is_told_in_one_line(rlpips: Rlpips, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(self: object) -> int:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")

    monkeypatch.setattr(weights_command.List, "run", exhaust)
    assert "smaller images" in one_line(rlpips("weights", "list"))


def test_defects_of_the_library_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise jax.errors.JaxRuntimeError("INTERNAL: something")

    with pytest.raises(jax.errors.JaxRuntimeError):
        cli.guarded(fail)


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `rlpips` as a process."""
    start = "import sys; from rlpips_jax.cli import main; sys.argv[0] = 'rlpips'; main()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        check=False,
        **options,
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        run = program("weights", "list", stdout=nobody)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.slow
def test_no_device_is_told_in_one_line(pictures: list[Path], options: tuple) -> None:
    nowhere = os.environ | {"JAX_PLATFORMS": "nowhere"}
    run = program("distance", *pictures, *options, stdout=subprocess.PIPE, env=nowhere)
    message = one_line(Run(run.returncode, run.stdout, run.stderr))
    assert "no device" in message
    assert "JAX_PLATFORMS=nowhere" in message
    run = program("doctor", stdout=subprocess.PIPE, env=nowhere)
    assert (run.returncode, run.stderr) == (1, "")
    assert "unset JAX_PLATFORMS" in run.stdout


# rlpips distance REF IMAGE...


def test_distances_as_a_table(rlpips: Rlpips, pictures: list[Path], tiny: rl.Lpips, options: tuple) -> None:
    reference, *images = pictures
    run = rlpips("distance", reference, *images, reference, *options)
    assert (run.status, run.err) == (0, "")
    comments = [line for line in run.out.splitlines() if line.startswith("#")]
    assert comments == [f"# {tiny.signature}", f"# reference: {reference}"]
    header, *rows = (line.split() for line in run.out.splitlines()[2:])
    assert header == ["image", "distance"]
    assert [path for path, _ in rows] == [str(path) for path in (*images, reference)]
    values = [float(value) for _, value in rows]
    np.testing.assert_allclose(values[:2], expected(reference, images, tiny), atol=1e-6)
    assert rows[-1][1] == "0"


def test_json_carries_every_digit(rlpips: Rlpips, pictures: list[Path], tiny: rl.Lpips, options: tuple) -> None:
    reference, *images = pictures
    run = rlpips("distance", *pictures, reference, *options, "--json")
    assert (run.status, run.err) == (0, "")
    document = json.loads(run.out, parse_float=str)
    assert document["signature"] == tiny.signature
    assert document["metric"] == "lpips-tiny"
    assert document["reference"] == str(reference)
    assert document["errors"] == []
    assert [result["image"] for result in document["results"]] == [str(path) for path in (*images, reference)]
    digits = [result["distance"] for result in document["results"]]
    assert all(re.fullmatch(r"\d+\.\d+", text) for text in digits)
    # A batch may round otherwise than a pair; the digits are those of the batch.
    batch = rl.distance(
        np.stack([rl.load_image(reference)] * 3),
        np.stack([rl.load_image(path) for path in (*images, reference)]),
        tiny,
    )
    assert [np.float32(text) for text in digits] == list(np.asarray(batch))


def test_csv_carries_every_digit_and_the_signature(
    rlpips: Rlpips, pictures: list[Path], tiny: rl.Lpips, options: tuple
) -> None:
    run = rlpips("distance", *pictures, *options, "--csv")
    assert (run.status, run.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(run.out)))
    precise = json.loads(rlpips("distance", *pictures, *options, "--json").out, parse_float=str)["results"]
    assert [(row["image"], row["distance"]) for row in rows] == [(row["image"], row["distance"]) for row in precise]
    assert {row["signature"] for row in rows} == {tiny.signature}
    assert {row["reference"] for row in rows} == {str(pictures[0])}


def test_a_metric_of_ones_own_by_its_path(rlpips: Rlpips, pictures: list[Path], tiny_dir: Path, tiny: rl.Lpips) -> None:
    run = rlpips("distance", *pictures, "--metric", tiny_dir / "lpips-tiny.safetensors", "--json")
    assert run.status == 0
    assert json.loads(run.out)["signature"] == tiny.signature


def test_one_bad_file_among_several(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, options: tuple) -> None:
    reference, one, two = pictures
    other_size = save(tmp_path / "wide.png", size=(40, 50))
    run = rlpips("distance", reference, one, other_size, two, tmp_path / "absent.png", *options, "--json")
    assert run.status == 1
    document = json.loads(run.out)
    assert [result["image"] for result in document["results"]] == [str(one), str(two)]
    assert [error["image"] for error in document["errors"]] == [str(other_size), str(tmp_path / "absent.png")]
    size, absent = run.err.splitlines()
    assert "differ in size" in size
    assert str(other_size) in size
    assert str(reference) in size
    assert absent == f"rlpips: {tmp_path / 'absent.png'} does not exist"


def test_sizes_that_differ(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, options: tuple) -> None:
    message = one_line(rlpips("distance", pictures[0], save(tmp_path / "w.png", size=(40, 50)), *options))
    assert "(40, 48, 3)" in message
    assert "(40, 50, 3)" in message


def test_a_file_may_be_named_like_an_option(rlpips: Rlpips, tmp_path: Path, monkeypatch, options: tuple) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "x.png").rename(tmp_path / "user")
    save(tmp_path / "x.png", 1).rename(tmp_path / "value_range")
    assert rlpips("distance", "user", "value_range", *options).status == 0


def test_images_too_small(rlpips: Rlpips, tmp_path: Path, tiny: rl.Lpips, options: tuple) -> None:
    side = tiny.minimum_size
    reference, image = (save(tmp_path / f"{seed}.png", seed, (side - 1, 40)) for seed in (0, 1))
    message = one_line(rlpips("distance", reference, image, *options))
    assert f"{side}x{side}" in message


def test_no_such_reference(rlpips: Rlpips, pictures: list[Path], options: tuple) -> None:
    # Told before weights are looked for, and once, however many images there are.
    assert one_line(rlpips("distance", "absent.png", *pictures, "--metric", "bogus")).endswith("does not exist\n")


def test_no_image(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, options: tuple) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert "is not an image" in one_line(rlpips("distance", pictures[0], text, *options))


def test_unknown_metric(rlpips: Rlpips, pictures: list[Path]) -> None:
    assert "lpips-alex" in one_line(rlpips("distance", *pictures, "--metric", "lpips-alx"))


def test_damaged_weights(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, tiny_dir: Path) -> None:
    copy = tampered(tiny_dir / "lpips-tiny.safetensors", tmp_path / "w")
    message = one_line(rlpips("distance", *pictures, "--metric", "lpips-tiny", "--weights-dir", copy.parent))
    assert "damaged" in message


def test_no_such_weights_dir(rlpips: Rlpips, pictures: list[Path]) -> None:
    assert "is not a folder" in one_line(rlpips("distance", *pictures, "--weights-dir", "absent"))


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "--dirs"),
        (["a.png"], "at least one image"),
        (["a.png", "--dirs", "a", "b"], "no further image"),
        (["a.png", "b.png", "--json", "--csv"], "choose one"),
    ],
)
def test_arguments_that_make_no_sense(rlpips: Rlpips, arguments: list[str], advice: str) -> None:
    assert advice in one_line(rlpips("distance", *arguments))


def test_a_url_and_a_folder_are_no_images(rlpips: Rlpips, pictures: list[Path], tmp_path: Path) -> None:
    assert "URLs are not read" in one_line(rlpips("distance", "https://example.org/a.png", pictures[0]))
    assert "--dirs" in one_line(rlpips("distance", tmp_path, pictures[0]))


def test_remarks_on_a_file_are_single_lines(rlpips: Rlpips, pictures: list[Path], options: tuple) -> None:
    glass = Image.open(pictures[1]).convert("RGBA")
    glass.putalpha(100)
    glass.save(pictures[1])
    run = rlpips("distance", *pictures, *options)
    assert run.status == 0
    assert run.err.startswith(f"rlpips: warning: {pictures[1]}: ")
    assert run.err.count("\n") == 1


# rlpips distance --dirs


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with five common images of two sizes, one in a folder of its own."""
    references, images = tmp_path / "references", tmp_path / "images"
    names = ("a.png", "b.png", "c.png", "inner/a.png", "z.png")
    for number, name in enumerate(names):
        size = (40, 48) if number % 2 else (36, 44)
        save(references / name, 2 * number, size)
        save(images / name, 2 * number + 1, size)
    return references, images


def test_folders_are_paired_by_path(rlpips: Rlpips, folders: tuple[Path, Path], tiny, options: tuple) -> None:
    run = rlpips("distance", "--dirs", *folders, *options, "--json")
    assert (run.status, run.err) == (0, "")
    document = json.loads(run.out)
    names = ["a.png", "b.png", "c.png", "inner/a.png", "z.png"]
    assert [result["image"] for result in document["results"]] == names
    assert (document["reference"], document["images"]) == tuple(map(str, folders))
    alone = [expected(folders[0] / name, [folders[1] / name], tiny)[0] for name in names]
    np.testing.assert_allclose([result["distance"] for result in document["results"]], alone, rtol=1e-5)


def test_the_table_of_folders_ends_with_the_mean(rlpips: Rlpips, folders: tuple[Path, Path], options: tuple) -> None:
    lines = rlpips("distance", "--dirs", *folders, *options).out.splitlines()
    values = [float(line.split()[-1]) for line in lines[3:]]
    assert lines[-1].startswith("mean of 5")
    assert values[-1] == pytest.approx(np.mean(values[:-1]), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("most", ["LARGEST_BATCH", "BATCH_PIXELS", "PENDING_BYTES"])
def test_batches_change_no_result(
    rlpips: Rlpips, folders: tuple[Path, Path], options: tuple, monkeypatch, most: str
) -> None:
    def distances() -> list[float]:
        run = rlpips("distance", "--dirs", *folders, *options, "--json")
        return [result["distance"] for result in json.loads(run.out)["results"]]

    together = distances()
    monkeypatch.setattr(f"rlpips_jax.scoring.batches.{most}", 1)
    np.testing.assert_allclose(distances(), together, rtol=1e-5)


def test_one_bad_file_spoils_no_other(rlpips: Rlpips, folders: tuple[Path, Path], options: tuple) -> None:
    (folders[1] / "b.png").write_bytes((folders[1] / "b.png").read_bytes()[:60])
    run = rlpips("distance", "--dirs", *folders, *options, "--csv")
    assert run.status == 1
    rows = list(csv.DictReader(io.StringIO(run.out)))
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.png", "inner/a.png", "z.png"]
    assert [row["image"] for row in rows if not row["distance"]] == ["b.png"]
    assert [row["image"] for row in rows if str(folders[1] / "b.png") in row["error"]] == ["b.png"]
    assert run.err.count("\n") == 1
    assert str(folders[1] / "b.png") in run.err


def test_files_without_a_partner_are_told(rlpips: Rlpips, folders: tuple[Path, Path], options: tuple) -> None:
    for number in range(5):
        save(folders[0] / f"lone{number}.png")
    save(folders[1] / "other.jpg")
    run = rlpips("distance", "--dirs", *folders, *options)
    assert run.status == 1
    told = [
        f"5 images are only in {folders[0]}: lone0.png, lone1.png, lone2.png and 2 more",
        f"1 image is only in {folders[1]}: other.jpg",
    ]
    assert run.err.splitlines() == [f"rlpips: {line}" for line in told]
    assert "mean of 5 of 11 pairs" in run.out.splitlines()[-1]
    allowed = rlpips("distance", "--dirs", *folders, *options, "--allow-missing")
    assert allowed.status == 0
    assert allowed.err.splitlines() == [f"rlpips: warning: {line}" for line in told]
    assert allowed.out.splitlines()[-1].startswith("mean of 5  ")


def test_folders_without_a_common_file(rlpips: Rlpips, tmp_path: Path, options: tuple) -> None:
    save(tmp_path / "a" / "x.png")
    save(tmp_path / "b" / "y.png")
    run = rlpips("distance", "--dirs", tmp_path / "a", tmp_path / "b", *options)
    assert run.status == 2
    assert "no image of the same name" in run.err.splitlines()[-1]


def test_no_such_folder(rlpips: Rlpips, folders: tuple[Path, Path], options: tuple) -> None:
    assert "give a folder of images" in one_line(rlpips("distance", "--dirs", folders[0], "absent", *options))
    assert "absent does not exist" in one_line(rlpips("distance", folders[0], "absent", *options))


# rlpips map


def test_the_map_is_hottest_where_the_images_differ(rlpips: Rlpips, tmp_path: Path, options: tuple) -> None:
    reference = save(tmp_path / "ref.png", size=(256, 256))
    pixels = np.array(Image.open(reference))
    pixels[:48, -48:] = np.random.default_rng(0).integers(0, 256, (48, 48, 3))
    image = tmp_path / "image.png"
    Image.fromarray(pixels).save(image)
    out = tmp_path / "new" / "map.png"
    run = rlpips("map", reference, image, "--out", out, *options)
    assert (run.status, run.err) == (0, "")
    assert str(out) in run.out
    sheet = rl.load_image(out)
    # The three panels are 256 pixels wide, 12 apart; the last is the map.
    panel = sheet[:290, 16 + 2 * (256 + 12) :][:, :256].astype(int)
    top = next(row for row in range(100) if (sheet[row : row + 256, 16 : 16 + 256] == rl.load_image(reference)).all())
    bright = np.argwhere(panel[top : top + 256].sum(axis=-1) > 500)
    assert len(bright) > 50
    assert (bright[:, 0] < 64).all()
    assert (bright[:, 1] > 256 - 64).all()


def test_a_map_needs_one_size(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, options: tuple) -> None:
    other = save(tmp_path / "wide.png", size=(40, 50))
    assert "differ in size" in one_line(rlpips("map", pictures[0], other, "--out", tmp_path / "m.png", *options))
    assert not (tmp_path / "m.png").exists()


def test_a_map_needs_a_format(rlpips: Rlpips, pictures: list[Path], tmp_path: Path, options: tuple) -> None:
    assert ".png" in one_line(rlpips("map", *pictures[:2], "--out", tmp_path / "map.pdf", *options))


def test_a_map_needs_a_scale_above_zero(rlpips: Rlpips, pictures: list[Path], options: tuple) -> None:
    assert "above 0" in one_line(rlpips("map", *pictures[:2], "--maximum", 0, *options))


# rlpips weights


def tampered(path: Path, folder: Path) -> Path:
    """A copy of a file with one bit of its last tensor flipped."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    copy.write_bytes(content)
    return copy


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PyTorch files: a SqueezeNet `net.pth`, heads for it `heads.pth`, and both `lpips.pth`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = to_pytorch(SQUEEZENET, SQUEEZE)
    network = {re.sub(r"net\.slice\d+", "features", name): tensor for name, tensor in whole.items() if "net." in name}
    heads = {name: tensor for name, tensor in whole.items() if name.startswith("lin")}
    for name, tensors in (("net", network), ("heads", heads), ("lpips", whole)):
        write_checkpoint(folder / f"{name}.pth", tensors)
    return folder


def publish(monkeypatch: pytest.MonkeyPatch, name: str, file: Path, parameters: Parameters) -> Official:
    """Makes a file the official one of a part of LPIPS, with these parameters."""
    part = parts()[name]
    assert part.official is not None
    official = replace(part.official, sha256=store.sha256_of(file), size=file.stat().st_size)
    published = replace(part, official=official, parameters_sha256=digest(parameters))
    for recipe in list(lpips.RECIPES.values()):
        files = tuple(published if other.name == name else other for other in recipe.parts)
        monkeypatch.setitem(lpips.RECIPES, recipe.name, replace(recipe, parts=files))
    return official


def rows_of(out: str) -> dict[str, str]:
    """The rows of the first table, by their first word."""
    table = out.split("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line for line in table}


def test_the_list_names_every_metric_and_file(rlpips: Rlpips) -> None:
    run = rlpips("weights", "list")
    assert (run.status, run.err) == (0, "")
    rows = rows_of(run.out)
    assert rows.keys() == recipes().keys()
    assert "download 244.4 MB" in rows["lpips-alex"]
    assert "ready" in rows["rlpips-tiny"]
    for part in parts().values():
        if part.official:
            assert part.official.licence in run.out
            assert part.official.citation in run.out


def test_the_list_tells_where_weights_are(
    rlpips: Rlpips, caches: Path, tiny_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    native.write(caches / "squeeze.safetensors", BACKBONE, with_heads(SQUEEZE))
    # These heads bring their backbone along.
    native.write(tmp_path / "own" / "rlpips-squeeze.safetensors", SQUEEZENET, with_heads(SQUEEZE))
    monkeypatch.setenv("RLPIPS_WEIGHTS_DIR", str(tmp_path / "own"))
    rows = rows_of(rlpips("weights", "list", "--weights-dir", tiny_dir).out)
    assert "squeeze: cache" in rows["baseline-squeeze"]
    assert "ready" in rows["baseline-squeeze"]
    assert "download 11 kB" in rows["lpips-squeeze"]
    assert "rlpips-squeeze: $RLPIPS_WEIGHTS_DIR (claims nothing of its origin)" in rows["rlpips-squeeze"]
    assert "lpips-tiny: --weights-dir" in rows["lpips-tiny"]
    assert rows["rlpips-tiny"].endswith("rlpips-tiny: shipped")


def test_the_list_tells_of_damage(rlpips: Rlpips, tiny_dir: Path, tmp_path: Path) -> None:
    tampered(tiny_dir / "lpips-tiny.safetensors", tmp_path / "w")
    run = rlpips("weights", "list", "--weights-dir", tmp_path / "w")
    assert run.status == 0
    assert "damaged" in rows_of(run.out)["lpips-tiny"]


def test_the_list_needs_its_folder(rlpips: Rlpips) -> None:
    assert "is not a folder" in one_line(rlpips("weights", "list", "--weights-dir", "absent"))


def test_import_knows_a_network_by_its_tensors(rlpips: Rlpips, checkpoints: Path, caches: Path) -> None:
    run = rlpips("weights", "import", checkpoints / "net.pth")
    assert (run.status, run.err) == (0, "")
    assert "not the official file" in run.out
    kept, metadata = native.read(caches / "squeeze.safetensors", with_heads(SQUEEZE))
    assert digest(kept) == digest(BACKBONE)
    assert metadata["source"] == "imported from net.pth"
    assert rl.load("baseline-squeeze").backbone == SQUEEZE


@pytest.mark.parametrize("name", ["heads.pth", "lpips.pth"])
def test_import_does_not_guess(rlpips: Rlpips, checkpoints: Path, caches: Path, name: str) -> None:
    message = one_line(rlpips("weights", "import", checkpoints / name))
    assert "rlpips-squeeze" in message
    assert "--as" in message
    assert not caches.exists()


def test_import_as_told(rlpips: Rlpips, checkpoints: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    arguments = (checkpoints / "lpips.pth", "--as", "rlpips-squeeze", "--weights-dir", folder)
    assert rlpips("weights", "import", *arguments).status == 0
    by_name = rl.load("rlpips-squeeze", weights_dir=folder)
    by_path = rl.load(folder / "rlpips-squeeze.safetensors")
    assert digest(by_name.parameters) == digest(by_path.parameters) == digest(SQUEEZENET)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("heads.pth", "lpips-alex", "left over"),
        ("heads.pth", "squeeze", "no tensor of the backbone"),
        ("net.pth", "lpips-squeeze", "backbone alone"),
        ("net.pth", "bogus", "no such part"),
    ],
)
def test_import_as_what_it_is_not(
    rlpips: Rlpips, checkpoints: Path, caches: Path, name: str, part: str, message: str
) -> None:
    assert message in one_line(rlpips("weights", "import", checkpoints / name, "--as", part))
    assert not caches.exists()


def test_import_recognises_official_files(
    rlpips: Rlpips, checkpoints: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoints / "heads.pth"
    official = publish(monkeypatch, "lpips-squeeze", file, HEADS)
    run = rlpips("weights", "import", file)
    assert run.status == 0
    assert "(the official file)" in run.out
    metadata = native.read_metadata(caches / "lpips-squeeze.safetensors")
    assert metadata["source"] == official.url
    assert metadata["source_sha256"] == official.sha256
    assert "whole, official" in rlpips("weights", "verify").out


@pytest.mark.slow
def test_import_replaces_nothing_unasked(rlpips: Rlpips, checkpoints: Path, caches: Path) -> None:
    arguments = ("weights", "import", checkpoints / "net.pth")
    assert "kept as" in rlpips(*arguments).out
    assert "already" in rlpips(*arguments).out
    kept = caches / "squeeze.safetensors"
    tampered(kept, caches)
    assert "--replace" in one_line(rlpips(*arguments))
    assert rlpips(*arguments, "--replace").status == 0
    native.read(kept, with_heads(SQUEEZE))


def test_import_takes_weight_files_of_this_library(rlpips: Rlpips, tiny_dir: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "mine.safetensors"
    renamed.write_bytes((tiny_dir / "lpips-tiny.safetensors").read_bytes())
    run = rlpips("weights", "import", renamed, "--weights-dir", tmp_path / "own")
    assert run.status == 0
    by_name, by_path = rl.load("lpips-tiny", weights_dir=tmp_path / "own"), rl.load(renamed)
    assert digest(by_name.parameters) == digest(by_path.parameters)
    # A name of this library stands for the published parameters.
    assert " unofficial " in by_name.signature
    assert " unofficial " not in by_path.signature + rl.load("lpips-tiny").signature


def test_import_says_what_is_no_checkpoint(rlpips: Rlpips, pictures: list[Path], tmp_path: Path) -> None:
    one_line(rlpips("weights", "import", pictures[0]))
    assert "does not exist" in one_line(rlpips("weights", "import", tmp_path / "absent.pth"))
    assert "name the files" in one_line(rlpips("weights", "import"))
    assert "one at a time" in one_line(rlpips("weights", "import", "a", "b", "--as", "alex"))


def test_verify_finds_a_tampered_file(rlpips: Rlpips, tiny_dir: Path, tmp_path: Path, checkpoints: Path) -> None:
    assert rlpips("weights", "import", checkpoints / "net.pth").status == 0
    healthy = rlpips("weights", "verify", "--weights-dir", tiny_dir)
    assert (healthy.status, healthy.err) == (0, "")
    assert {"squeeze", "lpips-tiny"} <= rows_of(healthy.out).keys()
    copy = tampered(tiny_dir / "lpips-tiny.safetensors", tmp_path / "w")
    run = rlpips("weights", "verify", "--weights-dir", copy.parent)
    assert run.status == 1
    assert "whole" in rows_of(run.out)["squeeze"]
    assert run.err == f"rlpips: {copy} is damaged: its content does not match its sha256; delete it and get it again\n"


def test_verify_reads_behind_the_first_file(rlpips: Rlpips, tiny_dir: Path, caches: Path) -> None:
    tampered(tiny_dir / "lpips-tiny.safetensors", caches)
    assert rlpips("weights", "verify", "--weights-dir", tiny_dir).status == 1


def test_verify_believes_no_file_about_its_origin(rlpips: Rlpips, caches: Path) -> None:
    path = caches / "squeeze.safetensors"
    official = parts()["squeeze"].official
    assert official is not None
    native.write(path, BACKBONE, with_heads(SQUEEZE), source="its authors")
    assert "whole, claims 'its authors'" in rows_of(rlpips("weights", "verify").out)["squeeze"]
    assert "squeeze: cache (claims 'its authors')" in rows_of(rlpips("weights", "list").out)["baseline-squeeze"]
    for provenance in (store.provenance(official), store.provenance(replace(official, sha256="0" * 64))):
        native.write(path, BACKBONE, with_heads(SQUEEZE), **provenance)
        run = rlpips("weights", "verify")
        assert run.status == 1
        assert official.url in run.err
    card = json.dumps({"steps": 9, "data": [{"triplets": "4 of learn.npz"}]})
    native.write(path, BACKBONE, with_heads(SQUEEZE), card=card)
    assert "claims '9 steps of training on 4 of learn.npz'" in rows_of(rlpips("weights", "verify").out)["squeeze"]
    native.write(path, BACKBONE, with_heads(SQUEEZE))
    shipped = rlpips("weights", "verify").out
    assert "whole, official" in rows_of(shipped)["rlpips-alex"]


def test_verify_checks_official_files(rlpips: Rlpips, tmp_path: Path) -> None:
    name = "squeezenet1_1-b8a52dc0.pth"
    (tmp_path / name).write_bytes(b"something else")
    run = rlpips("weights", "verify", "--weights-dir", tmp_path)
    assert run.status == 1
    assert "is not the official file" in run.err


def test_another_file_of_an_official_name_in_a_shared_place_counts_as_none(
    rlpips: Rlpips, tiny_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alex.pth").write_bytes(b"of another project")
    assert "download" in rows_of(rlpips("weights", "list").out)["lpips-alex"]
    assert rlpips("doctor", "--weights-dir", tiny_dir).status == 0
    run = rlpips("weights", "verify")
    assert (run.status, run.err) == (0, "")
    assert re.search(
        rf"^lpips-alex +another file, not used +torch cache +{folder / 'alex.pth'}$", run.out, re.MULTILINE
    )


@pytest.mark.parametrize("words", [("weights", "list"), ("doctor",)])
def test_a_wrong_official_file_in_a_named_folder_is_told(
    rlpips: Rlpips, tiny_dir: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    shutil.copytree(tiny_dir, tmp_path / "w")
    path = tmp_path / "w" / "squeezenet1_1-b8a52dc0.pth"
    path.write_bytes(b"something else")
    run = rlpips(*words, "--weights-dir", path.parent)
    assert re.search(r"^ *baseline-squeeze +damaged", run.out, re.MULTILINE)
    assert f"{path} is not the official file" in run.out
    assert run.status == (1 if words == ("doctor",) else 0)


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, checkpoints: Path, tmp_path: Path) -> list[str]:
    """Stands in for the network: serves SqueezeNet and its heads, published as such; gives the addresses asked for."""
    asked: list[str] = []
    publish(monkeypatch, "squeeze", checkpoints / "net.pth", BACKBONE)
    publish(monkeypatch, "lpips-squeeze", checkpoints / "heads.pth", HEADS)

    @contextlib.contextmanager
    def downloading(url: str, **options: Any) -> Iterator[Callable[[], Path]]:
        yield functools.partial(download, url)

    def download(url: str) -> Path:
        asked.append(url)
        files = {"squeezenet": "net.pth", "squeeze.pth": "heads.pth"}
        name = next((file for word, file in files.items() if word in url), None)
        if name is None:
            raise WeightsNotFound(f"{url} could not be downloaded: no network")
        copy = tmp_path / f"downloaded-{name}"
        copy.write_bytes((checkpoints / name).read_bytes())
        return copy

    monkeypatch.setattr(store, "downloading", downloading)
    return asked


def test_fetch_downloads_what_is_missing(rlpips: Rlpips, downloads: list[str], caches: Path) -> None:
    run = rlpips("weights", "fetch", "baseline-squeeze", "lpips-squeeze")
    assert (run.status, run.err) == (0, "")
    assert run.out.splitlines() == [
        f"baseline-squeeze: squeeze downloaded: {caches / 'squeeze.safetensors'}",
        f"lpips-squeeze: lpips-squeeze downloaded: {caches / 'lpips-squeeze.safetensors'}",
        f"lpips-squeeze: squeeze is here: {caches / 'squeeze.safetensors'}",
    ]
    assert len(downloads) == 2
    assert rlpips("weights", "fetch", "lpips-squeeze").status == 0
    assert len(downloads) == 2


def test_fetch_without_a_network(rlpips: Rlpips, downloads: list[str]) -> None:
    message = one_line(rlpips("weights", "fetch", "lpips-vgg"))
    assert "by hand" in message


def test_a_metric_without_a_network_asks_for_all_its_files(
    rlpips: Rlpips, downloads: list[str], pictures: list[Path]
) -> None:
    message = one_line(rlpips("distance", *pictures[:2], "--metric", "lpips-vgg"))
    assert "/vgg.pth" in message
    assert "vgg16-397923af.pth is needed too (sha256 397923af" in message
    assert message.rstrip().endswith("'lpips-tiny' needs no download")
    message = one_line(rlpips("distance", *pictures[:2], "--metric", "rlpips-vgg"))
    assert message.rstrip().endswith("'rlpips-tiny' needs no download")


def test_fetch_asks_for_known_metrics_only(rlpips: Rlpips, downloads: list[str]) -> None:
    assert "lpips-alex" in one_line(rlpips("weights", "fetch", "lpips-squeeze", "lpips-alx"))
    assert "name the metrics" in one_line(rlpips("weights", "fetch"))
    assert downloads == []


# rlpips doctor


def test_the_doctor_finds_nothing(rlpips: Rlpips, tiny_dir: Path) -> None:
    run = rlpips("doctor", "--weights-dir", tiny_dir)
    assert (run.status, run.err) == (0, ""), run.out
    assert run.out.splitlines()[-1] == "healthy"
    for word in (rl.__version__, jax.__version__, np.__version__, *recipes(), "first call"):
        assert word in run.out
    document = json.loads(rlpips("doctor", "--weights-dir", tiny_dir, "--json").out)
    assert document["healthy"]
    assert document["versions"]["jax"] == jax.__version__
    assert document["metrics"].keys() == recipes().keys()
    assert all(check["passed"] for check in document["checks"])


def test_the_doctor_computes_independently(tiny: rl.Lpips) -> None:
    x, y = (np.random.default_rng(seed).integers(0, 256, (50, 41, 3), np.uint8) for seed in (0, 1))
    assert doctor.distance_in_numpy(x, y, tiny) == pytest.approx(float(rl.distance(x, y, tiny)), rel=1e-5)
    floored = replace(tiny, parameters=tiny.parameters | {"floors": tuple(np.array([100, 200, 300, 400], np.float32))})
    expected = doctor.distance_in_numpy(x, y, floored)
    assert expected == pytest.approx(float(rl.distance(x, y, floored)), rel=1e-5)
    assert expected < 0.5 * doctor.distance_in_numpy(x, y, tiny)


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_the_doctor_finds_wrong_numbers(rlpips: Rlpips, tiny_dir: Path, monkeypatch, factor: float) -> None:
    monkeypatch.setattr(doctor, "distance", lambda x, y, metric: factor * rl.distance(x, y, metric))
    run = rlpips("doctor", "--weights-dir", tiny_dir)
    assert run.status == 1
    assert re.search(r"right number +FAILED", run.out)
    assert "report this" in run.out


def test_the_doctor_finds_damage(rlpips: Rlpips, tiny_dir: Path, tmp_path: Path) -> None:
    copy = tampered(tiny_dir / "lpips-tiny.safetensors", tmp_path / "w")
    run = rlpips("doctor", "--weights-dir", copy.parent)
    assert run.status == 1
    assert f"{copy} is damaged" in run.out


def test_the_doctor_finds_a_folder_that_is_none(rlpips: Rlpips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPIPS_WEIGHTS_DIR", "absent")
    run = rlpips("doctor")
    assert run.status == 1
    assert "$RLPIPS_WEIGHTS_DIR 'absent' is not a folder" in run.out
    # Told once, not for every metric.
    assert len(re.findall(r"weights +FAILED", run.out)) == 1


def test_the_doctor_finds_a_cache_that_cannot_be_written(
    rlpips: Rlpips, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run = rlpips("doctor", "--weights-dir", tiny_dir)
    assert run.status == 1
    assert "set XDG_CACHE_HOME" in run.out


# Published numbers


@pytest.mark.shared
@pytest.mark.parametrize("way", ["import", "convert"])
def test_the_published_example(way: str, rlpips: Rlpips, shared: Path, tmp_path: Path) -> None:
    backbone, heads = shared / "weights" / "alexnet-features.pth", shared / "weights" / "lpips_heads" / "v0.1-alex.pth"
    options: tuple[object, ...] = ()
    if way == "import":
        run = rlpips("weights", "import", backbone, heads)
        assert run.status == 0
        assert "lpips-alex (the official file)" in run.out
    else:
        out = str(tmp_path / "weights")
        assert convert(["--backbone", "alex", "--weights", str(backbone), "--heads", str(heads), "--out", out]) == 0
        options = ("--weights-dir", out)
    images = shared / "images" / "lpips"
    run = rlpips("distance", *(images / f"ex_{name}.png" for name in ("ref", "p0", "p1")), "--json", *options)
    first, second = (result["distance"] for result in json.loads(run.out)["results"])
    assert (round(first, 3), round(second, 3)) == (0.722, 0.138)

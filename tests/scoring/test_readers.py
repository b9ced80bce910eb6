"""Reading ahead in other processes: the right pixels in the right order, whatever becomes of the processes."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.errors import ImageFileWarning, RlpipsError
from rlpips_jax.files import budget
from rlpips_jax.scoring import readers
from rlpips_jax.scoring.readers import Readers, decode, survey

FUNCTIONS = """
import os, pathlib, signal, sys
from rlpips_jax.scoring.readers import Decoded, decode

def modules(path):
    return Decoded(error=" ".join(sys.modules))

def always(path):
    if "deadly" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path)


def half(path):
    if "large" in path:
        # Dies as a process does that is killed while it sends: part of the message is in the pipe.
        import pickle
        def send(answer, file):
            file.write(pickle.dumps(answer)[:5000])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        pickle.dump = send
    return decode(path)

def hungry(path):
    return decode(path) if "large" not in path else Decoded(error=str(len(bytes(1 << 30))))

def slow(path):
    while "large" in path:
        pass
    return decode(path)

def once(path):
    mark = pathlib.Path(path + ".died")
    if "deadly" in path and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(path)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that other processes can import."""
    (tmp_path / "functions_for_readers.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_for_readers", raising=False)
    import functions_for_readers  # pyright: ignore[reportMissingImports]

    return functions_for_readers


@pytest.fixture
def paths(tmp_path: Path, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files, of which all but the first are read by processes."""
    monkeypatch.setattr(readers, "FEW", 1)
    return [str(draw(tmp_path / f"{number}.png", number, (20 + number, 30))) for number in range(9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_in_order(paths: list[str], workers: int) -> None:
    wanted = [paths[2], *paths, "absent.png", paths[3]]
    with Readers(workers) as pool:
        found = [decoded for _, decoded in pool.read(wanted)]
    assert found[-2].error == "absent.png does not exist"
    for path, decoded in zip(wanted, found, strict=True):
        if decoded.image is not None:
            np.testing.assert_array_equal(decoded.image, rl.load_image(path))


def test_reading_processes_do_without_jax(functions: ModuleType, paths: list[str]) -> None:
    with Readers(1, functions.modules) as pool:
        here, there = (set((decoded.error or "").split()) for _, decoded in pool.read(paths[:2]))
    assert "jax" in here
    assert "rlpips_jax.files.decoding" in there
    assert not there & {"jax", "flax", "optax"}


def test_remarks_are_told_once(tmp_path: Path, paths: list[str]) -> None:
    from PIL import Image

    Image.new("RGBA", (30, 30), (1, 2, 3, 100)).save(tmp_path / "glass.png")
    with Readers(1) as pool, pytest.warns(ImageFileWarning, match="transparent") as told:
        list(pool.read([paths[0], *[str(tmp_path / "glass.png")] * 3]))
    assert len(told) == 1


def test_what_was_read_last_is_kept(paths: list[str]) -> None:
    taken = []

    def count(path: str) -> readers.Decoded:
        taken.append(path)
        return decode(path)

    with Readers(0, count) as pool:
        list(pool.read([paths[0], paths[1], paths[0], paths[2], paths[0]]))
    assert taken == paths[:3]


def test_large_images_are_read_less_far_ahead(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "FEW", 16)
    with Readers(0) as pool:
        # Nothing is known of the sizes yet.
        assert pool.ahead == 16
        pool.finish(pool.start(paths[0]))
        assert pool.ahead == readers.MOST_AHEAD
        monkeypatch.setattr(readers, "AHEAD_BYTES", 3 * 28 * 30 * 3)
        pool.finish(pool.start(paths[8]))
        assert pool.ahead == 3


def test_a_survey_gives_sizes_alone(paths: list[str]) -> None:
    assert survey(paths[3]) == readers.Decoded(size=(23, 30))
    assert survey("absent.png").error == "absent.png does not exist"


def test_a_file_that_kills_its_reader_is_named(functions: ModuleType, paths: list[str], tmp_path: Path) -> None:
    deadly = Path(paths[4]).rename(tmp_path / "deadly.png")
    paths[4] = str(deadly)
    with Readers(2, functions.always) as pool:
        found = [decoded for _, decoded in pool.read(paths)]
    assert [number for number, decoded in enumerate(found) if decoded.error] == [4]
    assert found[4].error == f"{deadly} cannot be read: the process that read it died twice, killed or out of memory"
    np.testing.assert_array_equal(found[8].image, rl.load_image(paths[8]))


def test_a_reader_that_dies_once_costs_nothing(functions: ModuleType, paths: list[str], tmp_path: Path) -> None:
    paths[4] = str(Path(paths[4]).rename(tmp_path / "deadly.png"))
    with Readers(2, functions.once) as pool:
        found = [decoded for _, decoded in pool.read(paths)]
    assert (tmp_path / "deadly.png.died").exists()
    for path, decoded in zip(paths, found, strict=True):
        np.testing.assert_array_equal(decoded.image, rl.load_image(path))


def test_a_reader_that_dies_in_the_middle_of_an_image_does_not_hang(
    functions: ModuleType, paths: list[str], tmp_path: Path, draw: Callable[..., Path]
) -> None:
    # Larger than a pipe holds, so that it is under way in parts.
    large = str(draw(tmp_path / "large.png", size=(1500, 1500)))
    with Readers(1, functions.half) as pool:
        found = [decoded for _, decoded in pool.read([paths[0], large, paths[1]])]
    assert found[1].error is not None
    assert "died twice" in found[1].error
    np.testing.assert_array_equal(found[2].image, rl.load_image(paths[1]))


@pytest.mark.parametrize(("function", "limit"), [("hungry", "MEMORY"), ("slow", "SECONDS")])
def test_a_file_has_a_budget(
    functions: ModuleType, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, limit: str
) -> None:
    """What takes too much is that file's error, and no more."""
    module = f"budget_of_{function}"
    (tmp_path / f"{module}.py").write_text(
        "from rlpips_jax.files import budget\n"
        f"budget.{limit} = {1 if limit == 'SECONDS' else 1 << 28}\n"
        "import functions_for_readers\n"
        f"def limited(path):\n    return functions_for_readers.{function}(path)\n"
    )
    # This process keeps its own limits.
    monkeypatch.setattr(budget, limit, getattr(budget, limit))
    paths[4] = str(Path(paths[4]).rename(tmp_path / "large.png"))
    with Readers(1, importlib.import_module(module).limited) as pool:
        found = [decoded for _, decoded in pool.read(paths)]
    assert [number for number, decoded in enumerate(found) if decoded.error] == [4]


def test_a_reader_that_is_killed_as_it_starts_costs_nothing(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "died"
    monkeypatch.setattr(
        readers,
        "START",
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    os.kill(os.getpid(), 9)\n" + readers.START,
    )
    with Readers(1) as pool:
        found = [decoded for _, decoded in pool.read(paths)]
    assert mark.exists()
    assert not any(decoded.error for decoded in found)


def test_a_reader_whose_parent_ends_at_once_says_nothing() -> None:
    command = [sys.executable, "-c", readers.START]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_ending_in_the_middle_of_an_image_does_not_hang(
    paths: list[str], tmp_path: Path, draw: Callable[..., Path]
) -> None:
    large = [str(draw(tmp_path / f"large{number}.png", size=(900, 900))) for number in range(6)]
    with Readers(2) as pool:
        for path in [paths[0], *large]:
            pool.start(path)
        pool.finish(pool.start(large[0]))


def test_readers_that_cannot_even_start_are_an_error(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "START", "raise SystemExit(1)")
    with Readers(1) as pool, pytest.raises(RlpipsError, match="--workers 0"):
        list(pool.read(paths))

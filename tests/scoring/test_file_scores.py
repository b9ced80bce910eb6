"""`rlpips_jax.scoring.score`: results one by one, from a file what is there already."""

import contextlib
import errno
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rlpips_jax as rl
from rlpips_jax.errors import EnsembleError, MetricError, ResultsFileError
from rlpips_jax.scoring import AllPairs, Pair, Result, score

Draw = Callable[..., Path]


@pytest.fixture
def pictures(tmp_path: Path, draw: Draw) -> list[Path]:
    return [draw(tmp_path / f"{number}.png", number) for number in range(9)]


def test_paths_are_enough(pictures: list[Path], tiny: rl.Lpips, one_by_one) -> None:
    files = [(pictures[0], picture) for picture in pictures[1:3]]
    results = list(score(files, tiny, workers=0))
    assert [(result.reference, result.image) for result in results] == [(str(a), str(b)) for a, b in files]
    assert [result.distance for result in results] == pytest.approx(one_by_one(files, tiny), abs=1e-6)
    assert not any(result.recorded for result in results)


def test_every_two_images(pictures: list[Path], tiny: rl.Lpips, one_by_one) -> None:
    pairs = AllPairs.of([*pictures, "absent.png"], tiny, workers=0)
    assert len(pairs) == len(list(pairs)) == 37
    absent, *results = score(pairs, tiny, workers=0)
    assert absent == Result("", "absent.png", error="absent.png does not exist")
    files = list(itertools.combinations(pictures, 2))
    assert [(result.reference, result.image) for result in results] == [(str(a), str(b)) for a, b in files]
    assert [result.distance for result in results] == pytest.approx(one_by_one(files, tiny), abs=1e-6)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_recorded_results_come_first_and_are_not_computed_again(
    pictures: list[Path], tiny: rl.Lpips, tmp_path: Path, suffix: str
) -> None:
    files = [(pictures[0], picture) for picture in (*pictures[1:4], tmp_path / "absent.png")]
    out = tmp_path / f"scores{suffix}"
    first = list(score(files[:2], tiny, out=out, workers=0))
    for path in pictures[1:3]:
        path.unlink()
    results = list(score(files, tiny, out=out, workers=0))
    assert [result.recorded for result in results] == [True, True, False, False]
    assert [result.distance for result in results[:2]] == [result.distance for result in first]
    assert "does not exist" in (results[3].error or "")
    assert all(result.recorded for result in score(files, tiny, out=out, workers=0))


@pytest.mark.slow
def test_results_are_on_disk_when_they_are_given(pictures: list[Path], tiny: rl.Lpips, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"

    def endless() -> Iterator[Pair]:
        while True:
            yield Pair(str(pictures[0]), str(pictures[1]))

    results = score(endless(), tiny, out=out, workers=0)
    with contextlib.closing(results):
        for count in range(1, 20):
            next(results)
            assert out.read_bytes().count(b"\n") > count


def test_a_full_disk_is_told_with_the_file_and_advice(
    pictures: list[Path], tiny: rl.Lpips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    out = tmp_path / "scores.jsonl"
    with pytest.raises(ResultsFileError, match="No space left on device") as caught:
        list(score([(pictures[0], pictures[1])], tiny, out=out, workers=0))
    assert str(out) in str(caught.value)
    assert "make room" in str(caught.value)


@pytest.mark.usefixtures("wrong_types")
def test_arguments_that_make_no_sense(pictures: list[Path], tiny: rl.Lpips, tmp_path: Path) -> None:
    with pytest.raises(EnsembleError, match="random"):
        score([], rl.load("ensemble:lpips-tiny"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(MetricError, match="workers must be"):
        score([], tiny, workers=-1)
    with pytest.raises(MetricError, match=r"\.jsonl or \.csv"):
        score([], tiny, out=tmp_path / "scores.txt")


@pytest.mark.slow
def test_a_script_needs_no_guard(pictures: list[Path], tmp_path: Path) -> None:
    """Reading processes do not run the user's program again, as those of `multiprocessing` do."""
    script = tmp_path / "script.py"
    script.write_text(
        "import rlpips_jax as rl\n"
        "from rlpips_jax.scoring import readers\n"
        f"pairs = [({str(pictures[0])!r}, {str(pictures[1])!r})] + [(p, p) for p in {list(map(str, pictures))!r}] * 3\n"
        "readers.FEW = 2\n"
        "print(sum(result.distance > 0 for result in rl.scoring.score(pairs, rl.load('lpips-tiny'), workers=1)))\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("1\n", "")


def test_the_example_in_the_docs_runs(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("reference", "a", "b")):
        draw(tmp_path / f"{name}.png", number)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent.parent / "docs" / "scoring.md").read_text()
    example, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("a.png 0.")
    assert second.endswith(" None")

"""The break test notices what is broken, and goes on where it stood."""

import importlib
import signal
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl

breaking = importlib.import_module("benchmarks.break")  # A keyword cannot be imported otherwise.


def try_files(folder: Path, monkeypatch: pytest.MonkeyPatch, read: object) -> int:
    form = breaking.Format(".csv", lambda path: path.write_text("a,b\n" * 20), read)
    monkeypatch.setattr(breaking, "FORMATS", {"pairs .csv": form})
    return breaking.main(breaking.Break(minutes=0.002, folder=folder, only="files:"))


def test_what_breaks_is_told_and_attempts_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(breaking, "FILES", 7)
    assert try_files(tmp_path, monkeypatch, lambda path: list(rl.scoring.pairs_in_list(path))) == 0
    first = int(capsys.readouterr().out.split("| files: pairs .csv | ")[1].split(" |")[0])
    assert first >= 7
    assert try_files(tmp_path, monkeypatch, lambda path: 1 / 0) == 1
    printed = capsys.readouterr()
    assert "ZeroDivisionError" in printed.err
    assert f"| files: pairs .csv | {first:,} | 0 |" not in printed.out
    damaged = Path(printed.err.split("the file is ")[1].split("\n")[0])
    assert damaged.read_bytes() != b"a,b\n" * 20
    assert try_files(tmp_path, monkeypatch, lambda path: path.write_text("")) == 1
    assert "it was changed" in capsys.readouterr().err
    assert try_files(tmp_path, monkeypatch, lambda path: (path.parent / "mark").touch()) == 1
    assert "something was run" in capsys.readouterr().err


def test_interruptions_are_counted_and_results_compared(tmp_path: Path) -> None:
    program = "import pathlib,sys,time;time.sleep(0.1);pathlib.Path(sys.argv[1],'a.txt').write_text(sys.argv[2])"
    words = f"-c {program.replace(' ', chr(160))} {{out}} {{data}}"
    command = breaking.Command(words, tmp_path / "kills-a", signal.SIGKILL)
    assert command.attempt(tmp_path / "one", np.random.default_rng(0)) <= breaking.MOST_KILLS
    (tmp_path / "a-uninterrupted" / "a.txt").write_text("other")
    with pytest.raises(breaking.Broken, match=r"other contents: a\.txt"):
        command.attempt(tmp_path / "two", np.random.default_rng(1))
    crash = breaking.Command("-c raise\xa0ValueError(1)", tmp_path / "kills-b", signal.SIGKILL)
    with pytest.raises(breaking.Broken, match="ValueError"):
        crash.attempt(tmp_path / "three", np.random.default_rng(0))

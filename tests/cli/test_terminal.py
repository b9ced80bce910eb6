"""What reaches a terminal, and what a full disk is called."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.cli.terminal import visible

NAME = "\x1b]0;title\x07\x9b31m.png"
"""Sets the title of a terminal's window, and a colour."""


def test_control_characters_are_written_out() -> None:
    assert visible(NAME) == "\\x1b]0;title\\x07\\x9b31m.png"
    assert visible("Größe\tof\nlines \u202f") == "Größe\tof\nlines \u202f"


def rlpips(*words: object, **options: object) -> "subprocess.Popen[bytes]":
    program = "from rlpips_jax.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", program, *map(str, words)], **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("form", ["", pytest.param("--csv", marks=pytest.mark.slow)])
def test_no_name_commands_a_terminal(tmp_path: Path, form: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / NAME)
    (tmp_path / f"bad{NAME}").write_text("no image")
    ours, theirs = pty.openpty()
    words = (tmp_path / "a.png", tmp_path / NAME, tmp_path / f"bad{NAME}", "--metric", "lpips-tiny")
    process = rlpips("distance", *words, *filter(None, [form]), stdout=theirs, stderr=theirs)
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # So Linux tells the end.
            break
        if not part:
            break
        found += part
    os.close(ours)
    assert process.wait() == 1
    assert b"\x1b]0;" not in found
    assert b"\x07" not in found
    assert "\x9b".encode() not in found
    assert found.count(b"title\\x07") + found.count(b"title\\u0007") >= 2


def test_names_stay_as_they_are_in_files(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    for name in ("a.png", NAME):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / name)
    _, out, _ = command("distance", tmp_path / "a.png", tmp_path / NAME, "--metric", "lpips-tiny", "--csv")
    assert NAME in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_of_what_is_printed() -> None:
    with open("/dev/full", "wb") as full:
        process = rlpips("--version", stdout=full, stderr=subprocess.PIPE)
    assert process.communicate()[1] == b"rlpips: what is printed cannot be written: No space left on device\n"
    assert process.returncode == 2

"""Only regular files are opened: a named pipe would be waited for, a device never ends."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.errors import ImageFileError, RlpipsError
from rlpips_jax.evaluation import read_npz
from rlpips_jax.evaluation.judged_pairs import by_size
from rlpips_jax.evaluation.triplet_files import read_fraction
from rlpips_jax.files.regular import open_regular, read_regular
from rlpips_jax.files.spreadsheet import read_sheet
from rlpips_jax.geometry import snapshots
from rlpips_jax.scoring.readers import decode
from rlpips_jax.weights import native

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"content")
    link.symlink_to(path)
    assert read_regular(path) == read_regular(link) == b"content"


@needs_pipes
@pytest.mark.parametrize(
    "read",
    [
        *(open_regular, rl.load_image, read_npz, read_fraction, native.read_metadata),
        lambda path: snapshots.read(path, {}),
        lambda path: read_sheet(path, "sheet"),
    ],
    ids=["bytes", "image", "triplets", "judgment", "weights", "snapshot", "worksheet"],
)
def test_a_named_pipe_is_an_error_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    with pytest.raises((OSError, RlpipsError), match="named pipe"):
        read(path)


@needs_pipes
def test_the_size_of_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    image, pipe = tmp_path / "image.png", tmp_path / "pipe.png"
    rl.save_image(image, np.zeros((4, 4, 3), np.uint8))
    os.mkfifo(pipe)
    assert by_size([image, pipe, image]).tolist() == [1, 0, 2]


@needs_pipes
def test_whatever_is_wrong_with_a_path_is_the_error_of_that_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    beneath = tmp_path / "file"
    beneath.write_bytes(b"")
    for path, says in (
        (pipe, "is a named pipe, not a regular file"),
        (tmp_path / ("x" * 300), "cannot be opened: File name too long"),
        (beneath / "x.png", "cannot be opened: Not a directory"),
        (Path("/dev/null"), "is a device, not a regular file"),
        (tmp_path, "is a folder"),
    ):
        found = decode(str(path))
        assert found.image is None
        assert found.error is not None
        assert says in found.error
        with pytest.raises(ImageFileError):
            rl.load_image(path)


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "x.png"
    rl.save_image(path, np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageFileError, match=r"x\.png cannot be opened: Permission denied"):
        rl.load_image(path)

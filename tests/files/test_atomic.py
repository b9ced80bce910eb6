"""Files are whole, or as they were before."""

import errno
import os
import resource
from pathlib import Path

import pytest

from rlpips_jax.files.atomic import replacing, sync


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_all_is_written(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "folder" / ("x" * 255)
    for content in (b"first", b"second"):
        with replacing(path, durable=durable) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content

    def interrupted() -> None:
        with replacing(path, durable=durable) as file:
            file.write(b"third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), replacing(tmp_path / "file" / "inner") as file:
        file.write(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"), replacing(tmp_path / "folder") as file:
        file.write(b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_is_reported_by_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught, replacing(path) as file:
            file.write(bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_the_name_in_an_error_about_another_file_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "copy") as file:
        file.write((tmp_path / "source").read_bytes())
    assert caught.value.filename == str(tmp_path / "source")


def test_an_error_that_is_not_of_the_system_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^no encoder$"), replacing(tmp_path / "file"):
        raise OSError("no encoder")


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_are_flushed_where_that_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if passes:
        sync(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path / "file")

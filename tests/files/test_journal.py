"""A journal: one writer at a time on every file system, whole records, and errors that name the file."""

import errno
import fcntl
import os
import resource
from pathlib import Path

import pytest

from rlpips_jax.errors import ResultsFileError, RlpipsError
from rlpips_jax.files.journal import Journal


@pytest.mark.parametrize("number", [0, errno.ENOSYS, errno.ENOLCK])
def test_one_run_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if number:
        monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "new" / "results"
    for records in ([], ["one\n"], ["one\n", "two\n"]):
        with Journal(path, "header\n") as journal:
            assert [record.decode() for record in journal.recorded()] == records
            with pytest.raises(
                RlpipsError, match=rf"results is being written by another run: .* process {os.getpid()}"
            ):
                Journal(path, "header\n")
            journal.append("one\n" if not records else "two\n")
    assert path.read_text() == "header\none\ntwo\ntwo\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_record_that_was_cut_off_is_removed_and_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_text("header\none\ntw")
    with Journal(path, "header\n") as journal:
        assert list(journal.recorded()) == [b"one\n"]
    assert path.read_text() == "header\none\n"
    with (
        Journal(path, "other\n") as journal,
        pytest.raises(RlpipsError, match="record 1 is header, but should be other"),
    ):
        list(journal.recorded())
    assert path.read_text() == "header\none\n"


def test_a_full_disk_is_reported_by_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, "header\n") as journal:
        assert list(journal.recorded()) == []
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(ResultsFileError, match=f"{path} cannot be written: File too large; .*make room"):
                journal.append("x" * 1000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

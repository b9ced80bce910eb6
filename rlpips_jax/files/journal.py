"""A header and records in a file, safe on disk as they come; an interrupted run goes on where it stood."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rlpips_jax.errors import ResultsFileError, RlpipsError


class Journal:
    """A file of a header and records of a run.

    Only whole records at the beginning of the file count; what was torn in the middle of one is cut off. A file of
    another run is refused and stays as it is. A context manager: within it no other process can write to the file.

    Args:
        path: the file; made, with its folders, if it is not there.
        header: what the file begins with.

    Raises:
        RlpipsError: another run is writing to the file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, header: str) -> None:
        self._path = path
        self._header = header.encode("utf-8", "surrogateescape")
        path.parent.mkdir(parents=True, exist_ok=True)
        # No mode of `open` makes a file or takes it as it is, to be read and written.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file = open(os.open(path, flags, 0o666), "r+b")  # noqa: SIM115
        try:
            self._lock()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def recorded(
        self,
        records: Callable[[IO[bytes]], Iterator[bytes]] = iter,
        whole: Callable[[bytes], bool] = lambda record: record.endswith(b"\n"),
    ) -> Iterator[bytes]:
        """The whole records that the file holds; when they are exhausted, it is ready for the rest.

        Whoever finds that a record is of another run raises `refusal`, and the file stays as it is.

        Args:
            records: cuts what follows the header into records, each with its end; by default lines.
            whole: whether a record was written to its end.

        Raises:
            RlpipsError: the file begins otherwise than with the header.
        """
        begun, end = self._file.readline(), 0
        if begun.endswith(b"\n"):
            if begun != self._header:
                raise self.refusal(1, _shown(begun), _shown(self._header))
            end = len(begun)
            for record in records(self._file):
                if not whole(record):
                    break
                yield record
                end += len(record)
        elif not self._header.startswith(begun):
            raise self.refusal(1, _shown(begun), _shown(self._header))
        self._file.seek(end)
        self._file.truncate()
        if end == 0:
            self._append(self._header)
            self._settle_folder()

    def append(self, records: str) -> None:
        """Appends records; when this returns, they are on disk."""
        self._append(records.encode("utf-8", "surrogateescape"))

    def refusal(self, number: int, found: str, wanted: str) -> RlpipsError:
        """The error that says what a record, counted from 1 with the header, is and what it should be."""
        return RlpipsError(
            f"{self._path} is of another run and was left as it is: record {number} is {found}, but should be "
            f"{wanted}; choose another --out, or run what the file is of"
        )

    def _append(self, content: bytes) -> None:
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResultsFileError(
                f"{self._path} cannot be written: {error.strerror or error}; the records before are safe: make room on "
                "the disk, and the same command goes on from there"
            ) from error

    def _settle_folder(self) -> None:
        """Makes the name of a new file as safe as what is in it, where folders can be opened."""
        with contextlib.suppress(OSError):
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RlpipsError(f"{self._path} is being written by another run; wait for it, or end it") from None


def _shown(line: bytes, most: int = 300) -> str:
    text = line[: most + 1].decode("utf-8", "replace").strip()
    return text if len(line) <= most else f"{text[:most]}..."

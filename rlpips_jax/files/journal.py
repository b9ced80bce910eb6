"""A header and records in a file, each on disk before the next; an interrupted run continues after the last one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rlpips_jax.errors import Locked, ResultsFileError, RlpipsError
from rlpips_jax.files.atomic import sync
from rlpips_jax.files.locks import locked


class Journal:
    """A file of a header and records of a run.

    Only whole records count; a last one that was cut off in the middle is removed. A file of another run is refused
    and stays as it is. A context manager: within it no other process can write to the file.

    Args:
        path: the file; made, with its folder, if it is not there.
        header: the first line of the file.

    Raises:
        RlpipsError: another run is writing to the file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, header: str) -> None:
        self._path = path
        self._header = header.encode("utf-8", "surrogateescape")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
            except Locked as error:
                raise RlpipsError(f"{path} is being written by another run: {error}") from error
            # No mode of `open` makes a file, or takes it as it is, to be read and written.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = stack.enter_context(open(os.open(path, flags, 0o666), "r+b"))
            self._held = stack.pop_all()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def recorded(
        self,
        records: Callable[[IO[bytes]], Iterator[bytes]] = iter,
        whole: Callable[[bytes], bool] = lambda record: record.endswith(b"\n"),
    ) -> Iterator[bytes]:
        """The whole records in the file; after the last one, the file is ready for further records.

        A caller that finds a record of another run raises `refusal`, and the file stays as it is.

        Args:
            records: cuts the bytes after the header into records, each with its end; by default lines.
            whole: whether a record was written to its end.

        Raises:
            RlpipsError: the file does not begin with the header.
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
            sync(self._path.parent)

    def append(self, records: str) -> None:
        """Appends records; when this returns, they are on disk."""
        self._append(records.encode("utf-8", "surrogateescape"))

    def refusal(self, number: int, found: str, wanted: str) -> RlpipsError:
        """The error about a record, counted from 1 with the header: what was found, and what was expected."""
        return RlpipsError(
            f"{self._path} is of another run and was left as it is: record {number} is {found}, but should be "
            f"{wanted}; choose another --out, or repeat the run that wrote the file"
        )

    def _append(self, content: bytes) -> None:
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ResultsFileError(
                f"{self._path} cannot be written: {error.strerror or error}; the records before are safe: make room on "
                "the disk, and the same command continues from there"
            ) from error


def _shown(line: bytes, most: int = 300) -> str:
    text = line[: most + 1].decode("utf-8", "replace").strip()
    return text if len(line) <= most else f"{text[:most]}..."

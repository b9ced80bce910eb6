"""Regular files: opening a named pipe waits for a writer for ever, and some devices never end."""

import errno
import os
import shutil
import stat
import tempfile
from typing import BinaryIO, cast

NOT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Without O_NONBLOCK the opening of a pipe would wait; a regular file is used as without it."""


def open_regular(path: str | os.PathLike[str], mode: str = "rb", *, flags: int = os.O_RDONLY) -> BinaryIO:
    """Opens a file for its bytes, if it is a regular one or a link to one.

    Args:
        path: the file.
        mode: of `open`.
        flags: of `os.open`; O_NOFOLLOW refuses links.

    Raises:
        IsADirectoryError: it is a folder.
        OSError: it is a named pipe, a socket or a device, or it cannot be opened.
    """
    descriptor = os.open(path, flags | NOT_WAITING, 0o666)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, f"it is a {_kind(kind)}, not a regular file", os.fspath(path))
        return cast(BinaryIO, os.fdopen(descriptor, mode))
    except BaseException:
        os.close(descriptor)
        raise


def open_once(path: str | os.PathLike[str]) -> BinaryIO:
    """As `open_regular`, and also a named pipe (`/dev/stdin`, `<(...)`), copied to its end into a nameless file.

    For files that a user names one by one; it can wait for a writer.
    """
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return open_regular(path)
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    with open(path, "rb") as pipe:
        shutil.copyfileobj(pipe, copy)
    copy.seek(0)
    return cast(BinaryIO, copy)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a regular file; errors as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "named pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"

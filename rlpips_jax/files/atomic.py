"""Files that are written completely, or stay as they were."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""How file systems answer a request that they do not know."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at the end of the block; its folder is made.

    If the block raises, `path` stays as it was.

    Args:
        path: the file to replace.
        durable: return only when content and name are on the disk, so that both survive a power cut.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    # Short, so that the temporary name fits wherever the final one does.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        # A full disk is reported without a name, and the temporary one says nothing to a user.
        if error.errno is not None and error.filename in (None, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk; does nothing for folders where that is not possible.

    Raises:
        OSError: it cannot be flushed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Windows opens no folders, and some file systems flush none.
        if not (path.is_dir() and (os.name == "nt" or error.errno in UNSUPPORTED)):
            raise

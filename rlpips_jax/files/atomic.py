"""Files that are whole, or as they were before."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all is written to it; makes its folder.

    Args:
        path: what is replaced; as it was before if anything goes wrong.
        durable: its new name must not outlive a power cut that its content does not.

    Raises:
        OSError: it cannot be written.
    """
    # Short, so that any name that fits has a temporary one that fits.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()

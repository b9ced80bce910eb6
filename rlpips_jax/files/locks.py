"""Locks of processes and threads on a file, also on file systems without locks."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlpips_jax.errors import Locked

if TYPE_CHECKING:
    from filelock import BaseFileLock

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""How `flock` fails on file systems that have no locks, as on many clusters."""


@contextlib.contextmanager
def locked(
    path: Path, *, waiting: Callable[[str], object] | None = None, give_up: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Holds a lock until the end of the block; one thread of one process holds it at a time.

    The system releases it when its holder dies. Where the file system has no locks, a file beside `path` stands for
    the lock; that of a process that died on this machine is removed, that of another machine must be removed by hand.

    Args:
        path: the file to lock, which serves nothing else; it and its folder are made, and it is removed at the end.
        waiting: called once, with the holder's name, if the lock must be waited for; None does not wait.
        give_up: asked now and then whether to stop waiting; None waits without limit.

    Raises:
        Locked: another holds the lock, and `waiting` is None or `give_up` said True.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, SoftFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquire(FileLock(path, thread_local=False, fallback_to_soft=False), waiting, give_up)
        with contextlib.suppress(OSError):  # For people alone; the lock needs no content.
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        removed = path
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        # The attempt left a file that means nothing on such a file system.
        path.unlink(missing_ok=True)
        lock = _acquire(SoftFileLock(f"{path}.held", thread_local=False), waiting, give_up)
        removed = None  # A `SoftFileLock` removes its own file.
    with lock:
        try:
            yield
        finally:
            if removed is not None:
                # Removed while it is held: whoever waits for this very file notices, and makes another one.
                with contextlib.suppress(OSError):
                    removed.unlink()


def _acquire(
    lock: "BaseFileLock", waiting: Callable[[str], object] | None, give_up: Callable[[], bool] | None
) -> contextlib.AbstractContextManager[object]:
    from filelock import Timeout

    with contextlib.suppress(Timeout):
        return lock.acquire(blocking=False)
    if waiting is not None:
        waiting(_holder(lock.lock_file))
        with contextlib.suppress(Timeout):
            return lock.acquire(cancel_check=give_up)
    advice = "wait for it, or end it; if it died on another machine, remove this file"
    raise Locked(f"{lock.lock_file} is held by {_holder(lock.lock_file)}: {advice}")


def _holder(path: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        process, machine, *_ = Path(path).read_text().splitlines()
        return f"process {process} on {machine}"
    return "another process"

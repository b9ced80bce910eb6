"""Ctrl-C takes effect between two steps of the work.

Python raises KeyboardInterrupt wherever it is. Within JAX that can be in a callback, which swallows it, or while a
program is compiled, after which the interpreter can crash when it ends.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_pending = threading.Event()


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed since `deferred` began."""
    if _pending.is_set():
        _pending.clear()
        raise KeyboardInterrupt


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """In the block, Ctrl-C takes effect where `check` is called; pressed again, at once."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def note(number: int, frame: Any) -> None:
        if _pending.is_set():
            signal.default_int_handler(number, frame)
        _pending.set()

    _pending.clear()
    signal.signal(signal.SIGINT, note)
    try:
        yield
        check()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _pending.clear()

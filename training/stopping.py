"""Orderly stops: SIGTERM and Ctrl-C end a run after the step at hand, when all is saved."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from training.devices import say


class Interrupted(Exception):
    """An evaluation was left off before its end."""


class Stopping:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self._asked = False
        self._loading = False
        self._times = 0

    def ask(self, number: int, _: Any) -> None:
        """The handler of signals. The second one ends the program as the system would: what is on disk is whole."""
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._asked = True
        if self._loading:
            raise SystemExit(0)

    def is_asked(self) -> bool:
        """Whether to stop; once true, always.

        Processes that work together must ask equally often, and get the same answer each time: JAX lets all of them
        come to the same count after one has got the signal.
        """
        if jax.process_count() > 1 and not self._asked:
            self._times += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Inside, a request ends the program at once: there is nothing to save."""
        self._loading = True
        try:
            yield
        except SystemExit:
            say("stopped while data were being loaded; nothing is lost, and the same command starts again")
            raise
        finally:
            self._loading = False


@contextlib.contextmanager
def listening() -> Iterator[Stopping]:
    """Asks for an orderly stop on SIGTERM and Ctrl-C, and stops at once on the second one.

    Where processes work together, JAX listens to SIGTERM itself, and Ctrl-C ends this process alone.
    """
    stopping = Stopping()
    signals = [] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {one: signal.signal(one, stopping.ask) for one in signals}
    try:
        yield stopping
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

"""Image files read ahead, by processes of their own that never import JAX.

A reading process that dies (killed, or out of memory) costs no result: what it and its siblings had in hand is read
again, one file at a time, and only a file that is at hand when a process dies once more is given up.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.decoding import load_image
from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning, RlpipsError

FEW = 16
"""So many files are read before processes are started: starting one takes as long as reading some."""

AHEAD_BYTES = 1 << 28
"""Images read ahead take about this much at most; so do those that are kept in case they are asked for again."""

MOST_AHEAD = 128
"""Most files that are read ahead."""


class Decoded(NamedTuple):
    """What came of reading a file: an image, or only its size, or the reason why there is none."""

    image: Shaped[np.ndarray, "h w 3"] | None = None
    size: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()
    error: str | None = None


def decode(path: str) -> Decoded:
    """Reads an image file; errors and warnings come back as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = load_image(path)
        except (ImageError, ImageFileError) as error:
            return Decoded(error=str(error))
        except MemoryError:
            return Decoded(error=f"{path} cannot be read: it does not fit into memory")
    remarks = tuple(str(warning.message) for warning in caught if issubclass(warning.category, ImageFileWarning))
    return Decoded(image, (image.shape[0], image.shape[1]), remarks)


def survey(path: str) -> Decoded:
    """Reads an image file to its end, and gives only its size, or the error."""
    return decode(path)._replace(image=None, remarks=())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class Ticket:
    """A file that is being read, or has been."""

    path: str
    future: Future[Decoded] | None = None
    outcome: Decoded | None = None


class Readers:
    """Reads files in the background, and keeps those read last. A context manager: its end ends the processes.

    Args:
        workers: how many processes; 0 reads in this one, when the result is asked for.
        function: what is done with a path; `decode` or `survey`.
    """

    def __init__(self, workers: int, function: Callable[[str], Decoded] = decode) -> None:
        self._workers = workers
        self._function = function
        self._pool: ProcessPoolExecutor | None = None
        self._started = 0
        self._reading: dict[int, Ticket] = {}
        self._recent: OrderedDict[str, Ticket] = OrderedDict()
        # Unknown as yet: a guess that lets some files be read ahead, and not too many of large ones.
        self._largest, self._known = AHEAD_BYTES // FEW, False

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if kind is not None:
            # What is being read is of no use any more, and may take long.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)

    @property
    def ahead(self) -> int:
        """How many files to read ahead: fewer of large ones."""
        return max(2 * self._workers, 2, min(MOST_AHEAD, AHEAD_BYTES // self._largest))

    def start(self, path: str) -> Ticket:
        """Begins to read a file, unless it was read a moment ago."""
        if path in self._recent:
            self._recent.move_to_end(path)
            return self._recent[path]
        ticket = self._recent[path] = Ticket(path)
        while len(self._recent) > self.ahead:
            self._recent.popitem(last=False)
        self._started += 1
        if self._workers and self._started > FEW:
            self._submit(ticket)
            self._reading[id(ticket)] = ticket
        return ticket

    def finish(self, ticket: Ticket) -> Decoded:
        """What came of a file; waits for it. What it said of the file is told as a warning, once."""
        if ticket.outcome is not None and id(ticket) not in self._reading:
            return ticket.outcome
        if ticket.future is None:
            ticket.outcome = self._function(ticket.path)
        elif ticket.outcome is None:
            try:
                ticket.outcome = ticket.future.result()
            except BrokenProcessPool:
                self._read_one_by_one()
        self._reading.pop(id(ticket), None)
        ticket.future = None
        outcome = ticket.outcome
        assert outcome is not None
        for remark in outcome.remarks:
            warnings.warn(remark, ImageFileWarning, stacklevel=2)
        if outcome.image is not None:
            size = outcome.image.nbytes
            self._largest = max(self._largest, size) if self._known else size
            self._known = True
        return outcome

    def read(self, paths: Iterable[str]) -> Iterator[Decoded]:
        """What came of each file, in their order, reading ahead."""
        queue: deque[Ticket] = deque()
        for path in paths:
            queue.append(self.start(path))
            while len(queue) > self.ahead:
                yield self.finish(queue.popleft())
        while queue:
            yield self.finish(queue.popleft())

    def _submit(self, ticket: Ticket) -> None:
        while True:
            if self._pool is None:
                self._pool = _pool(self._workers)
            try:
                with _uninterrupted():
                    ticket.future = self._pool.submit(self._function, ticket.path)
                return
            except BrokenProcessPool:
                self._read_one_by_one()

    def _read_one_by_one(self) -> None:
        """After a process died: reads what was under way again, so that a second death tells by which file."""
        self._discard()
        for ticket in list(self._reading.values()):
            if ticket.outcome is not None or ticket.future is None:
                continue
            if ticket.future.done() and not ticket.future.cancelled() and ticket.future.exception() is None:
                ticket.outcome = ticket.future.result()
                continue
            ticket.outcome = self._read_alone(ticket.path)

    def _read_alone(self, path: str) -> Decoded:
        try:
            if self._pool is None:
                self._pool = _pool(self._workers)
                with _uninterrupted():
                    started = self._pool.submit(os.getpid)
                started.result()
        except BrokenProcessPool:
            raise RlpipsError(
                "the processes that read images die as soon as they start; with --workers 0 this one reads them"
            ) from None
        try:
            with _uninterrupted():
                future = self._pool.submit(self._function, path)
            return future.result()
        except BrokenProcessPool:
            self._discard()
            return Decoded(error=f"{path} cannot be read: the process that read it died twice, killed or out of memory")

    def _discard(self) -> None:
        """Gives up a pool that is broken."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked processes would inherit JAX's threads in an unknown state.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """What a reading process does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not end its children; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started within never see Ctrl-C, which is this process's to answer; it sees it right after."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

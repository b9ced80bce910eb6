"""Image files read ahead, by processes of their own that never import JAX.

A reading process that dies (killed, or out of memory) costs no result: another reads the file that it had in hand, and
only if that one dies too is the file given up. Each process has a pipe of its own, on which its death shows at once,
also in the middle of an image; with a pipe for all, as in `concurrent.futures`, the rest of the image would be waited
for, for ever.
"""

import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.cli import interrupts
from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning, RlpipsError
from rlpips_jax.files.decoding import load_image

FEW = 16
"""So many files are read before processes are started: starting one takes as long as reading some."""

AHEAD_BYTES = 1 << 28
"""Images read ahead take about this much, or are two a process if that is more; so are those that are kept in case they
are asked for again."""

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
        self._threads: list[_Worker] = []
        self._work: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._started = 0
        self._recent: OrderedDict[str, Ticket] = OrderedDict()
        # Unknown as yet: a guess that lets some files be read ahead, and not too many of large ones.
        self._largest, self._known = AHEAD_BYTES // FEW, False

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.end()
            self._work.put(None)
        for thread in self._threads:
            thread.join()

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
            ticket.future = Future()
            self._work.put(ticket)
            if len(self._threads) < self._workers:
                self._threads.append(_Worker(self._work, self._function))
        return ticket

    def finish(self, ticket: Ticket) -> Decoded:
        """What came of a file; waits for it. What it said of the file is told as a warning, once.

        Raises:
            RlpipsError: no process can be started.
        """
        interrupts.check()
        if ticket.outcome is not None:
            return ticket.outcome
        outcome = self._function(ticket.path) if ticket.future is None else _result(ticket.future)
        ticket.outcome, ticket.future = outcome, None
        for remark in outcome.remarks:
            warnings.warn(remark, ImageFileWarning, stacklevel=2)
        if outcome.image is not None:
            size = outcome.image.nbytes
            self._largest = max(self._largest, size) if self._known else size
            self._known = True
        return outcome

    def read(self, paths: Iterable[str]) -> Iterator[Decoded]:
        """What came of each file, in their order, reading ahead."""
        tickets: deque[Ticket] = deque()
        for path in paths:
            tickets.append(self.start(path))
            while len(tickets) > self.ahead:
                yield self.finish(tickets.popleft())
        while tickets:
            yield self.finish(tickets.popleft())


def _result(future: Future[Decoded]) -> Decoded:
    while True:
        try:
            return future.result(timeout=0.2)
        except TimeoutError:
            interrupts.check()


class _Worker(threading.Thread):
    """A process, and the thread that hands it files one after the other."""

    def __init__(self, work: "queue.SimpleQueue[Ticket | None]", function: Callable[[str], Decoded]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._function = function
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._ended = False
        self._starting = threading.Lock()
        # In this thread, or it would leave Ctrl-C unblocked in the one that starts processes.
        resource_tracker.ensure_running()
        self.start()

    def end(self) -> None:
        """Ends the process, whatever it is doing; the thread ends when it takes its next work."""
        with self._starting:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def run(self) -> None:
        """Works until there is None to do."""
        if hasattr(signal, "pthread_sigmask"):
            # Processes started from here never see Ctrl-C, which is the main thread's to answer.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (ticket := self._work.get()) is not None:
            future = ticket.future
            if future is None or self._ended:
                continue
            try:
                future.set_result(self._read(ticket.path))
            except BaseException as error:
                future.set_exception(error)
        self._close()

    def _read(self, path: str) -> Decoded:
        for _ in range(2):
            connection = self._connection or self._start()
            try:
                connection.send(path)
                return connection.recv()
            except (EOFError, OSError):
                self._close()
        return Decoded(error=f"{path} cannot be read: the process that read it died twice, killed or out of memory")

    def _start(self) -> Connection:
        # Forked processes would inherit JAX's threads in an unknown state.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._function), daemon=True)
        with self._starting:
            if self._ended:
                raise RlpipsError("reading has ended")
            process.start()
            self._process, self._connection = process, here
        # Only the process holds the other end now, and with the process it closes.
        there.close()
        try:
            here.recv()
        except (EOFError, OSError):
            raise RlpipsError(
                "the processes that read images die as soon as they start; with --workers 0 this one reads them"
            ) from None
        return here

    def _close(self) -> None:
        """Clears up after the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with self._starting:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()


def _serve(connection: Connection, function: Callable[[str], Decoded]) -> None:
    """What a reading process does: begins with a sign of life, and ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(None)
        while True:
            connection.send(function(connection.recv()))
    except (EOFError, OSError):
        return

"""Image files read ahead, by processes that never import JAX.

When a reading process dies (killed, or out of memory), another one reads its file again; if that dies too, the file
counts as unreadable; so does one that takes more memory or time than `rlpips_jax.files.budget` allows. Each process has
its own pipe, so that its death is noticed at once, also in the middle of an image; with one pipe for all, as in
`concurrent.futures`, the rest of the image would be awaited for ever.
"""

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning, RlpipsError
from rlpips_jax.files import budget
from rlpips_jax.files.reading import AS_STORED, Reading

FEW = 16
"""So many files are read before processes are started: starting one takes as long as reading several files."""

AHEAD_BYTES = 1 << 28
"""Most bytes of images that are read ahead, or two images per process if that is more. As many of those read last are
kept, in case they are asked for again."""

MOST_AHEAD = 128
"""Most files that are read ahead."""

START = """
import pickle, sys
try:
    sys.path[:] = pickle.load(sys.stdin.buffer)
    serve = pickle.load(sys.stdin.buffer)
except EOFError:  # Whoever started it has ended.
    sys.exit()
serve()
"""
"""The program of a reading process. Unlike those of `multiprocessing` it does not import the user's main module."""

STARTS = 5
"""Times that a process is started anew when it is killed before it is ready."""

DYING = 1.0
"""Seconds in which a process whose output is closed has ended."""

DEATHS = (EOFError, OSError, pickle.UnpicklingError)
"""How it shows that a process died, also in the middle of an answer."""


class Decoded(NamedTuple):
    """The outcome of reading a file: an image, or only its size, or an error; with remarks to warn of."""

    image: Shaped[np.ndarray, "h w 3"] | None = None
    size: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()
    error: str | None = None


def decode(path: str, reading: Reading = AS_STORED) -> Decoded:
    """Reads an image file; errors and warnings come back as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = reading.image(path)
        except (ImageError, ImageFileError) as error:
            return Decoded(error=str(error))
        except MemoryError:
            return Decoded(error=f"{path} cannot be read: it does not fit into memory")
    remarks = tuple(str(warning.message) for warning in caught if issubclass(warning.category, ImageFileWarning))
    return Decoded(image, (image.shape[0], image.shape[1]), remarks)


def survey(path: str, reading: Reading = AS_STORED) -> Decoded:
    """Reads an image file to its end, and returns only its size, or the error."""
    return decode(path, reading)._replace(image=None, remarks=())


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
    """Reads files in the background, and keeps those read last. A context manager: leaving it ends the processes.

    Args:
        workers: the number of processes; 0 reads in this one, when the result is asked for.
        function: what is done with a path; `decode` or `survey`.
        pause: called now and then while a file is awaited; what it raises ends the waiting.
    """

    def __init__(
        self, workers: int, function: Callable[[str], Decoded] = decode, *, pause: Callable[[], object] = lambda: None
    ) -> None:
        self._pause = pause
        self._workers = workers
        self._function = function
        self._threads: list[_Worker] = []
        self._work: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._started = 0
        self._recent: OrderedDict[str, Ticket] = OrderedDict()
        # Not known yet: a guess that lets some files be read ahead, but not too many of large ones.
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
        """The number of files to read ahead: fewer if they are large."""
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
        """The outcome of a file, when it has been read. Remarks on it become warnings, once.

        Raises:
            RlpipsError: no process can be started.
        """
        self._pause()
        if ticket.outcome is not None:
            return ticket.outcome
        outcome = self._function(ticket.path) if ticket.future is None else self._awaited(ticket.future)
        ticket.outcome, ticket.future = outcome, None
        for remark in outcome.remarks:
            warnings.warn(remark, ImageFileWarning, stacklevel=2)
        if outcome.image is not None:
            size = outcome.image.nbytes
            self._largest = max(self._largest, size) if self._known else size
            self._known = True
        return outcome

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, Decoded]]:
        """Each path and its outcome, in order, reading ahead."""
        tickets: deque[Ticket] = deque()
        for path in paths:
            tickets.append(self.start(path))
            while len(tickets) > self.ahead:
                yield tickets[0].path, self.finish(tickets.popleft())
        while tickets:
            yield tickets[0].path, self.finish(tickets.popleft())

    def _awaited(self, future: Future[Decoded]) -> Decoded:
        while True:
            try:
                return future.result(timeout=0.2)
            except TimeoutError:
                self._pause()


class _Worker(threading.Thread):
    """A process, and the thread that hands it one file after the other."""

    def __init__(self, work: "queue.SimpleQueue[Ticket | None]", function: Callable[[str], Decoded]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._starting = threading.Lock()
        self.start()

    def end(self) -> None:
        """Ends the process, whatever it is doing; the thread ends when it takes its next work."""
        with self._starting:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def run(self) -> None:
        """Takes files until it takes None."""
        if hasattr(signal, "pthread_sigmask"):
            # Processes started from here never see Ctrl-C, which the main thread answers.
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
            process = self._process or self._start()
            with contextlib.suppress(*DEATHS):
                return _exchange(process, path)
            if self._close(DYING) == budget.STOPPED:
                return Decoded(
                    error=f"{path} cannot be read: it takes more than {budget.SECONDS} seconds of computing, too many "
                    "for an image"
                )
        return Decoded(error=f"{path} cannot be read: the process that read it died twice, killed or out of memory")

    def _start(self) -> "subprocess.Popen[bytes]":
        """A process that is ready. One that is killed before costs as little as one that is killed later."""
        for _ in range(STARTS):
            with self._starting:
                if self._ended:
                    raise RlpipsError("reading has ended")
                command = [sys.executable, "-c", START]
                process = self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            with contextlib.suppress(*DEATHS):
                _exchange(process, sys.path, functools.partial(_serve, self._function))
                return process
            if self._close(DYING) >= 0:
                break  # It ended by itself, as the next one would.
        raise RlpipsError(
            "the processes that read images die as soon as they start; with --workers 0 (in Python workers=0) this one "
            "reads them"
        )

    def _close(self, patience: float = 0.0) -> int:
        """Ends the process, if there is one; returns its return code, its own if it ends within some seconds."""
        with self._starting:
            process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        with contextlib.suppress(OSError):  # What it has not read is lost.
            process.communicate()
        return process.wait()


def _exchange(process: "subprocess.Popen[bytes]", *messages: Any) -> Any:
    """Sends messages to a process, and waits for its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    for message in messages:
        pickle.dump(message, process.stdin)
    process.stdin.flush()
    return pickle.load(process.stdout)


def _serve(function: Callable[[str], Decoded]) -> None:
    """The work of a reading process: it reports that it is there, and ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a decoder prints must not get between the answers.
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.suppress(EOFError, OSError):
        os.dup2(2, 1)
        answer = None
        budget.limit_memory()
        while True:
            pickle.dump(answer, answers)
            answers.flush()
            path = pickle.load(sys.stdin.buffer)
            budget.limit_time()
            answer = function(path)

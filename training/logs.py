"""The log of a run: a line of JSON per record, and the same for TensorBoard.

No step is lost or doubled when a run is killed and resumed: `MetricLog.flush` before a checkpoint puts all records up
to it on the disk, and the log of a run that resumes at a checkpoint drops the later ones.
"""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, SupportsFloat

import jax

from rlpips_jax.errors import LogError, RlpipsError
from rlpips_jax.files.atomic import replacing, sync
from rlpips_jax.files.json_object import json_object
from rlpips_jax.files.regular import read_regular
from training.checkpoint import is_full
from training.devices import on_first

RECORDS = "metrics.jsonl"
EVENTS = "tensorboard"
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Strings that stand for the numbers that JSON does not have; they are read as numbers again."""

FLUSH_SECONDS = 10
"""How long events for TensorBoard stay in memory while steps come."""

Value = SupportsFloat | str
"""A number, which may be an array without axes, or a word."""


class MetricLog:
    """The records of a run, in `metrics.jsonl` and, for TensorBoard, in `tensorboard/`.

    Each record has a step, a kind ("step", or what was evaluated), and numbers or words by name. In a run of several
    processes the first alone writes.

    Args:
        folder: of the run; made if it is not there.
        resumed_at: step of the checkpoint that the run goes on from; records of later steps are dropped. None for a
            run that begins, which keeps none.
        intact: the sentence on the run's checkpoints with which an error ends.

    Attributes:
        kept: the records of earlier parts of the run; empty on all processes but the first.

    Raises:
        RlpipsError: a file is not a log.
        LogError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_at: int | None = None,
        intact: Callable[[], str] = lambda: "checkpoints are as they were",
    ) -> None:
        self.kept: list[dict[str, Any]] = []
        self._records: IO[bytes] | None = None
        self._intact = intact
        if jax.process_index() != 0:
            return
        self._path, events = folder / RECORDS, folder / EVENTS
        with self._told(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self.kept = _keep(self._path, resumed_at)
        self._latest = {record["kind"]: record["step"] for record in self.kept}
        with self._told(events):
            self._events = _Events(events, first=0 if resumed_at is None else resumed_at + 1)
        with self._told(self._path):
            self._records = self._path.open("ab")

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._records is None:
            return
        failures: list[LogError] = []
        # A file that cannot be written is closed all the same, and fails once more.
        for path, end in (
            (self._path, self._flush_records),
            (self._path, self._records.close),
            (self._events.path, self._events.flush),
            (self._events.path, self._events.close),
        ):
            try:
                with self._told(path):
                    end()
            except LogError as failed:
                failures.append(failed)
        if not failures or isinstance(error, LogError):
            return
        if error is None:
            raise failures[0]
        error.add_note(str(failures[0]))

    def write(self, step: int, kind: str, values: Mapping[str, Value]) -> None:
        """Writes a record, which survives the end of this process, but of the machine only after `flush`.

        Args:
            step: later than that of every record of this kind.
            kind: what was measured.
            values: numbers keep every digit.

        Raises:
            RlpipsError: the step is not later, a value is neither a number nor a word, or its name is "step" or "kind".
            LogError: the disk is full, or the file cannot be written.
        """
        if self._records is None:
            return
        if step <= self._latest.get(kind, -1):
            raise RlpipsError(f"{self._path} has step {self._latest[kind]} of {kind}; step {step} is not later")
        if reserved := {"step", "kind"} & values.keys():
            raise RlpipsError(f"a record says its {reserved.pop()} already; give the value another name")
        plain = {name: _plain(name, value) for name, value in values.items()}
        legal = {name: _legal(value) for name, value in plain.items()}
        line = json.dumps({"step": step, "kind": kind} | legal, allow_nan=False)
        with self._told(self._path):
            self._records.write(line.encode() + b"\n")
            self._records.flush()
        with self._told(self._events.path):
            self._events.write(step, {f"{kind}/{name}": value for name, value in plain.items()})
        self._latest[kind] = step

    def has(self, step: int, kind: str) -> bool:
        """Whether there is a record of this kind at this step or later; the same on every process."""
        return on_first(lambda: self._latest.get(kind, -1) >= step, LogError)

    def flush(self) -> None:
        """Returns when all records are on the disk; a checkpoint is written after this.

        Raises:
            LogError: they cannot be.
        """
        if self._records is not None:
            with self._told(self._path):
                self._flush_records()
            with self._told(self._events.path):
                self._events.flush()

    def _flush_records(self) -> None:
        if self._records is not None:
            self._records.flush()
            os.fsync(self._records.fileno())

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Names the file that could not be written."""
        try:
            yield
        except OSError as error:
            intact = self._intact()
            if is_full(error):
                raise LogError(
                    f"the disk is full: {path} could not be written; {intact}: free some space, and start the run again"
                ) from error
            raise LogError(f"{path} could not be written; {intact}: {error}") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a last one that was not written to its end is left out.

    Raises:
        RlpipsError: a line is not a record.
        OSError: the file cannot be read.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(read_regular(path).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        records.append(_record(path, number, line))
    return records


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json_object(line)
        if not isinstance(record["step"], int) or not isinstance(record["kind"], str):
            raise TypeError
    except (ValueError, TypeError, LookupError):
        raise RlpipsError(
            f"{path}, line {number}, is {line[:80]!r}, but should be a record with a step and a kind; "
            f"remove the line, or give another folder"
        ) from None
    return {name: NOT_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def _keep(path: Path, last: int | None) -> list[dict[str, Any]]:
    """Drops, all at once, the records of steps after the last one, and returns those that stay."""
    if not path.exists():
        return []
    content = read_regular(path)
    lines, records = [], []
    unreadable: RlpipsError | None = None
    for number, line in enumerate(content.splitlines(keepends=True) if last is not None else [], 1):
        try:
            record = _record(path, number, line)
        except RlpipsError as error:
            # Only what was written after the last flush can be torn, and that is dropped anyhow.
            unreadable = error
            continue
        if record["step"] <= last:
            if unreadable is not None:
                raise unreadable
            lines.append(line.rstrip() + b"\n")
            records.append(record)
    if (kept := b"".join(lines)) != content:
        with replacing(path, durable=True) as file:
            file.write(kept)
    return records


def _plain(name: str, value: Value) -> float | int | str:
    """A number as Python has it, with every digit of what it was; a word as it is."""
    if isinstance(value, str):
        if value in NOT_FINITE:
            raise RlpipsError(f"{name} is the word {value}, which would be read as a number; give the number itself")
        return value
    item = getattr(value, "item", None)
    number = item() if item is not None and getattr(value, "size", 0) == 1 else value
    if not isinstance(number, int | float):
        raise RlpipsError(f"{name} is {value!r}, but should be one number, or a word")
    return number


def _legal(value: float | int | str) -> float | int | str:
    if isinstance(value, float) and not math.isfinite(value):
        return next(name for name, number in NOT_FINITE.items() if str(number) == str(value))
    return value


class _Events:
    """An event file of TensorBoard, which hides what earlier files in its folder have from a first step on.

    tensorboardX's `SummaryWriter` would write it in a thread; a full disk ends that unnoticed, and then blocks the run.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        # The names in these modules are made at run time.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        folder.mkdir(exist_ok=True)
        earlier = len(list(folder.iterdir()))
        # TensorBoard reads files in the order of their names, and a clock may be set back.
        self.path = folder / f"events.out.tfevents.{earlier:06d}.{socket.gethostname()}"
        self._file = RecordWriter(str(self.path))
        try:
            self._write(file_version="brain.Event:2")
            self._write(step=first, session_log=events.SessionLog(status=events.SessionLog.START))
            self.flush()
            sync(folder)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=scalars))
        if time.monotonic() > self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all events are on the disk, where TensorBoard sees them."""
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())

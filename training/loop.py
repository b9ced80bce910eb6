"""The loop of a run: steps, checkpoints and evaluations of any training that says what these are in a `Task`.

Killed at any moment and started again, a run goes on from its newest whole checkpoint and ends with the same bits as
one that was never interrupted: its batches and all random draws depend on the seed and the step's number alone.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from rlpips_jax.errors import TrainingError
from rlpips_jax.files.atomic import replacing
from training.checkpoint import Checkpoints
from training.devices import on_first, say
from training.logs import RECORDS, MetricLog, read
from training.stopping import Interrupted, Stopping

BAD_BATCH = "non-finite-batch.npz"

Rows = Mapping[str, np.ndarray]
"""The rows of a batch that this process holds, by the names of columns."""


@dataclass(frozen=True)
class Task:
    """What a run does; all of it depends on a seed and on the number of the step alone.

    Attributes:
        total: steps.
        evaluate_every: steps between evaluations; the last step is evaluated too.
        checkpoint_every: steps between checkpoints; one is written before every evaluation too.
        feed: `steps done -> rows of the batches that follow`, without end.
        step: `state, rows -> state, report`, the report a named tuple of scalars. `finite` among them says whether the
            step was taken; the others are logged, unless they are NaN.
        evaluate: `state, steps done, whether to leave off -> values by name`; of a run that has done no step, the
            values of what it starts from. Raises `Interrupted` where it is left off.
        score: `values of an evaluation -> score` by which the best checkpoint is chosen; NaN for none.
        identity: what a run that goes on must begin with again: values that JSON can say, by what they are.
    """

    total: int
    evaluate_every: int
    checkpoint_every: int
    feed: Callable[[int], Generator[Rows, None, None]]
    step: Callable[[Any, Rows], tuple[Any, Any]]
    evaluate: Callable[[Any, int, Callable[[], bool]], Mapping[str, float]]
    score: Callable[[Mapping[str, Any]], float]
    identity: dict[str, Any]

    def evaluates(self, number: int) -> bool:
        """Whether an evaluation follows after so many steps; before the first one it always does."""
        return number % self.evaluate_every == 0 or number == self.total


@dataclass(frozen=True)
class Finished:
    """The end of a run.

    Attributes:
        state: after the last step, or at the best checkpoint.
        step: its number.
        records: the log; empty on all processes but the first.
    """

    state: Any
    step: int
    records: list[dict[str, Any]]

    def record(self, kind: str, step: int) -> dict[str, Any]:
        """The record of a kind at a step; empty where there is none."""
        return next((one for one in self.records if (one["kind"], one["step"]) == (kind, step)), {})


@contextlib.contextmanager
def finished(
    task: Task, state: Any, *, out: Path, stopping: Stopping, keep: int = 2, export: Literal["last", "best"] = "last"
) -> Iterator[Finished]:
    """Goes on with the run of a folder, or begins it, and holds the folder until the end of the block.

    Args:
        task: what the run does.
        state: before the first step, placed on the devices as it stays.
        out: the folder.
        stopping: asked after each step.
        keep: checkpoints to keep beside the best.
        export: which state is wanted: after the last step, or the one with the best score.

    Raises:
        TrainingError: the folder's run began otherwise, or a loss is not finite.
        SystemExit: 0, when somebody asked to stop and all is saved.
        LogError: the log cannot be written.
        CheckpointError: a checkpoint cannot be written, or none of those there are is whole.
    """
    with Checkpoints(out / "checkpoints", keep=keep) as checkpoints:
        restored = checkpoints.restore(state)
        done = 0
        if restored is not None:
            _check_identity(out, restored.extra, task.identity)
            state, done = restored.state, restored.step
            say(f"resumed at step {done} of {task.total}")
        with MetricLog(out, resumed_at=restored and restored.step, intact=lambda: checkpoints.intact) as log:
            evaluated = [record for record in log.kept if record["kind"] == _kind(record["step"]) != "reference"]
            scores = on_first(lambda: [(record["step"], task.score(record)) for record in evaluated], TrainingError)
            checkpoints.scores = dict(scores)
            state, number = _Loop(task, out, checkpoints, log, stopping).run(state, done), task.total
            if export == "best" and (best := checkpoints.restore(state, best=True)) is not None:
                state, number = best.state, best.step
                say(f"the best checkpoint is that of step {number}")
            log.flush()
            yield Finished(state, number, read(out / RECORDS) if jax.process_index() == 0 else [])


def _check_identity(folder: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises a TrainingError where a run would go on with other contents than it began with."""
    if changed := [name for name in identity if found.get(name) != identity[name]]:
        raise TrainingError(
            f"{folder} holds a run that began otherwise: {', '.join(changed)} changed since; restore what was there, "
            "or give another --out"
        )


def _kind(number: int) -> str:
    """What the record of an evaluation after so many steps is called."""
    return "evaluation" if number else "reference"


@dataclass(frozen=True)
class _Loop:
    task: Task
    out: Path
    checkpoints: Checkpoints
    log: MetricLog
    stopping: Stopping

    def run(self, state: Any, done: int) -> Any:
        """Takes the steps that are left, and returns the state after the last one."""
        task = self.task
        # A run may have been stopped or killed between a step and its evaluation.
        if task.evaluates(done) and not self.log.has(done, _kind(done)):
            self.evaluate(state, done)
        if self.stopping.is_asked():
            self.stop(done)
        bar = tqdm(total=task.total, initial=done, unit="step", mininterval=1, disable=jax.process_index() > 0)
        pending: tuple[int, Any, Rows] | None = None
        with bar, contextlib.closing(task.feed(done)) as feed:
            for number in range(done + 1, task.total + 1):
                rows = next(feed)
                state, report = task.step(state, rows)
                if pending is not None:
                    # The previous report is read while this step computes.
                    self.record(*pending, bar)
                pending = number, report, rows
                stop = self.stopping.is_asked()
                if stop or task.evaluates(number) or number % task.checkpoint_every == 0:
                    self.record(*pending, bar)
                    pending = None
                    self.log.flush()
                    self.checkpoints.save(number, state, extra=task.identity)
                    if task.evaluates(number) and not stop:
                        self.evaluate(state, number)
                        stop = self.stopping.is_asked()
                    if stop:
                        self.stop(number)
        self.checkpoints.wait()
        return state

    def record(self, number: int, report: Any, rows: Rows, bar: Any) -> None:
        """Reads and logs what a step reported; stops where it was not finite."""
        values = {name: float(value) for name, value in report._asdict().items() if name != "finite"}
        if not bool(report.finite):
            process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
            path = self.out / BAD_BATCH.replace(".npz", f"{process}.npz")
            kept = f"is in {path}"
            try:
                with replacing(path) as file:
                    np.savez(file, **rows)  # pyright: ignore[reportArgumentType]
            except OSError as error:
                kept = f"could not be kept ({error})"
            shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise TrainingError(
                f"step {number} is not finite ({shown}); its batch {kept}, and {self.checkpoints.intact}. Look "
                "at that batch, or try a lower --rate in another --out"
            )
        self.log.write(number, "step", {name: value for name, value in values.items() if not math.isnan(value)})
        bar.update(1)
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

    def evaluate(self, state: Any, number: int) -> None:
        """Evaluates a state and logs the values.

        An evaluation that is left off is not logged, and the run that goes on from there makes it again.
        """
        # However long it takes, and however it ends, the step is not lost.
        self.checkpoints.wait()
        try:
            values = self.task.evaluate(state, number, self.stopping.is_asked)
        except Interrupted:
            return
        if number:
            self.checkpoints.rate(number, self.task.score(values))
        self.log.write(number, _kind(number), values)

    def stop(self, number: int) -> NoReturn:
        """Ends the program, when all that was begun is on disk."""
        self.checkpoints.wait()
        say(f"stopped at step {number} of {self.task.total}; the same command goes on from there")
        raise SystemExit(0)

"""Checkpoints of a run: written beside the training, committed whole or not at all, and never read unverified.

Orbax's `CheckpointManager` writes, commits, keeps and removes them. Three things it does not do are done here: it does
not notice a flipped bit in what it reads; it keeps the best by scores known when it writes, and ours are known only
after an evaluation, before which the step must be safe; and it does not say in plain words that a disk is full.

    12/state/      the arrays
    12/record/     JSON: what the run wrote beside the arrays, and the arrays' types and shapes
    12/SHA256SUMS  checksums of all of these; beside the folder, `sha256sum --check 12/SHA256SUMS` reads them
    damaged/       checkpoints that do not match their checksums
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rlpips_jax.errors import CheckpointError, CheckpointMismatch, CheckpointWarning
from rlpips_jax.files.atomic import sync
from rlpips_jax.files.locks import locked
from rlpips_jax.files.regular import read_regular
from rlpips_jax.warning import warn_user
from training.devices import on_first

SUMS = "SHA256SUMS"
DAMAGED = "damaged"
REMOVED = "removed"
"""Where a checkpoint is moved, at once, before it is deleted file by file: half deleted it would look damaged."""
UNCHECKED = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""What Orbax writes after the checksums: times and names of its classes, which decide nothing that is read here."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint, read.

    Attributes:
        step: of the checkpoint.
        state: like the template.
        extra: what the run wrote beside it.
    """

    step: int
    state: Any
    extra: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask JAX whether somebody wants the processes to stop.

    JAX gives that answer once, to the one count of questions that all processes have agreed on: `training.stopping`
    counts them, and would miss it if there were another count beside its own.
    """

    def reached_preemption(self, step: int) -> bool:
        """Always False; the loop stops the run."""
        return False


class Checkpoints:
    """The checkpoints of a run: the last ones, and the best.

    One run at a time uses a folder. All processes of a run with several make the same calls and share the folder; the
    first process alone decides which checkpoints are whole.

    The best checkpoint has the highest score; those without a score, or with NaN, come behind all others; of equals,
    the later is better. Scores are kept in memory: a run that goes on takes those so far from its log.

    Args:
        folder: where checkpoints lie; made if it is not there.
        keep: how many of the last ones to keep, beside the best.

    Attributes:
        scores: by step; the higher, the better.

    Raises:
        CheckpointError: another run uses the folder, or it cannot be written.

    Warns:
        CheckpointWarning: a checkpoint is damaged, and was moved to `damaged/`.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise CheckpointError(f"at least 1 checkpoint has to be kept, not {keep}")
        self._folder = folder.absolute()
        self._keep = keep
        self._lock = contextlib.ExitStack()
        self._writing: tuple[int, int] | None = None
        self.scores: dict[int, float] = {}
        on_first(self._open, CheckpointError)
        self._manager = _Manager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                cleanup_tmp_directories=True,
                todelete_subdir=REMOVED,
                # Called when all files are there, before the folder gets its name.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self.wait()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(str(failed))
        finally:
            with contextlib.suppress(Exception):  # What went wrong was said above.
                self._manager.close()
            self._lock.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints on disk, rising; one that `wait` was not called for is not among them."""
        writing = self._writing and self._writing[0]
        return tuple(step for step in self._manager.all_steps() if step != writing)

    @property
    def last(self) -> int | None:
        """Step of the newest checkpoint on disk."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint on disk."""
        return self._best(self.steps)

    @property
    def intact(self) -> str:
        """The sentence on its checkpoints with which a run that fails ends."""
        with contextlib.suppress(CheckpointError):
            self.wait()
        if self.last is None:
            return "no checkpoint is there yet"
        return f"the last good checkpoint, step {self.last}, is intact"

    def save(self, step: int, state: Any, *, extra: dict[str, Any] | None = None) -> None:
        """Begins to write a checkpoint; returns when the state is copied and may be donated.

        Args:
            step: later than that of every other checkpoint.
            state: a pytree of arrays: JAX's, of random keys too, or NumPy's.
            extra: what else the run needs to go on, as JSON can say it.

        Raises:
            CheckpointError: this checkpoint cannot be written, or the one before could not; those on disk are intact.
            CheckpointMismatch: the state holds something other than arrays.
        """
        self.wait()
        if self.last is not None and step <= self.last:
            raise CheckpointError(f"{self._folder} holds step {self.last} already; step {step} is not later")
        record = {"extra": extra or {}, "arrays": _descriptions(state)}
        json.dumps(record)  # Raises before anything is written.
        self._writing = step, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        try:
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:
            raise self._failure(error) from error

    def rate(self, step: int, score: float) -> None:
        """Gives a checkpoint its score, in place of an earlier one, and removes those that need not be kept any more.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        self.wait()
        if step not in self.steps:
            raise CheckpointError(f"{self._folder} has no step {step} to rate; it has {list(self.steps)}")
        self.scores[step] = score
        for old in set(self.steps) - self._kept(self.steps):
            self._manager.delete(old)
        self._clear_removed()

    def wait(self) -> None:
        """Returns when the checkpoint that was begun is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._writing = None
        self._clear_removed()

    def restore(self, template: Any, *, best: bool = False) -> Restored | None:
        """The newest whole checkpoint, or the best; None if the run has none yet.

        Args:
            template: a state like the one saved: its structure, shapes, types, and shardings; arrays, or
                `jax.ShapeDtypeStruct`s.
            best: the best one in place of the newest.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
            CheckpointMismatch: the checkpoint is of another state than the template.

        Warns:
            CheckpointWarning: a checkpoint is damaged; it was moved to `damaged/`, and the next one is taken.
        """
        self.wait()
        while (step := self.best if best else self.last) is not None:
            if on_first(lambda step=step: self._is_whole(step), CheckpointError):
                return self._read(step, template)
            self._manager.reload()
        on_first(self._refuse_to_forget, CheckpointError)
        return None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's question which checkpoints to keep."""
        kept = self._kept([one.step for one in checkpoints])
        return [one.step in kept for one in checkpoints]

    def _kept(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best(steps)}

    def _best(self, steps: Sequence[int]) -> int | None:
        def rank(step: int) -> tuple[bool, float, int]:
            score = self.scores.get(step, math.nan)
            return not math.isnan(score), 0.0 if math.isnan(score) else score, step

        return max(steps, key=rank, default=None)

    def _open(self) -> None:
        """Takes the folder, and sets damaged checkpoints aside."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._folder / "lock"))
            for earlier in self._folder.glob("*/checkpoint.json"):
                raise CheckpointError(f"{earlier} was written by an earlier version; train in another folder")
            self._clear_removed()
            for step in sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()):
                self._is_whole(step)
            self._lock = stack.pop_all()

    def _is_whole(self, step: int) -> bool:
        """Whether a checkpoint matches its checksums; moves it aside and warns if it does not."""
        folder, aside = self._folder / str(step), self._folder / DAMAGED / str(step)
        damage = _damage(folder)
        if damage is None:
            return True
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
        warn_user(f"{folder} is damaged ({damage}) and not used; it was moved to {aside}", CheckpointWarning)
        return False

    def _refuse_to_forget(self) -> None:
        """A run whose checkpoints are all damaged must not begin anew without being told to."""
        if damaged := sorted((self._folder / DAMAGED).glob("*")):
            reasons = ", ".join(f"{path} ({_damage(path) or 'whole, but moved there'})" for path in damaged)
            raise CheckpointError(
                f"{self._folder} holds no whole checkpoint, but damaged ones: {reasons}; to train from the beginning, "
                f"remove {self._folder}"
            )

    def _read(self, step: int, template: Any) -> Restored:
        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._manager.restore(step, args=arguments)["record"]
        if differences := list(_differences(record["arrays"], _descriptions(template))):
            shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
            raise CheckpointMismatch(
                f"{self._folder / str(step)} is of another state ({len(differences)} differences): {shown}; train with "
                "the options of that run, or in another folder"
            )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(template))
        return Restored(step, self._manager.restore(step, args=arguments)["state"], record["extra"])

    def _seal(self) -> None:
        """Writes the checksums of the checkpoint that is being written."""
        if self._writing is not None:
            (folder,) = self._folder.glob(f"{self._writing[0]}.*")
            (folder / SUMS).write_bytes(_sums(folder, self._writing[0], durable=True))
            sync(folder / SUMS)
            sync(folder)

    def _clear_removed(self) -> None:
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / REMOVED, ignore_errors=True)

    def _failure(self, error: Exception) -> CheckpointError:
        """Clears away what was written of a checkpoint, and says why it could not be completed."""
        step, size = self._writing or (0, 0)
        self._writing = None
        if jax.process_index() == 0:
            for partial in self._folder.glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
        self._manager.reload()
        if not is_full(error):
            return CheckpointError(f"{self._folder / str(step)} could not be written; {self.intact}: {error}")
        return CheckpointError(
            f"the disk is full: the checkpoint of step {step} takes up to {_megabytes(size)}, and {self._folder} has "
            f"{_megabytes(shutil.disk_usage(self._folder).free)} free; {self.intact}: free some space, and start the "
            "run again"
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{math.ceil(count / 1e3)} kB"


def _descriptions(state: Any) -> dict[str, str]:
    """Types and shapes, such as `float32[64,3]`, of a state's arrays by their place in it, such as `heads/0`."""
    found: dict[str, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise CheckpointMismatch(f"{name} is {leaf!r}, but a state holds arrays; make it one, as by jnp.asarray")
        if name in found:
            raise CheckpointMismatch(f"two arrays of the state are called {name}; rename one")
        found[name] = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return found


def _differences(found: dict[str, str], wanted: dict[str, str]) -> Iterator[str]:
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            yield f"it has no {name}"
        elif name not in wanted:
            yield f"its {name} has no place here"
        elif found[name] != wanted[name]:
            yield f"its {name} is {found[name]}, but should be {wanted[name]}"


def _sums(folder: Path, step: int | str, *, durable: bool = False) -> bytes:
    """Checksums of the files of a step's checkpoint, which are flushed to the disk on the way if need be."""
    lines: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.parent != folder or path.name not in (SUMS, *UNCHECKED)):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {step}/{path.relative_to(folder).as_posix()}\n".encode())
        if durable:
            sync(path)
    return b"".join(lines)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        written, found = read_regular(folder / SUMS), _sums(folder, folder.name)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    if written == found:
        return None
    names = sorted(line.partition(b"  ")[2] for line in {*written.splitlines()} ^ {*found.splitlines()})
    if not names:
        return f"{folder / SUMS} is not what was written"
    path = folder.parent / names[0].decode(errors="replace")
    if not path.exists():
        return f"{folder / SUMS} names {path}, and there is no such file"
    return f"{path} is not what was written"


def is_full(error: BaseException | None) -> bool:
    """Whether an error began with a full disk; of that, Orbax's threads pass on the text alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False

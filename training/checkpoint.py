"""Checkpoints of a run: written beside the training by Orbax, whole or not at all, and never read unverified.

A checkpoint is a folder named by its step:

    12/state/           the arrays, as Orbax writes them; each is named by its place in the state
    12/checkpoint.json  step, what the run wrote beside the arrays, and the arrays' shapes and types
    12/SHA256SUMS       checksums of all of these, as `sha256sum --check` reads them

Beside them, `scores.json` has the scores of all, which are known later than they are written, and its own checksum.

A checkpoint is written as `12.partial`, flushed to the disk, and renamed when it is whole, so that a run that is killed
at any moment leaves whole checkpoints alone. Orbax finds no flipped bit in what it reads; the checksums do. What they
do not vouch for goes to `damaged/`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rlpips_jax.errors import CheckpointError, CheckpointMismatch, CheckpointWarning, RlpipsError
from rlpips_jax.files.locks import locked
from rlpips_jax.warning import warn_user

ARRAYS = "state"
RECORD = "checkpoint.json"
SUMS = "SHA256SUMS"
SCORES = "scores.json"
DAMAGED = "damaged"
PARTIAL = ".partial"
"""Ends the name of a checkpoint that is being written or removed; whoever opens the folder removes what is left."""

T = TypeVar("T")


class Restored(NamedTuple):
    """A checkpoint, read."""

    step: int
    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run: the last ones, and the best.

    One run at a time uses a folder. All processes of a run that has several make the same calls, and share the
    folder; the first one alone writes what is not arrays, and decides which checkpoints are whole.

    The best checkpoint has the highest score; one without a score, or whose score is NaN, is behind all that have
    one; of equals, the later is better.

    Args:
        folder: where checkpoints lie; made if it is not there.
        keep: how many of the last ones to keep, beside the best.

    Raises:
        CheckpointError: another run uses the folder, or it cannot be written.

    Warns:
        CheckpointWarning: a checkpoint is damaged; it was moved to `damaged/`. Or the scores are.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise CheckpointError(f"at least 1 checkpoint has to be kept, not {keep}")
        self._folder = folder.absolute()
        self._keep = keep
        self._lock = contextlib.ExitStack()
        self._scores: dict[int, float | None] = dict(_on_first(self._open))
        self._checkpointer = ocp.StandardCheckpointer()
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

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
            self._background.shutdown()
            with contextlib.suppress(Exception):  # What went wrong in it was said above.
                self._checkpointer.close()
            self._lock.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints on disk, rising; one that is still being written is not among them."""
        return tuple(sorted(self._scores))

    @property
    def last(self) -> int | None:
        """Step of the newest checkpoint on disk."""
        return max(self._scores, default=None)

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint on disk."""
        return max(self._scores, key=lambda step: _rank(self._scores[step], step), default=None)

    @property
    def intact(self) -> str:
        """What a run that fails says of its checkpoints."""
        if self.last is None:
            return "no checkpoint is there yet"
        return f"the last good checkpoint, step {self.last}, is intact"

    def save(self, step: int, state: Any, *, extra: dict[str, Any] | None = None) -> None:
        """Begins to write a checkpoint; returns when the state is copied and may be donated.

        Args:
            step: later than that of every other checkpoint.
            state: a pytree of arrays: JAX's, of random keys too, or NumPy's.
            extra: what else the run needs to go on; whatever JSON can say.

        Raises:
            CheckpointError: this checkpoint cannot be written, or the one before could not; those on disk are intact.
            CheckpointMismatch: the state holds something other than arrays.
        """
        self.wait()
        if self.last is not None and step <= self.last:
            raise CheckpointError(f"{self._folder} holds step {self.last} already; step {step} is not later")
        leaves = _leaves(state)
        arrays = {name: _description(leaf) for name, leaf in leaves.items()}
        record = json.dumps({"step": step, "extra": extra or {}, "arrays": arrays}, indent=1)
        partial, size = self._partial(step), sum(leaf.nbytes for leaf in leaves.values())
        try:
            if jax.process_index() == 0:
                partial.mkdir()
            self._checkpointer.save(partial / ARRAYS, {name: _plain(leaf) for name, leaf in leaves.items()})
        except Exception as error:
            raise self._failure(step, size, error) from error
        self._writing = self._background.submit(self._finish, step, record, size)

    def rate(self, step: int, score: float) -> None:
        """Records a checkpoint's score on the disk, where it takes the place of an earlier one.

        Args:
            step: of a checkpoint on disk, or one that was begun.
            score: what `best` goes by; the higher, the better. NaN counts as none.

        Raises:
            CheckpointError: there is no such checkpoint, or its score cannot be written.
        """
        self.wait()
        if step not in self._scores:
            raise CheckpointError(f"{self._folder} has no step {step} to rate; it has {list(self.steps)}")
        scores = self._scores | {step: float(score) if math.isfinite(score) else None}
        _on_first(lambda: self._write_scores(scores))
        self._keep_of(scores)

    def wait(self) -> None:
        """Returns when the checkpoint that was begun is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None:
            # An interrupt while it waits leaves it to be waited for.
            self._writing.exception()
            writing, self._writing = self._writing, None
            writing.result()

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
            record = _on_first(lambda step=step: self._vouched(step))
            if record is not None:
                return self._read(step, record, template)
            del self._scores[step]
        _on_first(self._refuse_to_forget)
        return None

    def _open(self) -> list[tuple[int, float | None]]:
        """Takes the folder, clears it of what a killed run left, and returns the steps and scores in it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(locked(self._folder / "lock"))
        try:
            for partial in self._folder.glob(f"*{PARTIAL}"):
                if partial.stem.isdecimal():
                    shutil.rmtree(partial)
            steps = sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())
            records = {step: self._vouched(step) for step in steps}
            scores = self._read_scores()
            # Checkpoints of earlier versions have their scores within.
            return [
                (step, scores.get(str(step), record.get("score")))
                for step, record in records.items()
                if record is not None
            ]
        except BaseException:
            self._lock.close()
            raise

    def _vouched(self, step: int) -> dict[str, Any] | None:
        """The record of a whole checkpoint; None, and a warning, for a damaged one, which is moved aside."""
        folder, aside = self._folder / str(step), self._folder / DAMAGED / str(step)
        damage = _damage(folder)
        if damage is None:
            return json.loads((folder / RECORD).read_text())
        if folder.exists():
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
            settle(self._folder)
        warn_user(f"{folder} is damaged ({damage}) and not used; what there is of it is now {aside}", CheckpointWarning)
        return None

    def _read_scores(self) -> dict[str, float | None]:
        """Scores by step; none, and a warning, where they are damaged."""
        path = self._folder / SCORES
        try:
            found = json.loads(path.read_bytes())
            if found["sha256"] == _digest(found["scores"]):
                return found["scores"]
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, LookupError):
            pass
        warn_user(f"{path} is damaged and not used; the checkpoints so far count as not evaluated", CheckpointWarning)
        return {}

    def _write_scores(self, scores: dict[int, float | None]) -> None:
        path = self._folder / SCORES
        partial = path.with_name(SCORES + PARTIAL)
        named = {str(step): score for step, score in scores.items()}
        try:
            with partial.open("w") as file:
                json.dump({"scores": named, "sha256": _digest(named)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            settle(self._folder)
        except OSError as error:
            why = "the disk is full: " if is_full(error) else ""
            raise CheckpointError(f"{why}{path} could not be written; {self.intact}: {error}") from error

    def _refuse_to_forget(self) -> None:
        damaged = sorted((self._folder / DAMAGED).glob("*"))
        if damaged:
            reasons = ", ".join(f"{path} ({_damage(path) or 'whole, but moved there'})" for path in damaged)
            raise CheckpointError(
                f"{self._folder} holds no whole checkpoint, but damaged ones: {reasons}; to train from the beginning, "
                f"remove {self._folder}"
            )

    def _read(self, step: int, record: dict[str, Any], template: Any) -> Restored:
        leaves = _leaves(template)
        wanted = {name: _description(leaf) for name, leaf in leaves.items()}
        if differences := list(_differences(record["arrays"], wanted)):
            shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
            raise CheckpointMismatch(
                f"{self._folder / str(step)} is of another state ({len(differences)} differences): {shown}; "
                f"train with the options of that run, or in another folder"
            )
        abstract = {name: _abstract(leaf) for name, leaf in leaves.items()}
        arrays = self._checkpointer.restore(self._folder / str(step) / ARRAYS, abstract)
        state = [_like(leaf, arrays[name]) for name, leaf in leaves.items()]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(template), state), record["extra"])

    def _finish(self, step: int, record: str, size: int) -> None:
        """Completes, in the background, what `save` began, and removes what need not be kept."""
        partial = self._partial(step)
        try:
            self._checkpointer.wait_until_finished()
            if jax.process_index() == 0:
                (partial / RECORD).write_text(record)
                (partial / SUMS).write_bytes(_sums(partial, settling=True))
                settle(partial / SUMS)
                settle(partial)
                partial.rename(self._folder / str(step))
                settle(self._folder)
        except Exception as error:
            raise self._failure(step, size, error) from error
        self._keep_of(self._scores | {step: None})

    def _keep_of(self, scores: dict[int, float | None]) -> None:
        """Keeps the last checkpoints and the best, and removes the others."""
        best = max(scores, key=lambda step: _rank(scores[step], step))
        kept = {*sorted(scores)[-self._keep :], best}
        self._scores = {step: scores[step] for step in kept}
        if jax.process_index() == 0:
            for old in scores.keys() - kept:
                # Half removed, it would look damaged.
                try:
                    (self._folder / str(old)).rename(self._partial(old))
                    shutil.rmtree(self._partial(old))
                except OSError as error:
                    raise CheckpointError(f"{self._folder / str(old)} could not be removed: {error}") from error

    def _partial(self, step: int) -> Path:
        return self._folder / f"{step}{PARTIAL}"

    def _failure(self, step: int, size: int, error: Exception) -> CheckpointError:
        """Clears what was written of a checkpoint, and says why it was not."""
        if jax.process_index() == 0:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        if not is_full(error):
            return CheckpointError(f"{self._partial(step)} could not be written; {self.intact}: {error}")
        free = shutil.disk_usage(self._folder).free
        return CheckpointError(
            f"the disk is full: the checkpoint of step {step} takes up to {size / 1e6:.1f} MB, and {self._folder} has "
            f"{free / 1e6:.1f} MB free; {self.intact}: free some space, and start the run again"
        )


def _digest(scores: dict[str, float | None]) -> str:
    return hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()


def _rank(score: float | None, step: int) -> tuple[bool, float, int]:
    return score is not None, score or 0.0, step


def _leaves(state: Any) -> dict[str, Any]:
    """A state's arrays by their place in it, such as `parameters/heads/0`."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise CheckpointMismatch(f"{name} is {leaf!r}, but a state holds arrays; make it one, as by jnp.asarray")
        if name in leaves:
            raise CheckpointMismatch(f"two arrays of the state are called {name}; rename one")
        leaves[name] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_global(leaf: Any) -> bool:
    """Whether Orbax places an array by its sharding; among several processes it refuses one that each has a copy of."""
    sharding = getattr(leaf, "sharding", None)
    return sharding is not None and (jax.process_count() == 1 or not sharding.is_fully_addressable)


def _description(leaf: Any) -> str:
    """A type and a shape, such as `float32[64,3]`; random keys' types name how they are drawn from."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _plain(leaf: Any) -> Any:
    """What of an array Orbax writes."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return leaf if _is_global(leaf) else np.array(leaf)


def _abstract(leaf: Any) -> Any:
    """What Orbax needs to know to read an array."""
    plain = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(plain.shape, plain.dtype, sharding=leaf.sharding if _is_global(leaf) else None)


def _like(leaf: Any, array: Any) -> Any:
    """What was read, as the template has it."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(array)
    placed = array if _is_global(leaf) else jax.device_put(np.asarray(array), leaf.sharding)
    if _is_key(leaf):
        # The template may be abstract, of which JAX does not say how its keys are drawn from.
        return jax.random.wrap_key_data(placed, impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
    # What NumPy holds may have 64 bits, which JAX halves unless it is told not to.
    return placed if placed.dtype == leaf.dtype else np.asarray(array)


def _differences(found: dict[str, str], wanted: dict[str, str]) -> Iterator[str]:
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            yield f"it has no {name}"
        elif name not in wanted:
            yield f"its {name} has no place here"
        elif found[name] != wanted[name]:
            yield f"its {name} is {found[name]}, but should be {wanted[name]}"


def _sums(folder: Path, *, settling: bool = False) -> bytes:
    """Checksums of all files of a checkpoint, which are flushed to the disk on the way if need be."""
    lines: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            if settling:
                settle(path)
        elif path != folder / SUMS:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if settling:
                    os.fsync(file.fileno())
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n".encode())
    return b"".join(lines)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    try:
        written, found = (folder / SUMS).read_bytes(), _sums(folder)
        if written == found:
            step = json.loads((folder / RECORD).read_bytes())["step"]
            return None if str(step) == folder.name else f"it is of step {step}"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    then, now = _by_name(written), _by_name(found)
    for name in sorted(then.keys() - now.keys()):
        return f"{folder / name} is missing"
    for name in sorted(now):
        if then.get(name) != now[name]:
            return f"{folder / name} is not what was written"
    return f"{folder / SUMS} is not what was written"


def _by_name(sums: bytes) -> dict[str, str]:
    lines = (line.partition("  ") for line in sums.decode(errors="replace").splitlines())
    return {name: digest for digest, _, name in lines}


def settle(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def is_full(error: BaseException | None) -> bool:
    """Whether what went wrong began with a full disk, of which Orbax's threads give the text alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False


def _on_first(action: Callable[[], T]) -> T:
    """What an action of the first process comes to, on every process: a value that JSON can say, or an error."""
    if jax.process_count() == 1:
        return _outcome(action)
    outcome: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            outcome = {"value": _outcome(action)}
        except CheckpointError as error:
            outcome = {"error": str(error)}
    content = json.dumps(outcome).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    sent = np.frombuffer(content.ljust(size)[:size], np.uint8)
    outcome = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())
    if "error" in outcome:
        raise CheckpointError(outcome["error"])
    return outcome["value"]


def _outcome(action: Callable[[], T]) -> T:
    try:
        return action()
    except CheckpointError:
        raise
    except (RlpipsError, OSError) as error:
        raise CheckpointError(str(error)) from error

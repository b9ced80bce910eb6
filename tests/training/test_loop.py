"""The loop on a small regression: stopped, damaged, out of space or not finite, a run ends as one left alone does.

`test_train.py` has the same of whole runs that train a metric.
"""

import errno
import functools
import json
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.errors import CheckpointError, CheckpointWarning, LogError, TrainingError
from training import loop
from training.logs import RECORDS, MetricLog, read
from training.loop import Finished, Task
from training.stopping import Interrupted, Stopping, listening

TOTAL = 6


class Report(NamedTuple):
    loss: jax.Array
    skipped: jax.Array
    finite: jax.Array


State = dict[str, jax.Array]


@jax.jit
def step(state: State, rows: dict[str, jax.Array]) -> tuple[State, Report]:
    loss, slope = jax.value_and_grad(lambda w: jnp.mean((rows["x"] @ w - rows["y"]) ** 2))(state["w"])
    finite = jnp.isfinite(loss)
    return {"w": jnp.where(finite, state["w"] - 0.1 * slope, state["w"])}, Report(loss, jnp.float32(jnp.nan), finite)


def feed(done: int) -> Generator[dict[str, np.ndarray], None, None]:
    while True:
        rng = np.random.default_rng(done)
        yield {"x": rng.normal(size=(8, 4)).astype(np.float32), "y": rng.normal(size=8).astype(np.float32)}
        done += 1


def evaluate(state: State, number: int, interrupted: Callable[[], bool]) -> dict[str, float]:
    """The less was learnt the better, so that the best checkpoint is not the last."""
    if interrupted():
        raise Interrupted
    return {"people/natural": -float(jnp.sum(state["w"] ** 2))}


TASK = Task(
    total=TOTAL,
    evaluate_every=3,
    checkpoint_every=2,
    feed=feed,
    step=step,
    evaluate=evaluate,
    score=lambda values: values["people/natural"],
    identity={"the number of steps": TOTAL, "the data": ["one"]},
)


def run(out: Path, stopping: Stopping | None = None, **options: Any) -> Finished:
    task = Task(**vars(TASK) | {name: options.pop(name) for name in vars(TASK).keys() & options.keys()})
    with loop.finished(task, {"w": jnp.zeros(4)}, out=out, stopping=stopping or Stopping(), **options) as end:
        return end


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Finished]:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run(out)


def check_same_bits(out: Path, end: Finished, whole: tuple[Path, Finished]) -> None:
    assert (out / RECORDS).read_bytes() == (whole[0] / RECORDS).read_bytes()
    assert end.records == whole[1].records
    assert end.step == whole[1].step
    np.testing.assert_array_equal(end.state["w"], whole[1].state["w"])


def steps_of(folder: Path, kind: str) -> list[int]:
    return [record["step"] for record in read(folder / RECORDS) if record["kind"] == kind]


def test_every_step_and_evaluation_is_logged_once(whole) -> None:
    out, end = whole
    assert steps_of(out, "step") == list(range(1, TOTAL + 1))
    assert steps_of(out, "evaluation") == [3, TOTAL]
    assert steps_of(out, "reference") == [0]
    # What is not a number is left out, and so is what is said by the run's going on.
    assert end.records[1].keys() == {"step", "kind", "loss"}
    assert end.record("evaluation", 3)["people/natural"] < end.record("reference", 0)["people/natural"] == 0
    assert end.record("evaluation", 4) == {}


def test_stopped_and_then_damaged_it_ends_with_the_same_bits(whole, tmp_path, monkeypatch, capsys) -> None:
    out, write = tmp_path / "run", MetricLog.write

    def terminated(log: MetricLog, number: int, kind: str, values: Any) -> None:
        write(log, number, kind, values)
        if (number, kind) == (3, "step"):
            signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch, listening() as stopping:
        patch.setattr(MetricLog, "write", terminated)
        with pytest.raises(SystemExit) as exit_:
            run(out, stopping)
    assert exit_.value.code == 0
    assert "stopped at step 3 of 6; the same command goes on from there" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["2", "3"]
    files = [path for path in (out / "checkpoints" / "3" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    # How often checkpoints are written from now on changes nothing else.
    with pytest.warns(CheckpointWarning, match=r"3 is damaged"):
        end = run(out, checkpoint_every=1)
    assert "resumed at step 2 of 6" in capsys.readouterr().err
    check_same_bits(out, end, whole)


def test_stopped_during_an_evaluation_it_is_made_again(whole, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    with listening() as stopping:

        def terminated(state: State, number: int, interrupted: Callable[[], bool]) -> dict[str, float]:
            if number == 3:
                # However long an evaluation takes, the step is safe.
                assert (out / "checkpoints" / "3").exists()
                signal.raise_signal(signal.SIGTERM)
            return evaluate(state, number, interrupted)

        with pytest.raises(SystemExit) as exit_:
            run(out, stopping, evaluate=terminated)
    assert exit_.value.code == 0
    assert "stopped at step 3 of 6" in capsys.readouterr().err
    assert steps_of(out, "evaluation") == []
    check_same_bits(out, run(out), whole)


def test_the_best_checkpoint_may_have_been_evaluated_by_an_earlier_start(whole, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    with listening() as stopping, pytest.raises(SystemExit):
        run(out, stopping, feed=functools.partial(stopping_at, 5), export="best")
    end = run(out, keep=1, export="best")
    assert "the best checkpoint is that of step 3" in capsys.readouterr().err
    assert end.step == 3
    assert -float(jnp.sum(end.state["w"] ** 2)) == end.record("evaluation", 3)["people/natural"]
    assert (out / RECORDS).read_bytes() == (whole[0] / RECORDS).read_bytes()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["3", "6"]


def stopping_at(number: int, done: int) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches, and a request to stop before one of them."""
    for index, rows in enumerate(feed(done), done + 1):
        if index == number:
            signal.raise_signal(signal.SIGTERM)
        yield rows


def test_an_evaluation_after_which_the_run_is_stopped_counts(whole, tmp_path) -> None:
    out = tmp_path / "run"
    with listening() as stopping:

        def then_stopped(state: State, number: int, interrupted: Callable[[], bool]) -> dict[str, float]:
            values = evaluate(state, number, interrupted)
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            return values

        with pytest.raises(SystemExit):
            run(out, stopping, evaluate=then_stopped)
    assert steps_of(out, "evaluation") == [3]
    assert run(out, export="best").step == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(whole, tmp_path) -> None:
    out = tmp_path / "run"

    def spoilt(done: int) -> Generator[dict[str, np.ndarray], None, None]:
        for number, rows in enumerate(feed(done), done + 1):
            yield rows | {"y": np.full_like(rows["y"], np.nan)} if number == 5 else rows

    with pytest.raises(TrainingError, match=r"step 5 is not finite \(loss nan, .*step 4, is intact.*--rate") as error:
        run(out, feed=spoilt)
    batch = out / loop.BAD_BATCH
    assert str(batch) in str(error.value)
    with np.load(batch) as file:
        assert np.isnan(file["y"]).all()
        np.testing.assert_array_equal(file["x"], next(feed(4))["x"])
    assert steps_of(out, "step") == [1, 2, 3, 4]
    check_same_bits(out, run(out), whole)


def test_a_batch_that_cannot_be_kept_is_told_beside_the_reason(whole, tmp_path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def spoilt(done: int) -> Generator[dict[str, np.ndarray], None, None]:
        yield from ({**rows, "y": np.full_like(rows["y"], np.nan)} for rows in feed(done))

    monkeypatch.setattr(np, "savez", full)
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="step 1 is not finite") as error:
        run(out, feed=spoilt)
    assert f"No space left on device: '{out / loop.BAD_BATCH}'" in str(error.value)
    assert not (out / loop.BAD_BATCH).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_that_the_log_notices_costs_no_checkpoint(whole, tmp_path, monkeypatch) -> None:
    out, write = tmp_path / "run", MetricLog.write

    def filled(log: MetricLog, number: int, kind: str, values: Any) -> None:
        if number == 3:
            assert log._records is not None
            log._records.close()
            log._records = open("/dev/full", "ab")  # noqa: SIM115
        write(log, number, kind, values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricLog, "write", filled)
        message = rf"the disk is full: {out}/metrics\.jsonl could not be written; .*checkpoint, step 2, is intact"
        with pytest.raises(LogError, match=message):
            run(out)
    check_same_bits(out, run(out), whole)


def test_a_run_that_would_go_on_with_other_contents_is_refused(whole) -> None:
    records = (whole[0] / RECORDS).read_bytes()
    with pytest.raises(TrainingError, match=r"began otherwise: the number of steps, the data changed since"):
        run(whole[0], identity={"the number of steps": 7, "the data": ["one", "two"]})
    assert (whole[0] / RECORDS).read_bytes() == records


def test_a_finished_run_has_nothing_left_to_do(whole) -> None:
    def never(*_: object) -> Any:
        raise AssertionError

    check_same_bits(whole[0], run(whole[0], step=never, evaluate=never), whole)


def test_a_damaged_log_is_told_before_anything_is_overwritten(whole, tmp_path) -> None:
    out = tmp_path / "run"
    run(out)
    lines = (out / RECORDS).read_bytes().splitlines(keepends=True)
    (out / RECORDS).write_bytes(b"".join([lines[0], json.dumps([1]).encode() + b"\n", *lines[2:]]))
    with pytest.raises(Exception, match=r"metrics\.jsonl, line 2, is .* should be a record"):
        run(out)


def test_the_folder_is_held_until_the_end_of_the_block(tmp_path) -> None:
    out = tmp_path / "run"
    with (
        loop.finished(TASK, {"w": jnp.zeros(4)}, out=out, stopping=Stopping()),
        pytest.raises(CheckpointError, match="lock is held by"),
    ):
        run(out)

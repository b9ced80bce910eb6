"""Logs: no record is lost or doubled, no digit either, and TensorBoard shows the same."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpips_jax.errors import LogError, RlpipsError
from training import logs
from training.logs import MetricLog, read

ROOT = Path(__file__).resolve().parents[2]


def log(folder: Path, steps: range, *, resumed_at: int | None = None, base: float = 0) -> None:
    with MetricLog(folder, resumed_at=resumed_at) as metrics:
        for step in steps:
            metrics.write(step, "train", {"loss": base + step})
            if step % 5 == 0:
                metrics.write(step, "validation", {"2afc": base - step})


def steps(folder: Path, kind: str = "train") -> list[int]:
    return [record["step"] for record in read(folder / "metrics.jsonl") if record["kind"] == kind]


def test_what_is_written_is_read(tmp_path) -> None:
    with MetricLog(tmp_path) as metrics:
        values = {"loss": jnp.float32(0.1), "rate": 1e-4, "seen": np.int64(2**60), "on": np.array([3.5]), "of": "kodak"}
        metrics.write(0, "train", values)
        metrics.write(0, "validation", {"loss": jnp.bfloat16(1.5)})
    assert read(tmp_path / "metrics.jsonl") == [
        {
            "step": 0,
            "kind": "train",
            "loss": float(np.float32(0.1)),
            "rate": 1e-4,
            "seen": 2**60,
            "on": 3.5,
            "of": "kodak",
        },
        {"step": 0, "kind": "validation", "loss": 1.5},
    ]


@given(st.lists(st.floats()))
def test_no_digit_is_lost_and_every_line_is_legal_json(tmp_path_factory, numbers) -> None:
    folder = tmp_path_factory.mktemp("log")
    with MetricLog(folder) as metrics:
        for step, number in enumerate(numbers):
            metrics.write(step, "train", {"loss": number})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    read_back = [record["loss"] for record in read(folder / "metrics.jsonl")]
    assert [(str(number), math.copysign(1, number)) for number in read_back if number == number] == [
        (str(number), math.copysign(1, number)) for number in numbers if number == number
    ]
    assert [math.isnan(number) for number in read_back] == [math.isnan(number) for number in numbers]


@pytest.mark.parametrize("resumed_at", [0, 4, 5, 12])
def test_a_resumed_run_has_every_step_once(tmp_path, resumed_at) -> None:
    log(tmp_path, range(1, 13))
    log(tmp_path, range(resumed_at + 1, 21), resumed_at=resumed_at, base=100)
    assert steps(tmp_path) == list(range(1, 21))
    assert steps(tmp_path, "validation") == [5, 10, 15, 20]
    again = [record["step"] for record in read(tmp_path / "metrics.jsonl") if record.get("loss", 0) > 100]
    assert again == list(range(resumed_at + 1, 21))


def test_a_run_that_begins_keeps_nothing(tmp_path) -> None:
    log(tmp_path, range(4))
    log(tmp_path, range(3))
    assert steps(tmp_path) == [0, 1, 2]


def test_a_record_that_was_torn_is_dropped(tmp_path) -> None:
    log(tmp_path, range(1, 8))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for end in range(len(whole) - 1, len(whole) - 90, -1):
        path.write_bytes(whole[:end])
        assert len(read(path)) == whole[:end].count(b"\n")
        log(tmp_path, range(5, 8), resumed_at=4)
        assert path.read_bytes() == whole
    # As a file system may leave it after a loss of power.
    path.write_bytes(whole + b"\0" * 100)
    log(tmp_path, range(7, 8), resumed_at=6)
    assert path.read_bytes() == whole


def test_damage_before_the_checkpoint_is_told(tmp_path) -> None:
    log(tmp_path, range(1, 8))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    wrong = (b"{", b"[]", b"[" * 99_999, b'{"kind": "train"}', b"\xff", b'{"step": "2", "kind": "train"}')
    for damaged in (line + b"\n" for line in wrong):
        content = b"".join([lines[0], damaged, *lines[2:]])
        path.write_bytes(content)
        with pytest.raises(RlpipsError, match=r"metrics\.jsonl, line 2, is .* should be a record"):
            read(path)
        with pytest.raises(RlpipsError, match=r"metrics\.jsonl, line 2, is .* should be a record"):
            MetricLog(tmp_path, resumed_at=5)
        assert path.read_bytes() == content


def test_records_are_dropped_at_once_or_not_at_all(tmp_path, monkeypatch) -> None:
    log(tmp_path, range(1, 8))
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            MetricLog(tmp_path, resumed_at=3)
    assert path.read_bytes() == before
    log(tmp_path, range(4, 8), resumed_at=3)
    assert path.read_bytes() == before
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["metrics.jsonl", "tensorboard"]


def test_what_is_no_record_is_refused(tmp_path) -> None:
    with MetricLog(tmp_path) as metrics:
        metrics.write(3, "train", {"loss": 1.0})
        for values, message in [
            ({"loss": jnp.zeros(2)}, "loss is .* should be one number"),
            ({"loss": None}, "loss is None"),
            ({"loss": "NaN"}, "loss is the word NaN"),
            ({"step": 3}, "says its step already"),
        ]:
            with pytest.raises(RlpipsError, match=message):
                metrics.write(4, "train", values)
        for step in (2, 3):
            with pytest.raises(RlpipsError, match=f"has step 3 of train; step {step} is not later"):
                metrics.write(step, "train", {"loss": 1.0})
        metrics.write(2, "validation", {"loss": 1.0})
    assert len(read(tmp_path / "metrics.jsonl")) == 2
    with MetricLog(tmp_path, resumed_at=3) as metrics, pytest.raises(RlpipsError, match="step 3 is not later"):
        metrics.write(3, "train", {"loss": 1.0})


def test_the_first_process_alone_writes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(logs.jax, "process_index", lambda: 1)
    log(tmp_path / "log", range(1, 8))
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_records_before_a_kill_are_there(tmp_path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from training.logs import MetricLog
metrics = MetricLog(Path(sys.argv[1]))
for step in range(1, 8):
    metrics.write(step, "train", {"loss": step})
    if step == 5:
        metrics.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert run.returncode == -signal.SIGKILL
    assert steps(tmp_path) == list(range(1, 8))
    log(tmp_path, range(6, 11), resumed_at=5)
    assert steps(tmp_path) == list(range(1, 11))
    assert shown(tmp_path)["train/loss"] == [(step, float(step)) for step in range(1, 11)]


FULL = Path("/dev/full")
"""Takes nothing, as a full disk."""

full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def fill(metrics: MetricLog, name: str) -> list[IO[bytes]]:
    """From now on the disk is full for one of the two files; all that are open then."""
    records, events = metrics._records, metrics._events._file
    assert records is not None
    if name == "metrics.jsonl":
        records.close()
        metrics._records = records = FULL.open("ab")
    else:
        events._writer.close()  # pyright: ignore[reportOptionalMemberAccess]
        events._writer = FULL.open("wb")
    metrics._events._flushed = math.inf  # By themselves, events stay in memory.
    return [records, events._writer]  # pyright: ignore[reportReturnType]


def write_and_fail(metrics: MetricLog, value: float) -> None:
    with metrics:
        metrics.write(1, "train", {"loss": 1 / value})


@full
@pytest.mark.parametrize("name", ["metrics.jsonl", r"tensorboard/events\S+"])
def test_a_full_disk_is_told_once_with_the_file_and_the_checkpoint(tmp_path, name) -> None:
    """Records are noticed to be lost at once, events when the log is closed."""
    metrics = MetricLog(tmp_path, intact=lambda: "step 7 is intact")
    files = fill(metrics, name)
    message = rf"^the disk is full: {tmp_path}/{name} could not be written; step 7 is intact: free some space"
    with pytest.raises(LogError, match=message) as failed:
        write_and_fail(metrics, 1)
    assert failed.value.__cause__ is not None
    assert not hasattr(failed.value, "__notes__")
    assert all(file.closed for file in files)
    log(tmp_path, range(1, 4), resumed_at=0)
    assert steps(tmp_path) == [1, 2, 3]


@full
def test_an_error_of_the_runs_own_comes_before_that_of_a_full_disk(tmp_path) -> None:
    metrics = MetricLog(tmp_path)
    files = fill(metrics, "tensorboard")
    metrics.write(0, "train", {"loss": 1.0})
    with pytest.raises(ZeroDivisionError) as stopped:
        write_and_fail(metrics, 0)
    assert "the disk is full" in stopped.value.__notes__[0]
    assert all(file.closed for file in files)


def test_another_failure_to_write_is_told_as_it_is(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"file/metrics\.jsonl could not be written; .*Not a directory|File exists"):
        MetricLog(tmp_path / "file")

    def unreachable(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    metrics = MetricLog(tmp_path / "log")
    with monkeypatch.context() as patched:
        patched.setattr(logs.os, "fsync", unreachable)
        with pytest.raises(LogError, match=r"log/metrics\.jsonl could not be written; .*the disk is gone"):
            write_and_fail(metrics, 1)
    assert metrics._records is not None
    assert metrics._records.closed
    # Nor does one that cannot be opened leave anything open.
    monkeypatch.setattr(logs.os, "fsync", unreachable)
    with pytest.raises(LogError, match=r"other/tensorboard could not be written; .*the disk is gone"):
        MetricLog(tmp_path / "other")


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_every_step_once(tmp_path) -> None:
    log(tmp_path, range(1, 13))
    for resumed_at in (7, 9, 10):
        # What was being written when the run was killed is torn.
        newest = max((tmp_path / "tensorboard").iterdir())
        newest.write_bytes(newest.read_bytes()[:-3])
        log(tmp_path, range(resumed_at + 1, 16), resumed_at=resumed_at, base=resumed_at * 100)
    values = {r["step"]: r["loss"] for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "train"}
    assert list(values) == list(range(1, 16))
    assert shown(tmp_path)["train/loss"] == list(values.items())
    assert [step for step, _ in shown(tmp_path)["validation/2afc"]] == [5, 10, 15]
    log(tmp_path, range(3))
    assert shown(tmp_path) == {"train/loss": [(0, 0), (1, 1), (2, 2)], "validation/2afc": [(0, 0)]}

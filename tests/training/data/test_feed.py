"""Batches: every example once an epoch, the same whoever prepares them, and resumed as if never interrupted."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.triplets import Triplets
from training.data.feed import Batch, batches, steps_per_epoch
from training.data.sources import MemorySource, RecordSource

KEYS = {"reference", "p0", "p1", "judgment", "source", "index"}


def memory(count: int, name: str = "made", side: int = 4) -> MemorySource:
    rng = np.random.default_rng(count)
    reference, p0, p1 = rng.integers(0, 256, (3, count, side, side, 3), np.uint8)
    judgment = np.linspace(0, 1, count, dtype=np.float32)
    return MemorySource(Triplets(reference, p0, p1, judgment, ("x",) * count, name=name))


def first(steps: int, *arguments: Any, **options: Any) -> list[Batch]:
    given = batches(*arguments, **options)
    try:
        return list(itertools.islice(given, steps))
    finally:
        given.close()  # pyright: ignore


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys() == KEYS
        for key in KEYS:
            assert x[key].dtype == y[key].dtype
            np.testing.assert_array_equal(x[key], y[key])


def order(given: list[Batch]) -> list[tuple[int, int]]:
    return [(int(s), int(i)) for batch in given for s, i in zip(batch["source"], batch["index"], strict=True)]


@pytest.fixture
def sources() -> list[MemorySource]:
    return [memory(7), memory(12), memory(4)]


def test_batches_hold_what_their_indices_say(sources):
    for batch in first(5, sources, batch=6, seed=0):
        assert batch.keys() == KEYS
        for key in ("reference", "p0", "p1"):
            assert type(batch[key]) is np.ndarray
            assert (batch[key].shape, batch[key].dtype) == ((6, 4, 4, 3), np.uint8)
        assert (batch["judgment"].dtype, batch["source"].dtype, batch["index"].dtype) == (
            np.float32,
            np.int32,
            np.int64,
        )
        for row, (source, index) in enumerate(zip(batch["source"], batch["index"], strict=True)):
            example = sources[source][int(index)]
            for key, value in example.items():
                np.testing.assert_array_equal(batch[key][row], value)


@pytest.mark.parametrize("batch", [1, 6, 23])
def test_an_epoch_has_each_example_at_most_once_and_its_own_order(sources, batch):
    steps = steps_per_epoch(sources, batch)
    assert steps == 23 // batch
    seen = order(first(3 * steps, sources, batch=batch, seed=1))
    epochs = [seen[start : start + steps * batch] for start in range(0, len(seen), steps * batch)]
    for epoch in epochs:
        assert len(set(epoch)) == steps * batch
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_what_an_epoch_leaves_out_is_not_always_the_same(sources):
    everything = {(s, i) for s, source in enumerate(sources) for i in range(len(source))}
    seen = order(first(30, sources, batch=6, seed=0))
    left_out = [everything - set(seen[start : start + 18]) for start in range(0, len(seen), 18)]
    assert len({frozenset(rest) for rest in left_out}) > 1
    assert set(seen) == everything


def test_the_seed_determines_the_order(sources):
    assert_same(first(8, sources, batch=4, seed=5), first(8, sources, batch=4, seed=5))
    orders = [order(first(12, sources, batch=4, seed=seed)) for seed in (0, 1, 2, 2**40)]
    assert len({tuple(one) for one in orders}) == 4
    # Nor is one seed another one an epoch later.
    epochs = [tuple(one[start : start + 20]) for one in orders for start in (0, 20)]
    assert len(set(epochs)) == len(epochs)


@pytest.mark.parametrize("start", [0, 1, 5, 6, 13])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_resumed_at_any_step(sources, start, prefetch):
    whole = first(16, sources, batch=4, seed=3)
    assert_same(first(16 - start, sources, batch=4, seed=3, start=start, prefetch=prefetch), whole[start:])


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_share_each_global_batch(sources, processes):
    whole = first(7, sources, batch=6, seed=3)
    shares = [first(7, sources, batch=6, seed=3, process=process, processes=processes) for process in range(processes)]
    joined = [
        {key: np.concatenate([share[key] for share in step]) for key in KEYS} for step in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_a_process_reads_its_own_rows_only(sources):
    read = []

    class Counting(MemorySource):
        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return super().__getitem__(index)

    counting = Counting(sources[1].triplets)
    given = batches([counting], batch=4, seed=0, process=1, processes=2, prefetch=0)
    read.clear()
    step = next(given)
    assert read == step["index"].tolist()
    assert len(read) == 2


def test_a_far_step_is_reached_without_the_ones_before(sources):
    far = first(2, sources, batch=6, seed=0, start=10**12)
    assert len(far) == 2
    assert_same(first(1, sources, batch=6, seed=0, start=10**12 + 1), far[1:])


@pytest.fixture
def records(prepared) -> list[RecordSource]:
    return [RecordSource(prepared / "bapps" / "twoafc" / "1.0.0", f"train_{split}") for split in ("cnn", "mix")]


def gone(processes: list[Any]) -> bool:
    for _ in range(200):
        if not any(process.is_alive() for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_worker_processes_give_the_same_and_end(records):
    here = first(6, records, batch=3, seed=2, start=1)
    given: Iterator[Batch] = batches(records, batch=3, seed=2, start=1, workers=2)
    before = set(multiprocessing.active_children())
    assert_same(list(itertools.islice(given, 6)), here)
    workers = list(set(multiprocessing.active_children()) - before)
    assert len(workers) == 2
    assert type(next(given)["p0"]) is np.ndarray
    # Ctrl-C reaches workers too, and is for the training program to answer.
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert_same(list(itertools.islice(given, 6)), first(6, records, batch=3, seed=2, start=8))
    given.close()  # pyright: ignore
    assert gone(workers)


KILLED = """
import itertools, multiprocessing, os, signal
import numpy as np
from rlpips_jax.evaluation.triplets import Triplets
from training.data.feed import batches
from training.data.sources import MemorySource

images = np.zeros((4, 4, 4, 3), np.uint8)
given = batches([MemorySource(Triplets(images, images, images, np.zeros(4, np.float32), ("x",) * 4))],
                batch=4, seed=0, workers=1)
next(given)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_program_end():
    root = Path(__file__).parents[3]
    program = subprocess.Popen([sys.executable, "-c", KILLED], cwd=root, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 1
    try:
        # Workers have their parent's stdout, which is at its end when the last of them is.
        assert program.communicate(timeout=60)[0] == ""
    except subprocess.TimeoutExpired:
        os.kill(workers[0], signal.SIGKILL)
        raise
    assert program.returncode == -signal.SIGKILL


class Failing(MemorySource):
    """At module level, as workers look for it by its name."""

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise TripletsError("example 3 is damaged")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_source_arrive_and_end_the_workers(workers):
    before = set(multiprocessing.active_children())
    given = batches([Failing(memory(4).triplets)], batch=4, seed=0, workers=workers)
    with pytest.raises(TripletsError, match="example 3 is damaged"):
        next(given)
    assert gone(list(set(multiprocessing.active_children()) - before))


def test_wrong_numbers_are_named(sources):
    def fails(words: str, *, given: Any = sources, **options: Any) -> None:
        with pytest.raises(TripletsError, match=words):
            batches(given, **{"batch": 4, "seed": 0, **options})

    fails(r"there are 23 examples \(made: 7, made: 12, made: 4\), fewer than a batch of 24", batch=24)
    fails("batch is 0", batch=0)
    fails("there are no sources", given=[])
    fails("a batch of 4 cannot be shared evenly by 3 processes", processes=3)
    fails("process is 2 of 2", process=2, processes=2)
    fails("process is 0 of 0", processes=0)
    fails("seed is -1", seed=-1)
    fails("start is -1", start=-1)
    fails("workers is -1", workers=-1)
    fails("prefetch is -1", prefetch=-1)
    fails(r"several sizes \(small: 4x4, large: 8x8\)", given=[memory(4, "small"), memory(4, "large", 8)])
    with pytest.raises(TripletsError, match="there are 23 examples"):
        steps_per_epoch(sources, 24)

"""Batches of judged triplets for training, by Grain.

Step k is a function of the seed and k alone: a run that resumes at step k gets the batch that an uninterrupted run
would have had there, and the position to save is the step's number. An epoch is a permutation of all examples of all
sources, a new one each time; examples at its end that do not fill a batch are left out.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from rlpips_jax.errors import TripletsError
from training.data.sources import IMAGES, Source

THREADS = 16
"""The most batches that are prepared at once in this process."""

Batch = dict[str, np.ndarray]
"""`reference`, `p0`, `p1`: uint8 `(b, h, w, 3)`; `judgment`: float32 `(b,)`; `source`: int32 `(b,)`, which of the
sources an example came from; `index`: int64 `(b,)`, its index there."""


def batches(
    sources: Sequence[Source],
    *,
    batch: int,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Generator[Batch, None, None]:
    """Batches without end, in an order that seed and sources determine.

    Of several processes, each gets its own contiguous rows of every global batch, `batch / processes` of them, and
    reads no others; the global batch does not depend on how many they are.

    Args:
        sources: of images of one size; an epoch mixes all of them.
        batch: examples in a global batch.
        seed: of the order, 0 or above.
        start: the first step that is given, counted from 0.
        process: which of the processes this is, from 0.
        processes: how many share a batch.
        workers: processes to start that prepare batches, each a copy of the sources; 0 prepares them in threads
            here. Sources in memory need none. A program that starts any must guard its beginning with
            `if __name__ == "__main__"`, since workers import it.
        prefetch: batches prepared ahead. 0 prepares each when it is asked for, unless there are workers, each of
            which is always one ahead.

    Returns:
        An iterator; its `close()`, also called when it is garbage, ends the workers. A `Batch` says what it gives.

    Raises:
        TripletsError: no sources, images of several sizes, fewer examples than a batch, a batch that the processes
            cannot share evenly, or numbers that have no meaning.
    """
    steps_per_epoch(sources, batch)
    _check_sizes(sources)
    order = Order(batch=batch, seed=seed, start=start, process=process, processes=processes)
    return shuffled(sum(map(len, sources)), _Loader(tuple(sources)), order, workers=workers, prefetch=prefetch)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which examples each batch has; the arguments of `batches` of these names.

    Raises:
        TripletsError: numbers that have no meaning, or a batch that the processes cannot share evenly.
    """

    batch: int
    seed: int
    start: int = 0
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise TripletsError(f"process is {self.process} of {self.processes}; processes are counted from 0")
        if self.batch % self.processes:
            raise TripletsError(
                f"a batch of {self.batch} cannot be shared evenly by {self.processes} processes; give a multiple"
            )
        for name in ("seed", "start"):
            if getattr(self, name) < 0:
                raise TripletsError(f"{name} is {getattr(self, name)}; give 0 or above")


def shuffled(
    count: int, load: Callable[[Int[np.ndarray, " rows"]], Batch], order: Order, *, workers: int, prefetch: int
) -> Generator[Batch, None, None]:
    """Batches without end of `count` examples, each loaded from its indices; `batches` explains the arguments."""
    for name, value in (("workers", workers), ("prefetch", prefetch)):
        if value < 0:
            raise TripletsError(f"{name} is {value}; give 0 or above")
    share = order.batch // order.processes
    rows = slice(order.process * share, (order.process + 1) * share)
    # Grain's seeds have 32 bits and count up by one each epoch: unmixed, seed 1 would repeat seed 0 an epoch earlier.
    mixed = int(np.random.SeedSequence(order.seed).generate_state(1)[0])
    examples = grain.MapDataset.range(count).shuffle(seed=mixed)
    steps = examples.batch(order.batch, drop_remainder=True).repeat()[order.start :]
    return _given(steps.map(_Rows(load, rows)), workers, prefetch)


@dataclass(frozen=True)
class _Rows:
    """Loads a process's rows of a global batch."""

    load: Callable[[Int[np.ndarray, " rows"]], Batch]
    rows: slice

    def __call__(self, indices: Int[np.ndarray, " batch"]) -> Batch:
        return self.load(np.asarray(indices, np.int64)[self.rows])


def steps_per_epoch(sources: Sequence[Source], batch: int) -> int:
    """Whole global batches in an epoch of these sources.

    Raises:
        TripletsError: a batch below 1, no sources, or fewer examples than a batch.
    """
    if batch < 1:
        raise TripletsError(f"batch is {batch}; give 1 or above")
    if not sources:
        raise TripletsError("there are no sources; give one or more")
    count = sum(map(len, sources))
    if count < batch:
        names = ", ".join(f"{source.name}: {len(source)}" for source in sources)
        raise TripletsError(
            f"there are {count} examples ({names}), fewer than a batch of {batch}; give more or a smaller one"
        )
    return count // batch


@dataclass(frozen=True)
class _Loader:
    """Reads examples, given as indices into all sources laid end to end."""

    sources: tuple[Source, ...]

    def __call__(self, indices: Int[np.ndarray, " rows"]) -> Batch:
        ends = np.cumsum([len(source) for source in self.sources])
        source = np.searchsorted(ends, indices, side="right")
        index = indices - (ends - [len(one) for one in self.sources])[source]
        examples: list[Mapping[str, Any]] = [self.sources[s][int(i)] for s, i in zip(source, index, strict=True)]
        for row, example in enumerate(examples):
            if any(example[name].shape != examples[0]["reference"].shape for name in IMAGES):
                raise TripletsError(
                    f"example {index[row]} of {self.sources[source[row]].name} has images of another size than example "
                    f"{index[0]} of {self.sources[source[0]].name}; a batch needs one: read them at one size"
                )
        loaded = {name: np.stack([example[name] for example in examples]) for name in IMAGES}
        loaded["judgment"] = np.array([example["judgment"] for example in examples], np.float32)
        return loaded | {"source": source.astype(np.int32), "index": index.astype(np.int64)}


def _check_sizes(sources: Sequence[Source]) -> None:
    shapes = [(source.name, source[0]["reference"].shape) for source in sources if len(source)]
    if len({shape for _, shape in shapes}) > 1:
        sizes = ", ".join(f"{name}: {height}x{width}" for name, (height, width, _) in shapes)
        raise TripletsError(f"sources have images of several sizes ({sizes}); a batch needs one: read them at one size")


def _given(steps: grain.MapDataset[Batch], workers: int, prefetch: int) -> Generator[Batch, None, None]:
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain reads absl's flags, which a program that is not an absl app never parses; the defaults will do.
            flags.FLAGS.mark_as_parsed()
        each = max(1, -(-prefetch // workers))
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=each)
        plain = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        # Batches come through pipes: shared memory is small in many containers, and the part that a killed run used
        # would stay taken until the machine restarts.
        piped = grain.experimental.WithOptionsIterDataset(
            plain, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        )
        prepared = piped.mp_prefetch(options, worker_init_fn=_begin_worker)
    else:
        options = grain.ReadOptions(num_threads=min(prefetch, THREADS), prefetch_buffer_size=prefetch)
        prepared = steps.to_iter_dataset(options)
    iterator = iter(prepared)
    try:
        yield from iterator
    finally:
        iterator.close()


def _begin_worker(worker: int, workers: int) -> None:
    # Ctrl-C reaches all processes of a terminal, but the one that trains decides how the run ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed process cannot end its workers, and they would wait for it for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

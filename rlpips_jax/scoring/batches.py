"""Distances of any number of pairs of files, in their order and in flat memory.

Files are read ahead. Pairs of one shape are gathered and go through the network together. A pair whose shape is rare
waits until its batch is full, or until so many later pairs have been read, or so much time has passed, that everything
that waits is computed; results are given in order, as soon as those before them are complete.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Metric, PaddedMetric
from rlpips_jax.errors import ImageError
from rlpips_jax.scoring.pairs import Pair, Result, check_files
from rlpips_jax.scoring.pixel_measures import measured
from rlpips_jax.scoring.readers import Decoded, Readers, Ticket
from rlpips_jax.scoring.shapes import Shape, Shapes, Size

WINDOW = 1024
"""A result waits for at most so many later pairs."""

FEWEST = 256
LONGEST = 30.0
"""Where pairs take long, a result waits for at most so many pairs and seconds."""

SAMPLE = 256
"""Pairs whose sizes are known before the first shapes are chosen."""

LARGEST_BATCH = 16
BATCH_PIXELS = 1 << 21
"""Most pixels in a batch of more than one image: VGG keeps half a kilobyte per pixel."""

PENDING_BYTES = 1 << 29
"""Most bytes of images that wait for their batch to be full."""

COMPUTING = 2
"""Batches that are handed to the device before the result of the first is awaited; files are read meanwhile."""

Picture = Shaped[np.ndarray, "h w 3"]


class InFlight:
    """Arrays that the device is computing; when there are many, the oldest is awaited and used.

    Args:
        pause: called before an array is added.
    """

    def __init__(self, pause: Callable[[], object]) -> None:
        self._pause = pause
        self._queue: deque[tuple[Array, Callable[[np.ndarray], object]]] = deque()

    def add(self, compute: Callable[[], Array], use: Callable[[np.ndarray], object]) -> None:
        """Begins to compute an array; `use` gets its values later, in the order of the calls."""
        self._pause()
        self._queue.append((compute(), use))
        while len(self._queue) > COMPUTING:
            self._use_oldest()

    def finish(self) -> None:
        """Awaits and uses all arrays."""
        while self._queue:
            self._pause()
            self._use_oldest()

    def settle(self) -> None:
        """Waits for the device: the interpreter must not end before, for instance after Ctrl-C."""
        jax.block_until_ready([values for values, _ in self._queue])

    def _use_oldest(self) -> None:
        # Removed when it has been used: Ctrl-C can end the waiting, and `settle` must know what is left.
        values, use = self._queue[0]
        use(np.asarray(values))
        self._queue.popleft()


class _Loaded(NamedTuple):
    """A pair in memory, and its place among all pairs."""

    place: int
    pair: Pair
    images: Sequence[Picture]
    measures: Mapping[str, np.floating]

    @property
    def size(self) -> Size:
        height, width, _ = self.images[0].shape
        return Size(height, width, self.images[0].dtype.name)

    @property
    def nbytes(self) -> int:
        return 2 * self.images[0].nbytes


class Programs:
    """The shapes that programs are compiled for, which several sets of pairs may share; of one metric.

    Attributes:
        shapes: of images.
        images_of: the number of pairs in a batch of each shape.
    """

    def __init__(self, metric: Metric) -> None:
        self.shapes = Shapes(padded=isinstance(metric, PaddedMetric) and metric.can_pad)
        self.images_of: dict[Shape, int] = {}


def score_pairs(
    pairs: Iterable[Pair],
    metric: Metric,
    readers: Readers,
    *,
    measures: Sequence[str] = (),
    programs: Programs | None = None,
    pause: Callable[[], object] = lambda: None,
) -> Generator[list[Result], None, None]:
    """The results of all pairs, in their order, some at a time.

    Args:
        pairs: taken only a little ahead of what is computed.
        metric: not random.
        readers: read the files.
        measures: names in `pixel_measures.MEASURES`, to compute besides.
        programs: what earlier calls have compiled, if further calls follow; the shapes of this one are added.
        pause: called between two steps; what it raises ends the work.
    """
    batches = _Batches(metric, pause, programs)
    fitting: set[Any] = set()
    results = batches.results
    given = count = flushed = 0
    begun = time.monotonic()

    def ready(least: int) -> list[Result]:
        """The next results without a gap, if there are enough of them."""
        nonlocal given
        places = list(itertools.takewhile(results.__contains__, itertools.count(given)))
        if len(places) < least:
            return []
        given += len(places)
        return [results.pop(place) for place in places]

    try:
        for count, (pair, files) in enumerate(read_ahead(pairs, readers), start=1):
            problems = dict.fromkeys(filter(None, (pair.error, *(file.error for file in files))))
            error = "; ".join(problems)
            images = [file.image for file in files if file.image is not None]
            if not error:
                try:
                    _check(metric, pair, images, fitting)
                    images = of_one_type(images)
                    batches.add(_Loaded(count - 1, pair, images, measured(measures, images)))
                except ImageError as problem:
                    error = str(problem)
            if error:
                results[count - 1] = Result(pair.reference, pair.image, error=error)
            late = count - flushed >= FEWEST and time.monotonic() - begun > LONGEST
            if late or count - flushed >= WINDOW:
                batches.flush()
                flushed, begun = count, time.monotonic()
            if found := ready(1 if flushed == count else LARGEST_BATCH):
                yield found
        batches.flush(last=True)
        if found := ready(1):
            yield found
    finally:
        batches.in_flight.settle()


def result_of(
    reference: str, image: str, value: np.floating, measures: Mapping[str, np.floating] | None = None
) -> Result:
    """The result of a pair; a distance that is not finite is an error."""
    if np.isfinite(value):
        return Result(reference, image, value, measures=measures or {})
    return Result(reference, image, error=f"the distance of '{reference}' and '{image}' came out as {value}")


def of_one_type(images: Sequence[Any]) -> list[Any]:
    """Images of bytes as floats in [0, 1], if others are: those of 16 bits; None stays None."""
    if all(image is None or image.dtype == np.uint8 for image in images):
        return list(images)
    return [x.astype(np.float32) / np.float32(255) if x is not None and x.dtype == np.uint8 else x for x in images]


def read_ahead(pairs: Iterable[Pair], readers: Readers) -> Iterator[tuple[Pair, list[Decoded]]]:
    """Each pair with its two files, in order."""
    queue: deque[tuple[Pair, list[Ticket]]] = deque()

    def first() -> tuple[Pair, list[Decoded]]:
        pair, tickets = queue.popleft()
        return pair, [readers.finish(ticket) for ticket in tickets]

    for pair in pairs:
        if pair.images is None:
            tickets = [readers.start(path) for path in pair.paths]
        else:
            tickets = [
                Ticket(path, outcome=Decoded(image)) for path, image in zip(pair.paths, pair.images, strict=True)
            ]
        queue.append((pair, tickets))
        while 2 * len(queue) > readers.ahead:
            yield first()
    while queue:
        yield first()


def _check(metric: Metric, pair: Pair, images: Sequence[Picture], fitting: set[Any]) -> None:
    """Checks a pair as `check_files` does; each size of bytes, whose values are always right, only once."""
    kinds = {(image.shape, image.dtype.name) for image in images}
    if not kinds <= fitting or len(kinds) > 1:
        check_files(metric, dict(zip(map(Path, pair.paths), images, strict=True)))
        fitting.update((shape, name) for shape, name in kinds if name == "uint8")


class _Batches:
    """Gathers pairs that share a shape, and computes them together.

    The program of a shape has a fixed number of images, so that it is compiled once: smaller batches are filled up.
    """

    def __init__(self, metric: Metric, pause: Callable[[], object], programs: Programs | None) -> None:
        self._metric = metric
        self._goes_on = programs is not None
        programs = programs or Programs(metric)
        self._shapes = programs.shapes
        self._sample: list[_Loaded] | None = None if len(self._shapes) else []
        self._waiting: dict[Shape, list[_Loaded]] = {}
        self._pending = 0
        self._images_of = programs.images_of
        self.in_flight = InFlight(pause)
        self.results: dict[int, Result] = {}

    def add(self, loaded: _Loaded) -> None:
        """Takes a pair, and begins to compute its batch if that is full."""
        self._pending += loaded.nbytes
        if self._sample is None:
            self._wait(loaded)
        else:
            self._sample.append(loaded)
            if len(self._sample) >= SAMPLE or self._pending > PENDING_BYTES:
                self._plan(complete=False)
        if self._pending > PENDING_BYTES:
            self._compute_waiting(last=False)

    def flush(self, *, last: bool = False) -> None:
        """Computes everything that waits, and awaits all results.

        Args:
            last: whether no further pair will come.
        """
        last = last and not self._goes_on
        if self._sample:
            self._plan(complete=last)
        self._compute_waiting(last=last)
        self.in_flight.finish()

    def _plan(self, *, complete: bool) -> None:
        sample, self._sample = self._sample or [], None
        self._shapes.plan(Counter(loaded.size for loaded in sample), complete=complete)
        for loaded in sample:
            self._wait(loaded)

    def _wait(self, loaded: _Loaded) -> None:
        shape = self._shapes.shape(loaded.size)
        batch = self._waiting.setdefault(shape, [])
        batch.append(loaded)
        if len(batch) >= self._images_of.get(shape, _full(shape)):
            self._compute(shape, self._waiting.pop(shape))

    def _compute_waiting(self, *, last: bool) -> None:
        """Large shapes first: the empty places in their batches are filled with pairs of smaller ones."""
        for shape in sorted(self._waiting, key=lambda shape: -shape.pixels):
            batch = self._waiting.pop(shape, [])
            if not batch:
                continue
            # If nothing more will come, a program that is yet to be compiled need not be for more than this.
            images = self._images_of.setdefault(shape, len(batch) if last else _full(shape))
            for other in sorted(self._waiting, key=lambda shape: -shape.pixels):
                guests = self._waiting[other]
                if len(batch) + len(guests) <= images and all(shape.holds(guest.size) for guest in guests):
                    batch += self._waiting.pop(other)
            self._compute(shape, batch)

    def _compute(self, shape: Shape, batch: list[_Loaded]) -> None:
        images = self._images_of.setdefault(shape, _full(shape))
        x, y = (np.zeros((images, shape.height, shape.width, 3), shape.dtype) for _ in range(2))
        sizes = np.full((images, 2), (shape.height, shape.width), np.int32)
        for at, loaded in enumerate(batch):
            height, width = sizes[at] = loaded.images[0].shape[:2]
            x[at, :height, :width], y[at, :height, :width] = loaded.images
        self._pending -= sum(loaded.nbytes for loaded in batch)

        def use(values: np.ndarray) -> None:
            for loaded, value in zip(batch, values, strict=False):
                self.results[loaded.place] = result_of(loaded.pair.reference, loaded.pair.image, value, loaded.measures)

        metric: Any = self._metric
        padded = not shape.exact
        self.in_flight.add(lambda: metric.padded_distance(x, y, sizes) if padded else distance(x, y, metric), use)


def _full(shape: Shape) -> int:
    """How many pairs of this shape go through the network together."""
    return min(LARGEST_BATCH, max(1, BATCH_PIXELS // shape.pixels))

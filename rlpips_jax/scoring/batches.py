"""Distances of any number of pairs of files, in their order and in flat memory.

Pairs are taken in windows. Within one, files are read ahead, pairs of one shape are gathered and go through the network
together, and what waits for company is computed at the window's end; so a window's results are complete before the
next window's, and can be written in order.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Shaped

from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import check_files
from rlpips_jax.distances.lpips import Metric, distance, padded_distance
from rlpips_jax.errors import ImageError
from rlpips_jax.scoring.readers import Decoded, Readers, Ticket
from rlpips_jax.scoring.shapes import Shape, Shapes, Size

WINDOW = 1024
"""Most pairs whose results are given, and recorded, together."""

FEWEST = 256
LONGEST = 30.0
"""Where pairs take long, so many of them and seconds are a window too: an interruption costs no more."""

SAMPLE = 256
"""Pairs whose sizes are known before the first shapes are chosen."""

LARGEST_BATCH = 16
BATCH_PIXELS = 1 << 21
"""Most pixels a batch may have, unless it is one image: VGG keeps half a kilobyte a pixel and image."""

PENDING_BYTES = 1 << 29
"""Images of shapes needed too rarely for a batch are kept until they take this much."""

COMPUTING = 2
"""Batches that are handed to the device before their results are waited for: files are read meanwhile."""

_Image = Shaped[np.ndarray, "h w 3"]


class Pair(NamedTuple):
    """Two files to compare, and what results call them; or, in place of the files, why there are none."""

    reference: str
    image: str
    files: tuple[str, str] | None
    error: str | None = None


class Result(NamedTuple):
    """What came of a pair: a distance, or the reason why there is none."""

    reference: str
    image: str
    distance: np.float32 | None = None
    error: str | None = None


class _Loaded(NamedTuple):
    """A pair in memory, and its place in the window."""

    place: int
    reference: _Image
    image: _Image

    @property
    def size(self) -> Size:
        return Size(self.image.shape[0], self.image.shape[1], self.image.dtype.name)

    @property
    def nbytes(self) -> int:
        return self.reference.nbytes + self.image.nbytes


def score(
    pairs: Iterable[Pair],
    metric: Metric,
    readers: Readers,
    *,
    done: Callable[[int], object] = lambda count: None,
) -> Generator[list[Result], None, None]:
    """The result of each pair, in their order, a window at a time. Every failure is also told on stderr, at once.

    Args:
        pairs: taken only a little ahead of what is computed.
        metric: from `rlpips_jax.load`.
        readers: read the files.
        done: told how many pairs more are finished.
    """
    batches = _Batches(metric, done)
    try:
        yield from _windows(pairs, metric, readers, batches, done)
    finally:
        batches.settle()


def _windows(
    pairs: Iterable[Pair], metric: Metric, readers: Readers, batches: "_Batches", done: Callable[[int], object]
) -> Generator[list[Result], None, None]:
    comparable = _Comparable(metric)
    told = _Told()
    stream = _read_ahead(pairs, readers)
    upcoming = next(stream, None)
    window: list[Pair] = []
    errors: dict[int, str] = {}
    begun = time.monotonic()
    while upcoming is not None:
        pair, reference, image = upcoming
        place = len(window)
        window.append(pair)
        problems = dict.fromkeys(filter(None, (pair.error, reference.error, image.error)))
        error = "; ".join(problems) or None
        if reference.image is not None and image.image is not None and pair.files is not None:
            try:
                comparable.check(pair.files, reference.image, image.image)
                batches.add(_Loaded(place, *_of_one_type(reference.image, image.image)))
            except ImageError as problem:
                error = str(problem)
        if error is not None:
            errors[place] = error
            told.tell(error)
            done(1)
        upcoming = next(stream, None)
        late = len(window) >= FEWEST and time.monotonic() - begun > LONGEST
        if upcoming is None or late or len(window) >= WINDOW:
            values = batches.finish(last=upcoming is None)
            for at, value in list(values.items()):
                if (error := no_number(window[at].reference, window[at].image, value)) is not None:
                    del values[at]
                    errors[at] = error
                    told.tell(error)
            yield [Result(p.reference, p.image, values.get(at), errors.get(at)) for at, p in enumerate(window)]
            window, errors, begun = [], {}, time.monotonic()


def no_number(reference: str, image: str, value: np.float32) -> str | None:
    """What to say of a distance that is not finite."""
    return None if np.isfinite(value) else f"the distance of '{reference}' and '{image}' came out as {value}"


class _Comparable:
    """Checks pairs as `check_files` does; of bytes, whose values are always right, each size once."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._fitting: set[tuple[int, ...]] = set()

    def check(
        self, files: tuple[str, str], reference: Shaped[np.ndarray, "h w 3"], image: Shaped[np.ndarray, "i j 3"]
    ) -> None:
        """Raises an ImageError that names the files if they cannot be compared."""
        alike = reference.shape == image.shape and reference.dtype == image.dtype == np.uint8
        if not (alike and image.shape in self._fitting):
            check_files(self._metric, {Path(files[0]): reference, Path(files[1]): image})
        if alike:
            self._fitting.add(image.shape)


class _Told:
    """Tells errors on stderr; one of a file in many pairs only once."""

    def __init__(self) -> None:
        self._lately: deque[str] = deque(maxlen=WINDOW)

    def tell(self, error: str) -> None:
        if error not in self._lately:
            self._lately.append(error)
            say(error)


def _read_ahead(pairs: Iterable[Pair], readers: Readers) -> Iterator[tuple[Pair, Decoded, Decoded]]:
    queue: deque[tuple[Pair, list[Ticket]]] = deque()

    def first() -> tuple[Pair, Decoded, Decoded]:
        pair, tickets = queue.popleft()
        reference, image = (readers.finish(ticket) for ticket in tickets) if tickets else (Decoded(), Decoded())
        return pair, reference, image

    for pair in pairs:
        queue.append((pair, [readers.start(path) for path in pair.files or ()]))
        while 2 * len(queue) > readers.ahead:
            yield first()
    while queue:
        yield first()


def _of_one_type(reference: _Image, image: _Image) -> tuple[_Image, _Image]:
    """Images of 16 bits are float32 in [0, 1]; one of bytes beside one of these becomes so too."""
    if reference.dtype == image.dtype:
        return reference, image
    reference, image = (
        picture.astype(np.float32) / np.float32(255) if picture.dtype == np.uint8 else picture
        for picture in (reference, image)
    )
    return reference, image


class _Batches:
    """Gathers pairs that share a shape, and computes them together.

    A shape's program has one number of images, so that it is compiled once: batches with fewer are filled up.
    """

    def __init__(self, metric: Metric, done: Callable[[int], object]) -> None:
        self._metric = metric
        self._done = done
        self._shapes = Shapes()
        self._sample: list[_Loaded] | None = []
        self._waiting: dict[Shape, list[_Loaded]] = {}
        self._pending = 0
        self._images_of: dict[Shape, int] = {}
        self._computing: deque[tuple[list[_Loaded], jax.Array]] = deque()
        self._values: dict[int, np.float32] = {}

    def add(self, loaded: _Loaded) -> None:
        """Takes a pair, and computes a batch if it is full."""
        self._pending += loaded.nbytes
        if self._sample is None:
            self._wait(loaded)
        else:
            self._sample.append(loaded)
            if len(self._sample) >= SAMPLE or self._pending > PENDING_BYTES:
                self._plan(complete=False)
        if self._pending > PENDING_BYTES:
            self._compute_partial(last=False)

    def finish(self, *, last: bool) -> dict[int, np.float32]:
        """Computes what waits; gives all distances since the last call, by their places.

        Args:
            last: whether no further pair will come.
        """
        if self._sample is not None and (self._sample or last):
            self._plan(complete=last)
        self._compute_partial(last=last)
        while self._computing:
            self._collect()
        values, self._values = self._values, {}
        return values

    def settle(self) -> None:
        """Waits for what is being computed: the interpreter must not end before, for instance after Ctrl-C."""
        jax.block_until_ready([values for _, values in self._computing])

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

    def _compute_partial(self, *, last: bool) -> None:
        """Computes all that waits, large shapes first: their empty places are filled with what smaller ones hold."""
        for shape in sorted(self._waiting, key=lambda shape: -shape.pixels):
            batch = self._waiting.pop(shape, [])
            if not batch:
                continue
            # Nothing more will come, so a program that is yet to be compiled need not be for more than this.
            images = self._images_of.setdefault(shape, len(batch) if last else _full(shape))
            for other in sorted(self._waiting, key=lambda shape: -shape.pixels):
                guests = self._waiting[other]
                if len(batch) + len(guests) <= images and all(shape.holds(guest.size) for guest in guests):
                    batch += self._waiting.pop(other)
            self._compute(shape, batch)

    def _compute(self, shape: Shape, batch: list[_Loaded]) -> None:
        interrupts.check()
        images = self._images_of.setdefault(shape, _full(shape))
        x, y = (np.zeros((images, shape.height, shape.width, 3), shape.dtype) for _ in range(2))
        sizes = np.full((images, 2), (shape.height, shape.width), np.int32)
        for at, loaded in enumerate(batch):
            height, width = sizes[at] = loaded.image.shape[:2]
            x[at, :height, :width] = loaded.reference
            y[at, :height, :width] = loaded.image
        values = distance(x, y, self._metric) if shape.exact else padded_distance(x, y, sizes, self._metric)
        self._pending -= sum(loaded.nbytes for loaded in batch)
        self._computing.append((batch, values))
        while len(self._computing) > COMPUTING:
            self._collect()

    def _collect(self) -> None:
        # Taken off only when it is there: Ctrl-C can end the waiting, and `settle` must know what is left.
        batch, values = self._computing[0]
        for loaded, value in zip(batch, np.asarray(values), strict=False):
            self._values[loaded.place] = value
        self._computing.popleft()
        self._done(len(batch))


def _full(shape: Shape) -> int:
    """How many pairs of this shape go through the network together."""
    return min(LARGEST_BATCH, max(1, BATCH_PIXELS // shape.pixels))

"""Distances of all unordered pairs of images in a folder: one forward pass an image while features fit into memory.

Only images of one size can be compared. Sizes shared by many images come first; within a size, images are ordered by
their paths, and pairs as in the upper triangle of a table. The images of a size are cut into tiles, and a row of tiles
is computed at a time. Features of a tile are kept while `FEATURE_BYTES` last, and computed again for every row of tiles
otherwise.
"""

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import check_files
from rlpips_jax.distances.lpips import Features, Metric
from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.scoring.batches import BATCH_PIXELS, COMPUTING, WINDOW, Pair, Result, no_number, score
from rlpips_jax.scoring.readers import Readers, Ticket, survey

LARGEST_TILE = 32

FEATURE_BYTES = 1 << 30
"""How much the features that are kept may take."""

FEW_IMAGES = 8
"""Sizes with fewer images are computed pair by pair, in programs that many sizes share."""


class Group(NamedTuple):
    """Images of one size."""

    size: tuple[int, int]
    paths: list[str]

    @property
    def count(self) -> int:
        """How many pairs they make."""
        return len(self.paths) * (len(self.paths) - 1) // 2


@dataclass(frozen=True)
class AllPairs:
    """What there is to compare in a folder.

    Attributes:
        unreadable: in place of a pair, a file and what is wrong with it.
        groups: images of the same size, two or more, the largest groups first.
    """

    unreadable: list[Pair]
    groups: list[Group]

    def __len__(self) -> int:
        return len(self.unreadable) + sum(group.count for group in self.groups)

    def __iter__(self) -> Iterator[Pair]:
        yield from self.unreadable
        for group in self.groups:
            yield from _pairs(group)


def of_folder(
    folder: Path, metric: Metric, *, workers: int, done: Callable[[int], object] = lambda count: None
) -> AllPairs:
    """Looks through a folder and the folders in it; tells how many pairs cannot be compared.

    Args:
        folder: where the images are.
        metric: what they are compared by; images too small for it count as unreadable.
        workers: processes to read them; 0 for none.
        done: told how many files more were read.

    Raises:
        ImageFileError: no such folder, or there are no two images of one size in it.
    """
    by_size: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    unreadable = []
    paths = [str(path) for path in image_paths(folder, recursive=True)]
    with Readers(workers, survey) as readers:
        for path, found in zip(paths, readers.read(paths), strict=True):
            error = found.error
            if found.size is not None:
                try:
                    check_files(metric, {Path(path): np.broadcast_to(np.uint8(0), (*found.size, 3))})
                    by_size[found.size].append(path)
                except ImageError as problem:
                    error = str(problem)
            if error is not None:
                say(error)
                unreadable.append(Pair("", path, None, error))
            done(1)
    groups = [Group(size, members) for size, members in by_size.items() if len(members) > 1]
    groups.sort(key=lambda group: (-len(group.paths), group.size))
    if not groups:
        raise ImageFileError(f"{folder} holds no two images of one size that can be compared, in {len(paths)} images")
    readable = sum(map(len, by_size.values()))
    kept, possible = sum(group.count for group in groups), readable * (readable - 1) // 2
    if kept < possible:
        say(
            f"warning: {possible - kept} of {possible} pairs are left out: their images differ in size "
            f"({len(by_size)} sizes)"
        )
    return AllPairs(unreadable, groups)


def score_all(
    found: AllPairs,
    metric: Metric,
    readers: Readers,
    *,
    skip: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> Generator[list[Result], None, None]:
    """The result of each pair, in the order of `AllPairs`.

    Args:
        found: from `of_folder`.
        metric: from `rlpips_jax.load`.
        readers: read the files.
        skip: results that are known already, from the first on.
        done: told how many pairs more are finished.
    """
    results = [Result(pair.reference, pair.image, None, pair.error) for pair in found.unreadable[skip:]]
    done(len(results))
    skip -= min(skip, len(found.unreadable))
    many = [group for group in found.groups if len(group.paths) >= FEW_IMAGES]
    for group in many:
        if skip >= group.count:
            skip -= group.count
            continue
        table = _Table(group, metric, readers, done)
        try:
            for more in table.rows(skip):
                results += more
                if len(results) >= WINDOW:
                    yield results
                    results = []
        finally:
            table.settle()
        skip = 0
    if results:
        yield results
    few = itertools.chain.from_iterable(map(_pairs, found.groups[len(many) :]))
    yield from score(itertools.islice(few, skip, None), metric, readers, done=done)


def _pairs(group: Group) -> Iterator[Pair]:
    for reference, image in itertools.combinations(group.paths, 2):
        yield Pair(reference, image, (reference, image))


class _Tile(NamedTuple):
    """Features of some images of a group, and what was wrong with those that could not be read after all."""

    features: Features
    errors: dict[int, str]


class _Table:
    """The distances within one group, as the upper triangle of a table."""

    def __init__(self, group: Group, metric: Metric, readers: Readers, done: Callable[[int], object]) -> None:
        self._paths = group.paths
        self._size = group.size
        self._metric = metric
        self._readers = readers
        self._done = done
        fitting = max(1, BATCH_PIXELS // (group.size[0] * group.size[1]))
        self._side = min(LARGEST_TILE, fitting, len(group.paths))
        self._tiles = -(-len(group.paths) // self._side)
        self._kept: dict[int, _Tile] = {}
        self._kept_bytes = 0
        self._tickets: dict[int, list[Ticket]] = {}
        self._computing: deque[Array] = deque()
        self._latest: Features = ()

    def settle(self) -> None:
        """Waits for what is being computed: the interpreter must not end before, for instance after Ctrl-C."""
        jax.block_until_ready([self._latest, *self._computing])

    def rows(self, skip: int) -> Iterator[list[Result]]:
        """Results row by row, without the first `skip`."""
        for row in range(self._tiles):
            inside = self._members(row)
            # Each image is compared with all that follow it.
            lengths = [len(self._paths) - 1 - at for at in inside]
            if skip >= sum(lengths):
                skip -= sum(lengths)
                continue
            values, errors = self._row(row)
            for at, length in zip(inside, lengths, strict=True):
                first = min(skip, length)
                skip -= first
                yield [
                    self._result(at, other, values[at - inside[0], other - inside[0]], errors)
                    for other in range(at + 1 + first, len(self._paths))
                ]

    def _row(self, row: int) -> tuple[Float[np.ndarray, "side n"], dict[int, str]]:
        """Distances of the images of a tile to themselves and all that follow."""
        left = self._obtain(row)
        errors = dict(left.errors)
        computing = self._computing
        columns: list[np.ndarray] = []

        def collect() -> None:
            interrupts.check()
            column = row + len(columns)
            columns.append(np.asarray(computing[0]))
            computing.popleft()
            inside, others = len(self._members(row)), len(self._members(column))
            self._done(inside * others if column > row else inside * (inside - 1) // 2)

        for column in range(row, self._tiles):
            right = left if column == row else self._obtain(column)
            errors |= right.errors
            computing.append(self._metric.pairwise_between(left.features, right.features))
            while len(computing) > COMPUTING:
                collect()
        while computing:
            collect()
        if row in self._kept:
            self._kept_bytes -= _bytes(self._kept.pop(row).features)
        return np.concatenate(columns, axis=1), errors

    def _result(self, at: int, other: int, value: np.float32, errors: dict[int, str]) -> Result:
        error = errors.get(at) or errors.get(other)
        if error is None and (error := no_number(self._paths[at], self._paths[other], value)) is not None:
            say(error)
        return Result(self._paths[at], self._paths[other], None if error else value, error)

    def _members(self, tile: int) -> range:
        return range(tile * self._side, min((tile + 1) * self._side, len(self._paths)))

    def _obtain(self, number: int) -> _Tile:
        """A tile's features, kept if there is room; begins to read the files of the next."""
        if number in self._kept:
            return self._kept[number]
        tickets = self._start(number)
        following = next((tile for tile in range(number + 1, self._tiles) if tile not in self._kept), None)
        if following is not None:
            self._start(following)
        images: list[np.ndarray | None] = []
        errors = {}
        for at, ticket in zip(self._members(number), tickets, strict=True):
            decoded = self._readers.finish(ticket)
            images.append(decoded.image if decoded.size == self._size else None)
            if images[-1] is None:
                errors[at] = decoded.error or f"{ticket.path} has changed its size while it was being compared"
                say(errors[at])
        del self._tickets[number]
        deep = any(image is not None and image.dtype != np.uint8 for image in images)
        batch = np.zeros((self._side, *self._size, 3), np.float32 if deep else np.uint8)
        for at, image in enumerate(images):
            if image is not None:
                batch[at] = image / np.float32(255) if deep and image.dtype == np.uint8 else image
        tile = _Tile(self._metric.features(batch), errors)
        self._latest = tile.features
        size = _bytes(tile.features)
        if self._kept_bytes + size <= FEATURE_BYTES:
            self._kept[number] = tile
            self._kept_bytes += size
        return tile

    def _start(self, number: int) -> list[Ticket]:
        if number not in self._tickets:
            self._tickets[number] = [self._readers.start(self._paths[at]) for at in self._members(number)]
        return self._tickets[number]


def _bytes(features: Features) -> int:
    return sum(feature.nbytes for feature in features)

"""Distances of all pairs of images of one size, of one set or of two: one forward pass per image while features fit.

Only images of one size can be compared. Sizes shared by many images come first; within a size, images keep their order,
and pairs are ordered as in the upper triangle of a table; of two sets, as in a table whose rows are the first. The
images of a size are cut into tiles; one row of tiles is computed at a time. Features of a tile are kept while
`FEATURE_BYTES` last, and otherwise computed again for each row.
"""

import functools
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.pairwise import pairwise_between
from rlpips_jax.distances.protocol import Features, Metric
from rlpips_jax.errors import ImageError, ImageFileError, MetricError, PairsWarning
from rlpips_jax.files.reading import AS_STORED, Reading
from rlpips_jax.scoring.batches import BATCH_PIXELS, InFlight, of_one_type, result_of, score_pairs
from rlpips_jax.scoring.pairs import Pair, Result, check_files
from rlpips_jax.scoring.readers import Readers, Ticket, cores, survey
from rlpips_jax.warning import warn_user

LARGEST_TILE = 32

FEATURE_BYTES = 1 << 30
"""Most bytes of features that are kept."""

FEW_IMAGES = 8
"""Sizes with fewer images are computed pair by pair, in programs that many sizes share."""


@dataclass(frozen=True)
class Group:
    """Images of one size.

    Attributes:
        size: height and width.
        paths: the images.
        split: how many of them, from the first on, are compared with the others; None to compare every two.
    """

    size: tuple[int, int]
    paths: list[str]
    split: int | None = None

    @property
    def count(self) -> int:
        """The number of pairs."""
        if self.split is not None:
            return self.split * (len(self.paths) - self.split)
        return len(self.paths) * (len(self.paths) - 1) // 2

    def partners(self, place: int) -> range:
        """The places of the images that one is compared with."""
        if self.split is None:
            return range(place + 1, len(self.paths))
        return range(self.split, len(self.paths)) if place < self.split else range(0)

    def pairs(self) -> Iterator[Pair]:
        """The pairs, row by row."""
        for place, path in enumerate(self.paths):
            yield from (Pair(path, self.paths[other]) for other in self.partners(place))


@dataclass(frozen=True)
class AllPairs:
    """Every two images of one size, or every image of one set with all of another. `score` computes the features of
    each image only once.

    Attributes:
        unreadable: a `Pair` with an error for each file that cannot be compared; they come first.
        groups: images of the same size, two or more, the largest groups first.
    """

    unreadable: list[Pair]
    groups: list[Group]

    @classmethod
    def of(
        cls,
        paths: Iterable[str | os.PathLike[str]],
        metric: Metric,
        *,
        others: Iterable[str | os.PathLike[str]] | None = None,
        workers: int | None = None,
        reading: Reading = AS_STORED,
    ) -> "AllPairs":
        """All pairs of images of one size; reads every file once to learn its size.

        Args:
            paths: image files, for instance from `rlpips_jax.image_paths`.
            metric: what they are to be compared by; images that are too small for it count as unreadable.
            others: those to compare them with; None compares every two of `paths`.
            workers: processes that read files; 0 reads in this one, None is one per core.
            reading: how files are read; that of `score` must be the same.

        Raises:
            ImageFileError: no two images are of one size.
            MetricError: `workers` is not 0 or more.

        Warns:
            PairsWarning: some images differ in size, so that not all pairs can be compared.
        """
        unreadable: list[Pair] = []
        count = cores() if workers is None else whole_number("workers", workers, minimum=0, error=MetricError)
        with Readers(count, functools.partial(survey, reading=reading)) as readers:
            by_size = _by_size(paths, metric, readers, unreadable)
            columns = {} if others is None else _by_size(others, metric, readers, unreadable)
        readable, further = (sum(map(len, sizes.values())) for sizes in (by_size, columns))
        if others is None:
            groups = [Group(size, members) for size, members in by_size.items() if len(members) > 1]
            possible = readable * (readable - 1) // 2
        else:
            groups = [
                Group(size, members + columns[size], len(members))
                for size, members in by_size.items()
                if size in columns
            ]
            possible = readable * further
        groups.sort(key=lambda group: (-len(group.paths), group.size))
        if not groups:
            raise ImageFileError(
                "there are no two images of one size that can be compared among "
                f"{readable + further + len(unreadable)} files"
            )
        kept = sum(group.count for group in groups)
        if kept < possible:
            warn_user(
                f"{possible - kept} of {possible} pairs are left out: their images differ in size "
                f"({len(by_size.keys() | columns.keys())} sizes)",
                PairsWarning,
            )
        return cls(unreadable, groups)

    def __len__(self) -> int:
        return len(self.unreadable) + sum(group.count for group in self.groups)

    def __iter__(self) -> Iterator[Pair]:
        return itertools.chain(self.unreadable, *(group.pairs() for group in self.groups))


def _by_size(
    paths: Iterable[str | os.PathLike[str]], metric: Metric, readers: Readers, unreadable: list[Pair]
) -> dict[tuple[int, int], list[str]]:
    """The images of each size; those that cannot be compared are added to `unreadable`."""
    by_size: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for path, found in readers.read(os.fspath(path) for path in paths):
        error = found.error
        if found.size is not None:
            try:
                check_files(metric, {Path(path): np.broadcast_to(np.uint8(0), (*found.size, 3))})
                by_size[found.size].append(path)
            except ImageError as problem:
                error = str(problem)
        if error is not None:
            unreadable.append(Pair("", path, error=error))
    return dict(by_size)


def score_all_pairs(
    found: AllPairs, metric: Metric, readers: Readers, *, skip: int = 0, pause: Callable[[], object] = lambda: None
) -> Generator[list[Result], None, None]:
    """The results of all pairs, in the order of `AllPairs`, some at a time.

    Args:
        found: the pairs.
        metric: not random.
        readers: read the files.
        skip: the number of results that are known already, from the first on.
        pause: called between two steps; what it raises ends the work.
    """
    if errors := [Result(pair.reference, pair.image, error=pair.error) for pair in found.unreadable[skip:]]:
        yield errors
    skip = max(0, skip - len(found.unreadable))
    many = [group for group in found.groups if len(group.paths) >= FEW_IMAGES]
    for group in many:
        if skip < group.count:
            yield from _rows(group, _Tiles(group, metric, readers), skip, pause)
        skip = max(0, skip - group.count)
    few = itertools.chain(*(group.pairs() for group in found.groups[len(many) :]))
    yield from score_pairs(itertools.islice(few, skip, None), metric, readers, pause=pause)


def _rows(group: Group, tiles: "_Tiles", skip: int, pause: Callable[[], object]) -> Iterator[list[Result]]:
    """The results of a group, those of an image with all that follow it at a time, without the first `skip`."""
    in_flight = InFlight(pause)
    try:
        for row, members in enumerate(tiles.members):
            count = sum(len(group.partners(at)) for at in members)
            if not count:
                break
            if skip >= count:
                skip -= count
                continue
            columns: list[np.ndarray] = []
            left = tiles.features(row)
            first = row if group.split is None else tiles.columns
            begin = tiles.members[first][0]
            for column in range(first, len(tiles.members)):
                compute = functools.partial(pairwise_between, tiles.metric, left, tiles.features(column))
                in_flight.add(compute, columns.append)
            in_flight.finish()
            tiles.forget(row)
            values = np.concatenate(columns, axis=1)
            for at in members:
                results = []
                for other in group.partners(at):
                    reference, image = group.paths[at], group.paths[other]
                    if error := tiles.errors.get(at) or tiles.errors.get(other):
                        results.append(Result(reference, image, error=error))
                    else:
                        results.append(result_of(reference, image, values[at - members[0], other - begin]))
                if results[skip:]:
                    yield results[skip:]
                skip = max(0, skip - len(results))
    finally:
        in_flight.settle()
        tiles.settle()


class _Tiles:
    """The features of a group's images, a tile at a time.

    Attributes:
        members: the places of the images in each tile.
        columns: of two sets, the number of the first tile of the second.
        errors: what is wrong with images that could not be read after all, by their places.
    """

    def __init__(self, group: Group, metric: Metric, readers: Readers) -> None:
        self.metric = metric
        self._group = group
        self._readers = readers
        fitting = max(1, BATCH_PIXELS // (group.size[0] * group.size[1]))
        self._side = side = min(LARGEST_TILE, fitting, len(group.paths))
        parts = range(group.split or 0), range(group.split or 0, len(group.paths))
        rows, columns = ([part[at : at + side] for at in range(0, len(part), side)] for part in parts)
        self.members, self.columns = rows + columns, len(rows)
        self.errors: dict[int, str] = {}
        self._kept: dict[int, Features] = {}
        self._tickets: dict[int, list[Ticket]] = {}
        self._latest: Features = ()

    def settle(self) -> None:
        """Waits for the device."""
        jax.block_until_ready(self._latest)

    def forget(self, number: int) -> None:
        """Drops the features of a tile that is not needed again."""
        self._kept.pop(number, None)

    def features(self, number: int) -> Features:
        """The features of a tile, kept if there is room; begins to read the files of the next one."""
        if number in self._kept:
            return self._kept[number]
        following = next((tile for tile in range(number + 1, len(self.members)) if tile not in self._kept), number)
        for tile in (number, following):
            if tile not in self._tickets:
                self._tickets[tile] = [self._readers.start(self._group.paths[at]) for at in self.members[tile]]
        images: list[np.ndarray | None] = []
        for at, ticket in zip(self.members[number], self._tickets.pop(number), strict=True):
            decoded = self._readers.finish(ticket)
            images.append(decoded.image if decoded.size == self._group.size else None)
            if images[-1] is None:
                self.errors[at] = decoded.error or f"{ticket.path} has changed its size while it was being compared"
        images = of_one_type(images)
        dtype = next((image.dtype for image in images if image is not None), np.uint8)
        batch = np.zeros((self._side, *self._group.size, 3), dtype)
        for at, image in enumerate(images):
            if image is not None:
                batch[at] = image
        self._latest = found = self.metric.features(batch)
        if sum(map(_nbytes, (*self._kept.values(), found))) <= FEATURE_BYTES:
            self._kept[number] = found
        return found


def _nbytes(features: Features) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(features))

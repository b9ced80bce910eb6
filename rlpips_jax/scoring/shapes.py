"""Few compiled programs for images of many sizes: which size is padded to which shape.

XLA compiles a program for every shape it meets, which takes longer than computing many pairs. So pairs of different
sizes share shapes: the smaller ones are padded at the bottom and on the right, and `padded_distance` leaves the padding
out of the number.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

MOST = 12
"""How many shapes there may be, but for those added by doubling."""

RESERVED = 3
"""Shapes of these that are kept back: they are large enough for everything seen so far."""

EXACT = 2
"""So many sizes that turn up by themselves have a shape of their own, without padding."""

STEP = 64
"""Sides of other shapes are multiples of this, so that similar sizes find place in them."""

PROGRAM_PIXELS = 1 << 21
"""Padding that takes as long to compute as a program takes to compile, roughly."""


class Size(NamedTuple):
    """Height and width of a pair of images in pixels, and the type of its values."""

    height: int
    width: int
    dtype: str

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Shape(NamedTuple):
    """What a program was, or will be, compiled for."""

    height: int
    width: int
    dtype: str
    exact: bool
    """Whether it is for images of this very size, which need no padding."""

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def holds(self, size: Size) -> bool:
        """Whether pairs of this size can be computed in it."""
        if size.dtype != self.dtype:
            return False
        if self.exact:
            return (size.height, size.width) == (self.height, self.width)
        return size.height <= self.height and size.width <= self.width


class Shapes:
    """Chooses a shape for every size, and keeps the shapes few.

    The first sizes, with how often they occur, are best planned together. Of sizes that turn up later, one by one,
    each takes the smallest shape that holds it, unless that is too large for it; how much too large may be grows with
    the number of shapes. When they have become too many, a size that no shape holds makes one of powers of two that
    holds everything seen so far. As every such shape is at least twice as large as the one before, there are few.
    """

    def __init__(self) -> None:
        self._of: dict[Size, Shape] = {}
        self._all: list[Shape] = []

    def __len__(self) -> int:
        return len(self._all)

    def plan(self, counts: Mapping[Size, int], *, complete: bool) -> None:
        """Chooses shapes for sizes seen together: those that cost least are merged until there are few enough.

        Args:
            counts: how many pairs there are of each size.
            complete: whether these are all pairs, so that merging also pays where it only saves compiling.
        """
        groups = [[size] for size in counts]
        # A row a group: height, width, pairs, true pixels of all pairs, number of the type.
        types = sorted({size.dtype for size in counts})
        rows = np.array(
            [[s.height, s.width, n, s.pixels * n, types.index(s.dtype)] for s, n in counts.items()], np.float64
        ).reshape(-1, 5)
        while len(groups) > 1:
            height = np.maximum(rows[:, None, 0], rows[None, :, 0])
            width = np.maximum(rows[:, None, 1], rows[None, :, 1])
            area = rows[:, 0] * rows[:, 1] * rows[:, 2]
            added = height * width * (rows[:, None, 2] + rows[None, :, 2]) - area[:, None] - area[None, :]
            added[rows[:, None, 4] != rows[None, :, 4]] = np.inf
            np.fill_diagonal(added, np.inf)
            one, other = sorted(np.unravel_index(np.argmin(added), added.shape))
            least = added[one, other]
            if np.isinf(least) or (len(groups) <= MOST - RESERVED and not (complete and least < PROGRAM_PIXELS)):
                break
            merged = [height[one, other], width[one, other], *(rows[one, 2:4] + rows[other, 2:4]), rows[one, 4]]
            rows = np.vstack([np.delete(rows, [one, other], axis=0), merged])
            groups = [group for at, group in enumerate(groups) if at not in (one, other)] + [
                groups[one] + groups[other]
            ]
        for group in groups:
            height, width = max(size.height for size in group), max(size.width for size in group)
            self._add(Shape(height, width, group[0].dtype, exact=len(group) == 1), group)

    def shape(self, size: Size) -> Shape:
        """The shape in which pairs of a size are computed; always the same one."""
        if size not in self._of:
            self._of[size] = self._choose(size)
        return self._of[size]

    def _choose(self, size: Size) -> Shape:
        used = len(self._all)
        holding = min((shape for shape in self._all if shape.holds(size)), key=lambda s: s.pixels, default=None)
        if holding is not None and holding.pixels <= (1.5 + 0.1 * used) * size.pixels:
            return holding
        if used < EXACT:
            return self._add(Shape(*size, exact=True))
        if used < MOST - RESERVED:
            return self._add(Shape(_up(size.height), _up(size.width), size.dtype, exact=False))
        if holding is not None:
            return holding
        seen = [other for other in (*self._of, size) if other.dtype == size.dtype]
        height, width = (1 << (max(sides) - 1).bit_length() for sides in list(zip(*seen, strict=True))[:2])
        return self._add(Shape(height, width, size.dtype, exact=False))

    def _add(self, shape: Shape, sizes: list[Size] | None = None) -> Shape:
        self._all.append(shape)
        for size in sizes or ():
            self._of[size] = shape
        return shape


def _up(side: int) -> int:
    return -(-side // STEP) * STEP

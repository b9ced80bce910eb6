"""Few compiled programs for images of many sizes: which size is padded to which shape.

XLA compiles a program for every shape, which takes longer than computing many pairs. So pairs of different sizes share
shapes: the smaller ones are padded at the bottom and on the right, and the metric leaves the padding out of the number.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

MOST = 12
"""The number of shapes, without those added by doubling."""

RESERVED = 3
"""So many of them are kept for shapes that are large enough for everything seen so far."""

EXACT = 2
"""So many of the sizes that were not planned have their own shape, without padding."""

STEP = 64
"""Sides of other shapes are multiples of this, so that similar sizes fit into them."""

PROGRAM_PIXELS = 1 << 21
"""Pixels of padding that take about as long to compute as a program takes to compile."""


class Size(NamedTuple):
    """Height and width of a pair of images in pixels, and the type of its values."""

    height: int
    width: int
    dtype: str

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Shape(NamedTuple):
    """Height, width and type of the images that a program is compiled for."""

    height: int
    width: int
    dtype: str
    exact: bool
    """Whether it is for images of this size alone, which need no padding."""

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
    """Chooses a shape for every size, and keeps the number of shapes small.

    The first sizes are planned together, by how often they occur. A size that comes later takes the smallest shape that
    holds it, unless that is too large for it; the more shapes there are, the more padding is accepted. When there are
    too many, a size that no shape holds makes a shape of powers of two that holds everything seen so far. Each of these
    is at least twice as large as the one before, so there are few.

    Args:
        padded: False gives each size its own shape, for metrics that cannot leave padding out.
    """

    def __init__(self, *, padded: bool = True) -> None:
        self._padded = padded
        self._of: dict[Size, Shape] = {}
        self._all: list[Shape] = []

    def __len__(self) -> int:
        return len(self._all)

    def plan(self, counts: Mapping[Size, int], *, complete: bool) -> None:
        """Chooses shapes for the first sizes: those whose padding costs least are merged until there are few shapes.

        Args:
            counts: the number of pairs of each size.
            complete: whether these are all pairs; then sizes are merged also where that only saves compiling.
        """
        if not self._padded:
            return
        groups = [[size] for size in counts]
        # One row per group: height, width, pairs, pixels of all pairs without padding, index of the type.
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
        """The shape in which pairs of a size are computed; the same one at every call."""
        if size not in self._of:
            self._of[size] = self._choose(size)
        return self._of[size]

    def _choose(self, size: Size) -> Shape:
        if not self._padded:
            return self._add(Shape(*size, exact=True))
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

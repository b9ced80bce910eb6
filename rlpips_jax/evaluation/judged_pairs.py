"""Pairs of image files and what people think of them: `JudgedPairs`."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int, UInt8

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.patches import read_uint8
from rlpips_jax.evaluation.triplet_files import in_threads, resized
from rlpips_jax.files.formats import FORMATS
from rlpips_jax.files.regular import open_regular

BATCH_PIXELS = 1 << 21
"""Most pixels in a batch of more than one pair."""


class PairBatch(NamedTuple):
    """Pairs of one size.

    Attributes:
        rows: their places among all pairs.
        reference: their references.
        image: their distorted images.
    """

    rows: Int[np.ndarray, " k"]
    reference: UInt8[np.ndarray, "k h w 3"]
    image: UInt8[np.ndarray, "k h w 3"]


@dataclass(frozen=True, eq=False, repr=False)
class JudgedPairs:
    """Judged pairs of image files, of which only a batch is in memory at a time.

    Attributes:
        references: n files.
        images: n files, distorted versions of the references.
        judgment: `(n,)`, larger where the two look more alike: a mean opinion score, minus a differential one, or the
            fraction of people who saw no difference.
        kinds: n labels by which scores are split.
        asked: what people were asked for, an "opinion" or whether both look the "same".
        size: shorter side in pixels to which images are resized, bilinearly and antialiased; None keeps them.
        name: of the set, for reports.
        source: where the set comes from, and a sha256 of its names and judgments.

    Raises:
        TripletsError: lengths do not fit, or a judgment makes no sense.
    """

    references: tuple[Path, ...]
    images: tuple[Path, ...]
    judgment: Float64[np.ndarray, " n"]
    kinds: tuple[str, ...]
    asked: Literal["opinion", "same"] = "opinion"
    size: int | None = None
    name: str = "pairs"
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.references, self.images, self.judgment, self.kinds)}
        if len(lengths) > 1 or not len(self.references):
            raise TripletsError(f"pairs need a file, a file, a judgment and a kind each, one or more; got {lengths}")
        if not np.isfinite(self.judgment).all():
            raise TripletsError("a judgment is not a finite number")
        if self.asked == "same" and not np.all((self.judgment >= 0) & (self.judgment <= 1)):
            raise TripletsError("judgments of same or not are fractions of people, from 0 to 1")

    def __len__(self) -> int:
        return len(self.references)

    def __repr__(self) -> str:
        return f"JudgedPairs({self.name!r}, {len(self)} of {len(set(self.references))} references)"

    def select(self, rows: Int[np.ndarray, " k"]) -> "JudgedPairs":
        """The pairs of these indices. Name and source stay those of the whole set."""

        def of(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows)

        files = of(self.references), of(self.images)
        return JudgedPairs(*files, self.judgment[rows], of(self.kinds), self.asked, self.size, self.name, self.source)

    def batches(self, start: int = 0, *, most: int) -> Iterator[PairBatch]:
        """All pairs from `start` on, in order: neighbours of one size together.

        Args:
            start: the first pair.
            most: pairs in a batch; fewer where they have many pixels.

        Raises:
            TripletsError: the images of a pair differ in size; names them.
            ImageFileError: an image cannot be read.
        """
        while start < len(self):
            (first,) = self._read(range(start, start + 1))
            count = min(most, max(1, BATCH_PIXELS // (first[0].shape[0] * first[0].shape[1])))
            found = [first, *self._read(range(start + 1, min(start + count, len(self))))]
            alike = next((at for at, pair in enumerate(found) if pair[0].shape != first[0].shape), len(found))
            reference, image = (np.stack(column) for column in zip(*found[:alike], strict=True))
            yield PairBatch(np.arange(start, start + alike), reference, image)
            start += alike

    def _read(self, rows: range) -> list[tuple[np.ndarray, np.ndarray]]:
        def read(row: int) -> tuple[np.ndarray, np.ndarray]:
            files = self.references[row], self.images[row]
            reference, image = (resized(read_uint8(file), self.size) for file in files)
            if reference.shape != image.shape:
                sizes = " and ".join(
                    f"{file} {shape[0]}x{shape[1]}"
                    for file, shape in zip(files, (reference.shape, image.shape), strict=True)
                )
                raise TripletsError(f"a pair differs in size: {sizes}")
            return reference, image

        return list(in_threads(read, rows))


def by_size(files: list[Path]) -> Int[np.ndarray, " n"]:
    """An order of files in which those of one size are neighbours, as their headers say; otherwise as they are."""
    from PIL import Image

    def size(file: str) -> tuple[int, int]:
        try:
            with open_regular(file) as opened, Image.open(opened, formats=list(FORMATS)) as image:
                return image.size
        except Exception:  # Pillow raises nearly anything; reading the image will say what is wrong.
            return 0, 0

    different = sorted({os.fspath(file) for file in files})
    sizes = dict(zip(different, in_threads(size, different), strict=True))
    return np.array(sorted(range(len(files)), key=lambda row: sizes[os.fspath(files[row])]), np.int64)

"""Pairs of image files and their results; the pairs of two folders, and those of a list."""

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import ImageFileError, PairsWarning
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.images import UNIT_RANGE, check_images
from rlpips_jax.warning import warn_user

HEADER = ["reference", "image"]

LONGEST_ROW = 1 << 16
"""Bytes. A row of two paths is shorter; one that never ends would fill the memory."""


@dataclass(frozen=True)
class Pair:
    """Two image files to compare.

    Attributes:
        reference: name of the first file in results.
        image: name of the second file in results.
        files: paths of both; None if the names are the paths.
        error: why this is not a pair, as for a row of a list that cannot be read; there are no files then.
    """

    reference: str
    image: str
    files: tuple[str, str] | None = None
    error: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The two files to read; empty if there is an error."""
        return () if self.error else self.files or (self.reference, self.image)


@dataclass(frozen=True)
class Result:
    """The distance of a pair, or the reason why it has none.

    Attributes:
        reference: name of the first file.
        image: name of the second file.
        distance: the distance; None if there is an error.
        error: what is wrong with the pair, in one line; None if there is a distance.
        recorded: whether it was read from a results file, and not computed in this run.
    """

    reference: str
    image: str
    distance: np.floating | None = None
    error: str | None = None
    recorded: bool = False


def pairs_in_folders(references: str | os.PathLike[str], images: str | os.PathLike[str]) -> list[Pair]:
    """Pairs of the files that have the same path, suffix included, below two folders; sorted.

    Results call the reference by its folder, and the image by its path below the folders.

    Args:
        references: folder of the references, with any folders inside.
        images: folder of the images.

    Raises:
        ImageFileError: a folder cannot be listed, or no file is in both.

    Warns:
        PairsWarning: a file is in one folder only.
    """
    folders = Path(references), Path(images)
    found = [{p.relative_to(folder).as_posix(): p for p in image_paths(folder, recursive=True)} for folder in folders]
    for folder, here, there in zip(folders, found, found[::-1], strict=True):
        if alone := [name for name in here if name not in there]:
            count = "1 image is" if len(alone) == 1 else f"{len(alone)} images are"
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            warn_user(f"{count} only in {folder}: {', '.join(alone[:3])}{more}", PairsWarning)
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise ImageFileError(
            f"{references} and {images} have no image of the same name; files are paired by their path below the "
            "folder, suffix included"
        )
    return [Pair(str(references), name, (str(found[0][name]), str(found[1][name]))) for name in common]


def pairs_in_list(path: str | os.PathLike[str]) -> Iterator[Pair]:
    """The pairs in a CSV file, read row by row: two paths, the reference first.

    A first row `reference,image` is a header. Relative paths start at the current directory. In place of a row that is
    not a pair comes a `Pair` whose error names the line.

    Args:
        path: the file, of any length; it may be a pipe.

    Raises:
        ImageFileError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, row in _rows(file):
                pair = _pair(path, number, row)
                if pair is not None:
                    yield pair
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read: {error.strerror or error}; it must be a CSV file") from error


def check_files(metric: Metric | RandomMetric, images: Mapping[Path, Shaped[np.ndarray, "..."]]) -> None:
    """Checks that images from files can be compared by a metric.

    Raises:
        ImageError: they differ in size, or are too small for the metric; names the files.
    """
    # The quotation marks keep the name of a file from being taken for that of an option.
    named = {f"'{path}'": image for path, image in images.items()}
    check_images(UNIT_RANGE, minimum_size=metric.minimum_size, user=metric.name, **named)


def _rows(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line; only the beginning of a line that is too long."""
    number, begun = 0, False
    while piece := file.readline(LONGEST_ROW):
        if not begun:
            number += 1
            yield number, piece
        begun = not piece.endswith(b"\n")


def _pair(path: str | os.PathLike[str], number: int, row: bytes) -> Pair | None:
    """The pair in a row; None for the header and for empty rows."""
    try:
        if len(row) >= LONGEST_ROW:
            raise ValueError(f"longer than {LONGEST_ROW} bytes")
        # Names of files are bytes; those that are not UTF-8 must come back as they are.
        text = row.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").rstrip("\r\n")
        if not text.strip():
            return None
        # Each line alone: a quotation mark that is never closed spoils its own row and no other.
        (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
        if number == 1 and [cell.strip().lower() for cell in cells] == HEADER:
            return None
        if len(cells) != 2:
            raise ValueError(f"{len(cells)} columns")
        if not all(cells):
            raise ValueError("an empty cell")
        if "\0" in text:
            raise ValueError("a null character")
        reference, image = cells
        return Pair(reference, image)
    except (csv.Error, ValueError) as problem:
        advice = "a row is two paths, the reference and the image, and a comma"
        return Pair("", "", error=f"{path} line {number}: {problem}; {advice}")

"""Which files `rlpips distance` compares: those named, those of the same name in two folders, those in a list."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from rlpips_jax import reports
from rlpips_jax.cli import say
from rlpips_jax.errors import ImageFileError
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.scoring.batches import Pair

HEADER = ["reference", "image"]

LONGEST_ROW = 1 << 16
"""Bytes. A row of two paths is shorter; reading one that never ends would fill the memory."""


def of_images(reference: Path, images: Sequence[Path]) -> list[Pair]:
    """Every image with the one reference."""
    return [Pair(str(reference), str(image), (str(reference), str(image))) for image in images]


def of_folders(references: Path, images: Path) -> list[Pair]:
    """Pairs of files with the same path in both folders, sorted; tells of files that have no partner.

    Results call the reference by its folder, and the image by its path below the folders.
    """
    found = [
        {path.relative_to(folder).as_posix(): path for path in image_paths(folder, recursive=True)}
        for folder in (references, images)
    ]
    for here, there, folder in ((*found, references), (*found[::-1], images)):
        if alone := [name for name in here if name not in there]:
            count = "1 image is" if len(alone) == 1 else f"{len(alone)} images are"
            say(f"warning: {count} only in {folder}: {reports.few(alone)}")
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise ImageFileError(
            f"{references} and {images} have no image of the same name; files are paired by their path below "
            "the folder, suffix included"
        )
    return [Pair(str(references), name, (str(found[0][name]), str(found[1][name]))) for name in common]


def of_file(path: Path) -> Iterator[Pair]:
    """The pairs that a CSV file lists, a row at a time: two paths, the reference first.

    A first row `reference,image` is a header. Relative paths start at the current directory. A row that is no pair
    takes its place with an error that names its line.

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


def _rows(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, without its end; of one that is too long only the beginning."""
    number, begun = 0, False
    while piece := file.readline(LONGEST_ROW):
        if not begun:
            number += 1
            yield number, piece
        begun = not piece.endswith(b"\n")


def _pair(path: Path, number: int, row: bytes) -> Pair | None:
    """What a row says; None for the header and for empty rows."""
    problem = None
    cells: list[str] = []
    if len(row) >= LONGEST_ROW:
        problem = f"longer than {LONGEST_ROW} bytes"
    else:
        # Names of files are bytes; those that are no UTF-8 must come back as they are.
        text = row.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").rstrip("\r\n")
        if not text.strip():
            return None
        try:
            # A line at a time: a quotation mark that is never closed spoils its own row and no other.
            (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            problem = str(error)
        else:
            if number == 1 and [cell.strip().lower() for cell in cells] == HEADER:
                return None
            if len(cells) != 2:
                problem = f"{len(cells)} columns"
            elif not all(cells):
                problem = "an empty cell"
            elif "\0" in text:
                problem = "a null character"
    if problem is None:
        reference, image = cells
        return Pair(reference, image, (reference, image))
    return Pair(
        "", "", None, f"{path} line {number}: {problem}; a row is two paths, the reference and the image, and a comma"
    )

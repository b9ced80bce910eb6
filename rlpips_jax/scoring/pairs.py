"""Pairs of image files and their results; the pairs of two folders, of a list, and of the frames of two animations."""

import csv
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import ImageFileError, PairsWarning
from rlpips_jax.files.formats import SUFFIXES
from rlpips_jax.files.image_files import files_below
from rlpips_jax.files.reading import AS_STORED, Picture, Reading
from rlpips_jax.images import UNIT_RANGE, check_images
from rlpips_jax.warning import warn_user

HEADER = ["reference", "image"]

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What separates columns where the first row has no comma."""

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
        images: both images, where they are in memory already; then no file is read.
    """

    reference: str
    image: str
    files: tuple[str, str] | None = None
    error: str | None = None
    images: tuple[Picture, Picture] | None = field(default=None, compare=False, repr=False)

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
        measures: further numbers of the pair by their names, such as "psnr"; empty if there is an error.
    """

    reference: str
    image: str
    distance: np.floating | None = None
    error: str | None = None
    recorded: bool = False
    measures: Mapping[str, np.floating] = field(default_factory=dict)


def images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """The images in a folder and in those inside, sorted, as `rlpips_jax.image_paths` lists them.

    Warns:
        PairsWarning: there are other files, which are left out; says how many of which suffix.
    """
    files = sorted(files_below(folder))
    others = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in SUFFIXES)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        warn_user(f"{folder}: files that are not images by their suffix are left out: {kinds}", PairsWarning)
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def pairs_in_folders(
    references: str | os.PathLike[str], images: str | os.PathLike[str], *, allow_missing: bool = False
) -> list[Pair]:
    """Pairs of the files that have the same path below two folders; sorted.

    Names that differ in Unicode normalisation alone are the same, and those that differ in the suffix alone (`a.png`,
    `a.jpg`; `1.PNG`, `1.png`) too, where each folder has only one image of that name. Results call the reference by
    its folder, and the image by its path below the folders.

    Args:
        references: folder of the references, with any folders inside.
        images: folder of the images.
        allow_missing: whether a file that is in one folder only is left out; otherwise it gives a `Pair` with an error.

    Raises:
        ImageFileError: a folder cannot be listed, or no file is in both.

    Warns:
        PairsWarning: files are left out, because of their suffix, or because they are in one folder only.
    """
    folders = Path(references), Path(images)
    found = [{path.relative_to(folder).as_posix(): path for path in images_below(folder)} for folder in folders]
    partners = _partners(*found)
    if not partners:
        raise ImageFileError(
            f"{references} and {images} have no image of the same name; files are paired by their path below the "
            f"folder, and by that without the suffix where this is unambiguous{_zeros(found[0], found[1])}"
        )
    pairs = [
        Pair(str(references), image, (str(found[0][reference]), str(found[1][image])))
        for reference, image in partners.items()
    ]
    lone = [sorted(found[0].keys() - partners.keys()), sorted(found[1].keys() - set(partners.values()))]
    for folder, alone in zip(folders, lone, strict=True):
        if not alone:
            continue
        count = "1 image is" if len(alone) == 1 else f"{len(alone)} images are"
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        problem = f"{count} only in {folder}: {', '.join(alone[:3])}{more}{_zeros(*lone)}"
        if allow_missing:
            warn_user(problem, PairsWarning)
        else:
            pairs += [Pair(str(references), name, error=problem) for name in alone]
    return sorted(pairs, key=lambda pair: pair.image)


def _partners(references: Mapping[str, Path], images: Mapping[str, Path]) -> dict[str, str]:
    """The image of each reference that has one, by their names."""
    partners: dict[str, str] = {}
    keys: list[Callable[[str], str]] = [str, _normal, _stem]
    for key in keys:
        groups = []
        for names in (references, images):
            group: defaultdict[str, list[str]] = defaultdict(list)
            for name in names:
                group[key(name)].append(name)
            groups.append(group)
        taken = set(partners.values())
        for common in groups[0].keys() & groups[1].keys():
            (reference, *others), (image, *further) = groups[0][common], groups[1][common]
            if not others and not further and reference not in partners and image not in taken:
                partners[reference] = image
    return partners


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    return str(PurePosixPath(_normal(name)).with_suffix(""))


def _zeros(references: Iterable[str], images: Iterable[str]) -> str:
    """The advice for names whose numbers have leading zeros in one folder only: 1.png and 01.png."""
    others = {re.sub(r"0*(\d+)", r"\1", _stem(name)): name for name in images}
    for name in references:
        other = others.get(re.sub(r"0*(\d+)", r"\1", _stem(name)), name)
        if _stem(name) != _stem(other):
            return f" ({name} and {other} differ in leading zeros: rename the files of one folder)"
    return ""


def pairs_of_frames(
    reference: str | os.PathLike[str], image: str | os.PathLike[str], reading: Reading = AS_STORED
) -> Iterator[Pair]:
    """The frames of two animations (GIF, APNG, WebP, AVIF), first with first, decoded as they are needed.

    Where one ends before the other, the last `Pair` has an error.

    Raises:
        ImageFileError: a file cannot be read.
    """
    names = os.fspath(reference), os.fspath(image)
    both = itertools.zip_longest(*map(reading.frames, names))
    for number, images in enumerate(both):
        frames = f"{names[0]}#{number}", f"{names[1]}#{number}"
        for shorter, longer, frame in zip(names, names[::-1], images, strict=True):
            if frame is None:
                yield Pair(*frames, error=f"{longer} has more frames than {shorter}, which has {number}")
                return
        yield Pair(*frames, images=(images[0], images[1]))


def pairs_in_list(path: str | os.PathLike[str]) -> Iterator[Pair]:
    """The pairs in a CSV file, read row by row: two paths, the reference first.

    A first row that has the names `reference` and `image` is a header, and says which of any number of columns they
    are. Columns are separated by commas, or else by semicolons or tabs, if the first row has those alone. Relative
    paths start at the current directory. In place of a row that is not a pair comes a `Pair` with an error.

    Args:
        path: the file in UTF-8, of any length; it may be a pipe.

    Raises:
        ImageFileError: the file cannot be read, or is in UTF-16.

    Warns:
        PairsWarning: columns are not separated by commas.
    """
    columns = None
    try:
        with open(path, "rb") as file:
            for number, row in _rows(file):
                if columns is None and row.strip():
                    columns, header = _columns(path, row)
                    if header:
                        continue
                if columns is not None and (pair := _pair(path, number, row, columns)) is not None:
                    yield pair
    except OSError as error:
        if isinstance(error, ImageFileError):
            raise
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


class _Columns(NamedTuple):
    """Where a row has its two paths."""

    separator: str
    places: tuple[int, int]
    cells: int


def _columns(path: str | os.PathLike[str], row: bytes) -> tuple[_Columns, bool]:
    """What the first row tells of the others, and whether it is a header."""
    if row.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in row[:64]:
        raise ImageFileError(f"{path} seems to be text in UTF-16, as some spreadsheets write; save it as CSV in UTF-8")
    try:
        cells = _cells(row, ",")
        separator = ","
        if len(cells) == 1:
            separator = next((other for other in SEPARATORS if len(_cells(row, other)) > 1), ",")
            cells = _cells(row, separator)
    except csv.Error:
        return _Columns(",", (0, 1), 2), False
    if separator != ",":
        warn_user(f"{path} is read as separated by {SEPARATORS[separator]}, not commas", PairsWarning)
    names = [cell.strip().lower() for cell in cells]
    if set(HEADER) <= set(names):
        reference, image = map(names.index, HEADER)
        return _Columns(separator, (reference, image), len(names)), True
    return _Columns(separator, (0, 1), 2), False


def _cells(row: bytes, separator: str) -> list[str]:
    # Names of files are bytes; those that are not UTF-8 must come back as they are.
    text = row.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
    # Each line alone: a quotation mark that is never closed spoils its own row and no other.
    return next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True), [])


def _pair(path: str | os.PathLike[str], number: int, row: bytes, columns: _Columns) -> Pair | None:
    """The pair in a row; None for empty rows."""
    try:
        if len(row) >= LONGEST_ROW:
            raise ValueError(f"longer than {LONGEST_ROW} bytes")
        if not row.strip():
            return None
        if b"\0" in row:
            raise ValueError("a null character")
        cells = _cells(row, columns.separator)
        if len(cells) != columns.cells:
            raise ValueError(f"{len(cells)} columns")
        reference, image = (cells[place] for place in columns.places)
        if not reference or not image:
            raise ValueError("an empty cell")
        return Pair(reference, image)
    except (csv.Error, ValueError) as problem:
        advice = "a row is two paths, the reference and the image, and a comma"
        if columns.cells > 2:
            advice = f"the header has {columns.cells}"
        return Pair("", "", error=f"{path} line {number}: {problem}; {advice}")

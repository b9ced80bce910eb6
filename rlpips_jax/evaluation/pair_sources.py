"""Where judged pairs come from: one table, `PAIR_SOURCES`, of the data sets and forms in which they are given.

Data sets are read as they are downloaded and unpacked. Images are found by their names, whatever the case of letters
and the folders between, as both vary between copies of a set. The larger a judgment, the more alike the two images:

| data set | its number | better where |
|---|---|---|
| TID2013, TID2008 | MOS, 0 to 9 | larger |
| KADID-10k | `dmos`, 1 to 5, which grows with quality, whatever its name | larger |
| CSIQ | DMOS, 0 to 1; read with a minus | smaller |
| LIVE | DMOS, about 0 to 100; read with a minus | smaller |
| PIPAL | Elo score | larger |
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rlpips_jax.errors import SpreadsheetError, TripletsError
from rlpips_jax.evaluation.judged_pairs import JudgedPairs, by_size
from rlpips_jax.evaluation.triplet_files import AnyPath, check_size, judged_files, read_fraction
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.files.regular import read_regular
from rlpips_jax.files.spreadsheet import read_sheet

JND_SIZE = 64
"""Height and width at which BAPPS's pairs are scored, of files of 256."""

CSIQ_COLUMNS = ("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")
CSIQ_SHEET = "all_by_image"
CSIQ_NAMES = {"noise": "awgn", "jpeg 2000": "jpeg2000"}
"""What names of files call a distortion that the table calls otherwise."""

LIVE_FOLDERS = ("jp2k", "jpeg", "wn", "gblur", "fastfading")
"""In the order of the numbers in LIVE's files."""

LIVE_TABLES = (("dmos_realigned.mat", "dmos_new"), ("dmos.mat", "dmos"))
"""Files of LIVE with their numbers, the better first, and the name of these numbers."""

OPINIONS = {"opinion": 1, "mos": 1, "dmos": -1}
"""Columns of a table of one's own, and the sign of their numbers."""


class Row(NamedTuple):
    """A judged pair."""

    reference: Path
    image: Path
    judgment: float
    kind: str


@dataclass(frozen=True)
class PairSource:
    """One form of judged pairs: an entry of `PAIR_SOURCES`.

    Attributes:
        description: what a user gives.
        matches: whether an existing path has this form.
        rows: the pairs in a path of this form.
        asked: what people were asked for.
        size: shorter side in pixels to which images are resized, unless given; None keeps them as they are.
    """

    description: str
    matches: Callable[[Path], bool]
    rows: Callable[[Path], list[Row]]
    asked: Literal["opinion", "same"] = "opinion"
    size: int | None = None


def pair_source_of(path: AnyPath) -> str | None:
    """The name of the source in `PAIR_SOURCES` that reads a path; None if there is not one."""
    path = Path(path)
    return next((name for name, source in PAIR_SOURCES.items() if source.matches(path)), None)


def read_pairs(path: AnyPath, *, size: int | None = None) -> JudgedPairs:
    """Reads judged pairs in any form of `PAIR_SOURCES`; their images are read later, batch by batch.

    Args:
        path: a folder, or a `.csv` file.
        size: shorter side in pixels to which images are resized; None for the usual one: BAPPS at 64, others as stored.

    Returns:
        The pairs, those of one size together.

    Raises:
        TripletsError: the path has none of the forms, an image is missing, or a number makes no sense.
    """
    path = Path(path)
    check_size(size)
    name = pair_source_of(path)
    if name is None:
        forms = "; ".join(source.description for source in PAIR_SOURCES.values())
        raise TripletsError(f"{path} holds no judged pairs; give one of: {forms}")
    source = PAIR_SOURCES[name]
    rows = source.rows(path)
    if not rows:
        raise TripletsError(f"{path} has no judged pair")
    rows = [rows[at] for at in by_size([row.reference for row in rows])]
    references, images, judgment, kinds = zip(*rows, strict=True)
    size = source.size if size is None else size
    names = [os.path.relpath(file, path.parent) for row in rows for file in row[:2]]
    numbers = np.array(judgment, np.float64)
    made = {"path": os.fspath(path), "form": name, "size": size, "sha256": array_hash(numbers, labels=names)}
    title = path.name if path.is_file() else path.resolve().name
    return JudgedPairs(references, images, numbers, kinds, source.asked, size, title, made)


class _Images:
    """Images anywhere below a folder, by their names, whatever the case and the suffix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, list[Path]] = defaultdict(list)
        for path in image_paths(folder, recursive=True):
            self._found[path.stem.lower()].append(path)

    def __getitem__(self, name: str) -> Path:
        found = self._found.get(Path(name).stem.lower(), [])
        if len(found) != 1:
            what = f"is there more than once: {found[0]}, {found[1]}" if found else "is missing"
            raise TripletsError(f"{self._folder} lists {name}, which {what}")
        return found[0]


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise TripletsError(f"{path} line {line}: {text!r} is not a number")
    return value


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TripletsError(f"{path} cannot be read: {error}") from error
    return ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip())


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each row of a CSV file with a header that has these columns."""
    lines = list(_lines(path))
    reader = csv.DictReader((line for _, line in lines), restval="", skipinitialspace=True)
    header = reader.fieldnames or ()
    if missing := [column for column in columns if column not in header]:
        raise TripletsError(f"{path} has no column {', '.join(missing)}, only {', '.join(header)}")
    for row in reader:
        yield lines[reader.line_num - 1][0], row


def _tid(folder: Path) -> list[Row]:
    images, path = _Images(folder), folder / "mos_with_names.txt"
    rows = []
    for number, line in _lines(path):
        if not re.fullmatch(r"\S+\s+[^\s_]+_[^\s_]+_\S+", line.strip()):
            raise TripletsError(f"{path} line {number}: {line!r} should be a number and a name such as i03_08_2.bmp")
        opinion, name = line.split()
        reference, kind, _ = name.split("_")
        row = Row(images[f"{reference}.bmp"], images[name], _number(opinion, path, number), kind)
        rows.append(row)
    return rows


def _kadid(folder: Path) -> list[Row]:
    images, path = _Images(folder / "images"), folder / "dmos.csv"
    return [
        Row(
            images[row["ref_img"]],
            images[row["dist_img"]],
            _number(row["dmos"], path, number),
            "".join(row["dist_img"].split("_")[1:2]),
        )
        for number, row in _table(path, ("dist_img", "ref_img", "dmos"))
    ]


def _csiq_tables(folder: Path) -> list[Path]:
    """The table that the authors offer, or what was exported from it; the former first."""
    found = [path for path in folder.glob("*") if re.fullmatch(r"csiq.*dmos.*[.](xlsx|csv|txt)", path.name.lower())]
    return sorted(found, key=lambda path: (path.suffix.lower() != ".xlsx", path.name))


def _csiq(folder: Path) -> list[Row]:
    images, path = _Images(folder), _csiq_tables(folder)[0]
    columns: dict[Any, str] = dict(enumerate(CSIQ_COLUMNS))
    rows: list[Row] = []
    for number, cells in enumerate(_csiq_cells(path), start=1):
        if set(CSIQ_COLUMNS) <= set(cells.values()):
            columns = {place: name for place, name in cells.items() if name in CSIQ_COLUMNS}
            continue
        row = {name: cells.get(place, "") for place, name in columns.items()}
        # Other rows are titles, or empty.
        if re.fullmatch(r"\d+([.]0*)?", row["dst_lev"]):
            kind = CSIQ_NAMES.get(row["dst_type"].lower(), row["dst_type"].lower())
            name, level = row["image"].removesuffix(".0"), row["dst_lev"].partition(".")[0]
            image = images[f"{name}.{kind}.{level}.png"]
            rows.append(Row(images[f"{name}.png"], image, -_number(row["dmos"], path, number), kind))
    return rows


def _csiq_cells(path: Path) -> list[dict[Any, str]]:
    """The cells of each row by their columns: letters or numbers."""
    if path.suffix.lower() != ".xlsx":
        lines = [line for _, line in _lines(path)]
        cells = [next(csv.reader([line], delimiter="\t" if "\t" in line else ",")) for line in lines]
        return [dict(enumerate(cell.strip() for cell in row)) for row in cells]
    try:
        return read_sheet(path, CSIQ_SHEET)
    except SpreadsheetError as error:
        advice = f"a .csv or .txt file with the columns {', '.join(CSIQ_COLUMNS)} does too"
        raise TripletsError(f"{error}; {advice}") from error


def _live(folder: Path) -> list[Row]:
    files = [
        (folder / name / f"img{number}.bmp", name)
        for name in LIVE_FOLDERS
        for number in range(1, len(image_paths(folder / name)) + 1)
    ]
    path, key = next((folder / name, key) for name, key in LIVE_TABLES if (folder / name).is_file())
    opinions, originals = (_matlab(path, name).ravel() for name in (key, "orgs"))
    references = [str(np.ravel(cell)[0]) for cell in _matlab(folder / "refnames_all.mat", "refnames_all").ravel()]
    if not len(files) == len(opinions) == len(originals) == len(references):
        raise TripletsError(
            f"{folder} has {len(files)} images in {', '.join(LIVE_FOLDERS)}, {len(opinions)} numbers in {path.name} "
            f"and {len(references)} names in refnames_all.mat; they must be as many (982 in the whole data set)"
        )
    images = _Images(folder / "refimgs")
    return [
        Row(images[reference], file, -float(opinion), kind)
        for (file, kind), opinion, original, reference in zip(files, opinions, originals, references, strict=True)
        if not original
    ]


def _matlab(path: Path, name: str) -> np.ndarray:
    from scipy.io import loadmat

    try:
        return loadmat(path)[name]
    except Exception as error:  # A damaged file makes the reader raise nearly anything.
        raise TripletsError(f"{path} cannot be read as a MATLAB file with {name}: {error}") from error


def _pipal(folder: Path) -> list[Row]:
    images = _Images(folder)
    rows = []
    for path in sorted((folder / "Train_Label").glob("*.txt")):
        for number, line in _lines(path):
            name, _, opinion = line.partition(",")
            reference, _, rest = name.partition("_")
            row = Row(images[f"{reference}.bmp"], images[name], _number(opinion, path, number), rest.partition("_")[0])
            rows.append(row)
    return rows


def _jnd_categories(folder: Path) -> list[Path]:
    """Folders that hold pairs judged as same or not."""
    found = []
    for place, inner, _ in os.walk(folder):
        if "same" in inner and "p0" in inner and "ref" not in inner:
            found.append(Path(place))
        inner[:] = sorted(name for name in inner if name not in ("p0", "p1", "same") and not name.startswith("."))
    return sorted(found)


def _jnd(folder: Path) -> list[Row]:
    return [
        Row(files.images[0], files.images[1], read_fraction(files.judgment), category.resolve().name)
        for category in _jnd_categories(folder)
        for files in judged_files(category, images=("p0", "p1"), judgments="same")
    ]


def _own(path: Path) -> list[Row]:
    rows = []
    for number, row in _table(path, ("reference", "distorted")):
        (column, sign) = next(((name, sign) for name, sign in OPINIONS.items() if name in row), ("", 0))
        if not column:
            raise TripletsError(
                f"{path} has no column of opinions; call it opinion or mos (larger is better) or dmos (smaller is)"
            )
        reference, image = (path.parent / row[name] for name in ("reference", "distorted"))
        rows.append(Row(reference, image, sign * _number(row[column], path, number), row.get("kind") or "all"))
        for file in rows[-1][:2]:
            if not file.is_file():
                raise TripletsError(f"{path} line {number}: {file} is missing, or not a file")
    return rows


PAIR_SOURCES: dict[str, PairSource] = {
    "tid2013": PairSource(
        "TID2013 (mos_with_names.txt, reference_images/, distorted_images/)",
        lambda path: (path / "mos_with_names.txt").is_file(),
        _tid,
    ),
    "kadid10k": PairSource("KADID-10k (dmos.csv, images/)", lambda path: (path / "dmos.csv").is_file(), _kadid),
    "csiq": PairSource(
        "CSIQ (csiq.DMOS.xlsx, src_imgs/, dst_imgs/)", lambda path: path.is_dir() and bool(_csiq_tables(path)), _csiq
    ),
    "live": PairSource(
        f"LIVE (dmos_realigned.mat, refnames_all.mat, refimgs/, {'/, '.join(LIVE_FOLDERS)}/)",
        lambda path: (path / "refnames_all.mat").is_file() and any((path / name).is_file() for name, _ in LIVE_TABLES),
        _live,
    ),
    "pipal": PairSource(
        "PIPAL (Train_Label/, Train_Ref/, Train_Dist/)", lambda path: (path / "Train_Label").is_dir(), _pipal
    ),
    "jnd": PairSource(
        "BAPPS's pairs (p0/, p1/, same/)", lambda path: bool(_jnd_categories(path)), _jnd, "same", JND_SIZE
    ),
    "csv": PairSource(
        "a .csv file of pairs (reference, distorted, opinion)",
        lambda path: path.suffix.lower() == ".csv" and path.is_file(),
        _own,
    ),
}
"""Every form of judged pairs by its name; the first entry that matches a path reads it."""

"""NIGHTS, DreamSim's judged triplets of generated images (Fu et al., "DreamSim", 2023), in the layout of its archive.

A folder with `ref/`, `distort/` and `data.csv`, a row per triplet: `left_vote` and `right_vote` say which image people
found closer, `votes` how many agreed one after another, `ref_path`, `left_path` and `right_path` are files below the
folder, `split` is train, val or test, and `is_imagenet` says whether the prompt was a class of ImageNet.
"""

import csv
import io
import os
from pathlib import Path

import numpy as np

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.triplet_files import AnyPath, check_size, read_images
from rlpips_jax.evaluation.triplets import Triplets
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.files.regular import read_regular

NIGHTS = ("data.csv", "ref", "distort")
"""What marks a folder of NIGHTS."""

NIGHTS_SIZE = 224
"""Height and width at which NIGHTS is scored."""

FEWEST_VOTES = 6
"""Triplets with fewer unanimous votes do not count in published scores."""

PATHS = ("ref_path", "left_path", "right_path")
COLUMNS = ("left_vote", "right_vote", "votes", *PATHS, "split", "is_imagenet")

SPLITS = {
    "train": ("train", None),
    "val": ("val", None),
    "test": ("test", None),
    "test_imagenet": ("test", True),
    "test_no_imagenet": ("test", False),
}
"""Splits by name: the column `split`, and the column `is_imagenet` where it matters."""


def is_nights(folder: Path) -> bool:
    """Whether a folder has the files and folders of NIGHTS."""
    return all((folder / name).exists() for name in NIGHTS)


def read_nights(folder: AnyPath, *, split: str = "test", size: int | None = NIGHTS_SIZE) -> Triplets:
    """Reads a split of NIGHTS: the left image is p0, the right one p1.

    Everything is in memory afterwards: 0.45 MB per triplet at 224x224, 0.8 GB for the test split.

    Args:
        folder: with `data.csv`, `ref/` and `distort/`.
        split: "train", "val", "test", or a half of the last: "test_imagenet", "test_no_imagenet".
        size: shorter side in pixels after resizing, bicubically and antialiased, as for DreamSim's published scores;
            None keeps images as they are.

    Returns:
        The triplets with 6 unanimous votes or more, as in published scores, in the order of the file. Their kinds are
        "imagenet" and "no_imagenet".

    Raises:
        TripletsError: no such folder, split, column or file; a row that makes no sense; images of several sizes.
        ImageFileError: an image cannot be read.
    """
    folder = Path(folder)
    check_size(size)
    if split not in SPLITS:
        raise TripletsError(f"NIGHTS has no split {split!r}; it has {', '.join(SPLITS)}")
    part, imagenet = SPLITS[split]
    paths, judgment, kinds = [], [], []
    for number, row in _rows(folder / NIGHTS[0]):
        try:
            left, right, votes = (float(row[name]) for name in COLUMNS[:3])
            of_imagenet = {"true": True, "false": False}[row["is_imagenet"].strip().lower()]
            fraction = right / (left + right)
        except (ValueError, KeyError, ZeroDivisionError):
            found = ", ".join(f"{name} {row[name]!r}" for name in (*COLUMNS[:3], "is_imagenet"))
            raise TripletsError(
                f"{folder / NIGHTS[0]} line {number}: {found}; votes are numbers, one of left and right above 0, and "
                "is_imagenet is True or False"
            ) from None
        if row["split"] == part and votes >= FEWEST_VOTES and imagenet in (None, of_imagenet):
            paths.append([folder / row[name] for name in PATHS])
            judgment.append(fraction)
            kinds.append("imagenet" if of_imagenet else "no_imagenet")
    if not paths:
        raise TripletsError(f"{folder / NIGHTS[0]} has no triplet of the split {split!r} with {FEWEST_VOTES} votes")
    images = read_images([row[column] for column in range(3) for row in paths], size, bicubic=True)
    reference, p0, p1 = images.reshape(3, len(paths), *images.shape[1:])
    opinions = np.array(judgment, np.float32)
    source = {"folder": os.fspath(folder), "split": split, "size": size}
    source["sha256"] = array_hash(reference, p0, p1, opinions, labels=kinds)
    name = f"{folder.resolve().name} {split}"
    return Triplets(reference, p0, p1, opinions, tuple(kinds), opinions != 0.5, name, source)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The number of each line of `data.csv`, and its cells by column."""
    try:
        text = io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, restval="")
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise TripletsError(f"{path} has no column {', '.join(missing)}")
        return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TripletsError(f"{path} cannot be read: {error}") from error

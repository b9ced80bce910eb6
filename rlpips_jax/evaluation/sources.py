"""Where judged triplets come from: one table, `TRIPLET_SOURCES`, of the forms in which they are given.

>>> import numpy as np
>>> import rlpips_jax as rl
>>> rl.save_image("photograph.png", np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
>>> ordinal, crossed = rl.evaluation.read(".", count=4, size=32, teacher=rl.load("lpips-tiny"))
>>> rl.evaluation.write_npz("judgments.npz", {"ordinal": ordinal})
>>> (triplets,) = rl.evaluation.read("judgments.npz")
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.nights import NIGHTS, NIGHTS_SIZE, is_nights, read_nights
from rlpips_jax.evaluation.pair_sources import PAIR_SOURCES, pair_source_of
from rlpips_jax.evaluation.triplet_files import (
    BAPPS_SIZE,
    PARTS,
    VOTES,
    bapps_categories,
    read_bapps,
    read_judgments,
    read_npz,
)
from rlpips_jax.evaluation.triplets import AnyTriplets, crossed, ordinal
from rlpips_jax.files.image_files import image_paths

PATCH_SIZE = 64
"""Height and width of the patches cut from photographs, unless given."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How triplets are read or made; each source uses those options that concern it.

    Attributes:
        size: shorter side in pixels to which stored images are resized, or to which patches are cut; None for the
            usual one: BAPPS at 64, NIGHTS at 224, other stored images as they are, patches 64.
        split: of a folder of votes, or of NIGHTS.
        count: triplets to make from photographs.
        kinds: distortions to make them with; None for the training kinds.
        teacher: metric that judges as many crossed triplets; None for ordinal triplets alone.
    """

    size: int | None = None
    split: str = "test"
    count: int | None = None
    kinds: Sequence[str] | None = None
    teacher: Metric | None = None


@dataclass(frozen=True)
class TripletSource:
    """One form of judged triplets: an entry of `TRIPLET_SOURCES`.

    Attributes:
        description: what a user gives.
        matches: whether an existing path has this form.
        read: the sets of triplets in a path of this form.
        resizes: whether `ReadOptions.size` resizes stored images.
    """

    description: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Sequence[AnyTriplets]]
    resizes: bool = False


def _read_npz(path: Path, options: ReadOptions) -> list[AnyTriplets]:
    return list(read_npz(path))


def _read_bapps(path: Path, options: ReadOptions) -> list[AnyTriplets]:
    return [read_bapps(path, size=BAPPS_SIZE if options.size is None else options.size)]


def _read_judgments(path: Path, options: ReadOptions) -> list[AnyTriplets]:
    return [read_judgments(path, split=options.split, size=options.size)]


def _read_nights(path: Path, options: ReadOptions) -> list[AnyTriplets]:
    return [read_nights(path, split=options.split, size=NIGHTS_SIZE if options.size is None else options.size)]


def _is_photographs(path: Path) -> bool:
    return path.is_dir() and pair_source_of(path) is None and bool(image_paths(path, recursive=True))


def _from_photographs(path: Path, options: ReadOptions) -> list[AnyTriplets]:
    if options.count is None:
        raise TripletsError(
            f"{path} holds photographs without judgments; make triplets of them: read({os.fspath(path)!r}, count=600)"
        )
    size = PATCH_SIZE if options.size is None else options.size
    made: list[AnyTriplets] = [ordinal(path, options.count, kinds=options.kinds, size=size)]
    if options.teacher is not None:
        made.append(crossed(path, options.count, teacher=options.teacher, kinds=options.kinds, size=size))
    return [replace(triplets, name=f"{path.name} {triplets.name}") for triplets in made]


TRIPLET_SOURCES: dict[str, TripletSource] = {
    "npz": TripletSource("an .npz file", lambda path: path.suffix == ".npz" and path.is_file(), _read_npz),
    "votes": TripletSource(
        f"a folder of images and votes (images/, {VOTES})",
        lambda path: (path / VOTES).is_file(),
        _read_judgments,
        resizes=True,
    ),
    "bapps": TripletSource(
        f"a folder in BAPPS's layout ({', '.join(PARTS)})",
        lambda path: bool(bapps_categories(path)),
        _read_bapps,
        resizes=True,
    ),
    "nights": TripletSource(
        f"a folder in the layout of NIGHTS ({', '.join(NIGHTS)})", is_nights, _read_nights, resizes=True
    ),
    "photographs": TripletSource(
        "a folder of photographs, from which triplets are made", _is_photographs, _from_photographs
    ),
}
"""Every form of judged triplets by its name; the first entry that matches a path reads it."""


def triplet_source_of(path: str | os.PathLike[str]) -> str | None:
    """The name of the source in `TRIPLET_SOURCES` that reads an existing path; None if there is not one."""
    path = Path(path)
    return next((name for name, source in TRIPLET_SOURCES.items() if source.matches(path)), None)


def source_of(path: str | os.PathLike[str]) -> str:
    """The name of the source in `TRIPLET_SOURCES` that reads a path.

    Raises:
        TripletsError: the path does not exist, or no source matches it.
    """
    path = Path(path)
    forms = "; ".join(source.description for source in TRIPLET_SOURCES.values())
    if not path.exists():
        raise TripletsError(f"{path} does not exist; give one of: {forms}")
    if name := triplet_source_of(path):
        return name
    if pairs := pair_source_of(path):
        raise TripletsError(
            f"{path} holds judged pairs, not triplets: {PAIR_SOURCES[pairs].description}; 'rlpips evaluate' and "
            "rlpips_jax.evaluation.read_pairs take them"
        )
    raise TripletsError(f"{path} holds no judged triplets; give one of: {forms}")


def read(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    split: str = "test",
    count: int | None = None,
    kinds: Sequence[str] | None = None,
    teacher: Metric | None = None,
) -> list[AnyTriplets]:
    """Reads judged triplets in any form of `TRIPLET_SOURCES`, or makes them from photographs.

    Args:
        path: a file or a folder.
        size: as in `ReadOptions`.
        split: of a folder of votes, or of NIGHTS.
        count: triplets of each sort to make from a folder of photographs, which needs it.
        kinds: distortions to make them with; None for the training kinds.
        teacher: metric that judges triplets of two distortions, made from photographs too; None for ordinal ones alone.

    Returns:
        One set or several: one for each part of an `.npz` file; ordinal and crossed triplets from photographs.

    Raises:
        TripletsError: the path does not exist, has none of the forms, or its content is wrong.
        ImageFileError: an image cannot be read.
    """
    options = ReadOptions(size=size, split=split, count=count, kinds=kinds, teacher=teacher)
    return list(TRIPLET_SOURCES[source_of(path)].read(Path(path), options))

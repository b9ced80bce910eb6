"""Judged triplets in files: folders in BAPPS's layout, `.npz` files, and votes about the images of a folder.

- BAPPS (Zhang et al. 2018): folders `ref/`, `p0/` and `p1/` of images, and `judge/` of `.npy` files, each with one
  number, the fraction of people who found p1 closer. The files of a triplet have the same name up to the suffix.
  Four such folders are a category, and a set may have several, at any depth: `val/traditional/ref/000000.png`.
- `.npz`: for each part of the set `part/ref`, `part/p0`, `part/p1`, uint8 `(n, h, w, 3)`; `part/judge` `(n,)`, or the
  distances of a teacher, `part/d0` and `part/d1`; optionally `part/kind`, `(n,)` or `(n, 2)`, indices into `kinds`, and
  `part/sure`.
- Votes: a folder with `images/` and a file `triplets.npz`, which has `names` of the images, and for each split
  `split/triplets` `(n, 3)`, indices of reference, p0 and p1, and `split/votes` `(n, 2)`, people for p0 and for p1.

`rlpips_jax.evaluation.sources.read` recognises the form.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.patches import read_uint8
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets, Triplets, teacher_opinion
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.image_files import image_paths, save_image
from rlpips_jax.files.json_object import json_object
from rlpips_jax.files.npz import Npz
from rlpips_jax.files.regular import open_regular

IMAGES = ("ref", "p0", "p1")
JUDGMENTS = "judge"
PARTS = (*IMAGES, JUDGMENTS)
"""Folders of a category of BAPPS."""

BAPPS_SIZE = 64
"""Height and width at which BAPPS is scored, of files of 256."""

VOTES = "triplets.npz"
"""The file that marks a folder of votes."""

AnyPath = str | os.PathLike[str]
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_bapps(folder: AnyPath, *, size: int | None = BAPPS_SIZE) -> Triplets:
    """Reads all categories under a folder.

    Everything is in memory afterwards: 36 KB per triplet at 64x64.

    Args:
        folder: a category, or a folder that contains categories at any depth.
        size: shorter side in pixels after resizing, bilinearly and antialiased, as for LPIPS's published
            scores; None keeps images as they are.

    Returns:
        Triplets by category, in the order of their names. A label is the path of the category within `folder`, or
        the folder's name where it is the category itself.

    Raises:
        TripletsError: no category, a file without its counterpart, images of several sizes, or a judgment that is
            not one number from 0 to 1; names the file.
        ImageFileError: an image cannot be read.
    """
    folder = Path(folder)
    check_size(size)
    categories = bapps_categories(folder)
    if not categories:
        raise TripletsError(f"{folder} has no folders {', '.join(PARTS)} at any depth; each category of BAPPS has them")
    rows, kinds = [], []
    for category in categories:
        added = judged_files(category)
        rows += added
        kinds += [folder.resolve().name if category == folder else category.relative_to(folder).as_posix()] * len(added)
    images = read_images([row.images[part] for part in range(len(IMAGES)) for row in rows], size)
    reference, p0, p1 = images.reshape(len(IMAGES), len(rows), *images.shape[1:])
    judgment = np.array(list(in_threads(read_fraction, [row.judgment for row in rows])), np.float32)
    source = {"folder": os.fspath(folder), "size": size}
    source["sha256"] = array_hash(reference, p0, p1, judgment, labels=kinds)
    return Triplets(reference, p0, p1, judgment, tuple(kinds), judgment != 0.5, folder.resolve().name, source)


def write_bapps(triplets: AnyTriplets, folder: AnyPath) -> None:
    """Writes triplets in BAPPS's layout, one category per kind: `blur/jpeg/ref/000017.png`.

    Files are numbered across the whole set. `read_bapps` with `size=None` gives the same triplets back, sorted by kind;
    `sure`, name and source are not written.

    Args:
        triplets: one or more.
        folder: new or empty.

    Raises:
        TripletsError: the folder has files, there are no triplets, or a kind cannot be the name of a folder.
        ImageFileError: a file cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TripletsError(f"{folder} is not empty; old triplets would mix with new ones: give a new folder")
    if not len(triplets):
        raise TripletsError("there are no triplets to write")
    for kind in sorted(set(triplets.kinds)):
        steps = kind.split("/")
        if any(step in ("", ".", "..", *PARTS) or step.startswith(".") or set(step) & set("\\:\0") for step in steps):
            raise TripletsError(f"kind {kind!r} cannot be a folder's name; give labels such as 'blur' or 'blur/jpeg'")
        for part in PARTS:
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    digits = max(6, len(str(len(triplets) - 1)))

    def write(index: int) -> None:
        one = triplets.batch(index, index + 1)
        category, name = folder / one.kinds[0], f"{index:0{digits}d}"
        for part, images in zip(IMAGES, (one.reference, one.p0, one.p1), strict=True):
            save_image(category / part / f"{name}.png", images[0])
        with replacing(category / JUDGMENTS / f"{name}.npy") as file:
            np.save(file, one.judgment)

    for _ in in_threads(write, range(len(triplets))):
        pass


class JudgedFiles(NamedTuple):
    """The files of one example: its images, in the order of the folders, and its judgment."""

    images: tuple[Path, ...]
    judgment: Path


def judged_files(category: AnyPath, *, images: Sequence[str] = IMAGES, judgments: str = JUDGMENTS) -> list[JudgedFiles]:
    """The examples of a category in BAPPS's layout: the files with the same name, sorted by name.

    Args:
        category: a folder.
        images: its folders of images; BAPPS's pairs have `p0` and `p1` only.
        judgments: its folder of `.npy` files; BAPPS's pairs have `same`.

    Raises:
        TripletsError: a folder or the counterpart of a file is missing, or there are no files; names it.
    """
    category = Path(category)
    parts = (*images, judgments)
    for part in parts:
        if not (category / part).is_dir():
            raise TripletsError(f"{category / part} is missing; a category has the folders {', '.join(parts)}")
    files = {part: image_paths(category / part) for part in images}
    files[judgments] = sorted((category / judgments).glob("*.npy"))
    named: dict[str, dict[str, Path]] = {}
    for part, paths in files.items():
        named[part] = {}
        for path in paths:
            if path.stem in named[part]:
                raise TripletsError(
                    f"{path.parent}: {path.name} and {named[part][path.stem].name} have the same name; remove one"
                )
            named[part][path.stem] = path
    for part, other in itertools.permutations(parts, 2):
        for stem in named[other].keys() - named[part].keys():
            suffix = ".npy" if part == judgments else ".png"
            raise TripletsError(f"{category / part / stem}{suffix} is missing; there is {named[other][stem]}")
    if not named[judgments]:
        raise TripletsError(f"{category} has no triplets: {category / images[0]} holds no image")
    return [
        JudgedFiles(tuple(named[part][stem] for part in images), named[judgments][stem])
        for stem in sorted(named[judgments])
    ]


def read_fraction(path: AnyPath) -> float:
    """The judgment in a `.npy` file: one number, of any shape, from 0 to 1.

    Raises:
        TripletsError: no such file, or not one such number.
    """
    try:
        with open_regular(path) as file:
            number = float(np.load(file, allow_pickle=False).reshape(()))
    except (OSError, ValueError, EOFError, TypeError, AttributeError, MemoryError) as error:
        raise TripletsError(f"{path} is not a .npy file of one number: {error}") from error
    if not 0 <= number <= 1:
        raise TripletsError(f"{path} holds {number:g}; a judgment is a fraction of people, from 0 to 1")
    return number


def resized(
    image: UInt8[np.ndarray, "h w 3"], size: int | None, *, bicubic: bool = False
) -> UInt8[np.ndarray, "i j 3"]:
    """The image resized so that its shorter side has `size` pixels, antialiased; None keeps it as it is.

    Args:
        image: of any size.
        size: in pixels.
        bicubic: as for DreamSim's scores; else bilinear, as for LPIPS's.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    if size is None or shorter == size:
        return image
    from PIL import Image

    # Pillow widens its filters with the reduction, so the result is antialiased.
    kernel = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((width * size // shorter, height * size // shorter), kernel))


def read_npz(path: AnyPath) -> list[Triplets]:
    """Reads every part of an `.npz` file; the docstring of this module describes its content.

    If a part has the distances of a teacher instead of judgments, its judgments are
    `rlpips_jax.evaluation.triplets.teacher_opinion`.

    Returns:
        The parts in the order of their names; each is named "FILE PART".

    Raises:
        TripletsError: the file is missing, damaged or of another kind, or its arrays do not fit.
    """
    path = Path(path)
    arrays = Npz(path, TripletsError)
    parts = sorted(key.removesuffix("ref") for key in arrays if key == "ref" or key.endswith("/ref"))
    if not parts:
        raise TripletsError(f"{path} holds no part/ref, only {', '.join(sorted(arrays)) or 'nothing'}")
    return [_part(path, arrays, part) for part in parts]


class PartSummary(NamedTuple):
    """The description of a part of an `.npz` file, read without its images.

    Attributes:
        shape: of its references, `(n, h, w, 3)` in a correct file.
        made: the source of the set as `write_npz` wrote it; empty if the file has none.
    """

    shape: tuple[int, ...]
    made: Mapping[str, Any]


def summarise_npz(path: AnyPath) -> dict[str, PartSummary]:
    """Summaries of all parts of an `.npz` file by their names, within milliseconds.

    Raises:
        TripletsError: the file is missing, damaged or of another kind.
    """
    path, found = Path(path), {}
    arrays = Npz(path, TripletsError)
    for name in sorted(arrays):
        part, _, last = name.rpartition("/")
        if last == "ref":
            source = f"{name.removesuffix(last)}source"
            made = _made(path, arrays, source) if source in arrays else {}
            found[part] = PartSummary(arrays.declared(name).shape, made)
    return found


def write_npz(path: AnyPath, parts: Mapping[str, Triplets]) -> None:
    """Writes sets of triplets to one `.npz` file atomically: on an error the old file stays as it was.

    The file also holds the source of each set as JSON, which `read_npz` returns as `source["made"]`.

    Args:
        path: ends in .npz.
        parts: the sets by the names of the parts.

    Raises:
        TripletsError: another suffix, no parts, a part's name with a slash, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise TripletsError(f"{path} must end in .npz")
    if not parts or any(not name or "/" in name for name in parts):
        raise TripletsError(f"parts are named {list(parts)}; give one or more, with names without a slash")
    kinds = sorted({kind for triplets in parts.values() for kind in triplets.kinds})
    arrays: dict[str, Any] = {"kinds": np.array(kinds, np.str_)}
    for name, triplets in parts.items():
        columns = {
            "ref": triplets.reference,
            "p0": triplets.p0,
            "p1": triplets.p1,
            "judge": triplets.judgment,
            "kind": np.array([kinds.index(kind) for kind in triplets.kinds], np.int64),
            "sure": triplets.sure,
            "source": np.array(json.dumps(dict(triplets.source))),
        }
        arrays |= {f"{name}/{key}": column for key, column in columns.items() if column is not None}
    try:
        with replacing(path) as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise TripletsError(f"{path} cannot be written: {error.strerror or error}") from error


def read_judgments(folder: AnyPath, *, split: str = "test", size: int | None = None) -> IndexedTriplets:
    """Reads votes about the images of a folder; the docstring of this module describes its content.

    Args:
        folder: with `images/` and `triplets.npz`.
        split: which triplets, such as "train" or "test".
        size: shorter side in pixels after resizing, bilinearly and antialiased; None keeps images as they are.

    Returns:
        Triplets that share their images; the kind of each is the name of the folder.

    Raises:
        TripletsError: no such folder, file or split; an image is missing or of another size; arrays that do not fit.
        ImageFileError: an image cannot be read.
    """
    folder = Path(folder)
    check_size(size)
    path = folder / VOTES
    arrays = Npz(path, TripletsError)
    splits = sorted(key.removesuffix("/triplets") for key in arrays if key.endswith("/triplets"))
    if split not in splits:
        raise TripletsError(f"{path} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    names = [str(name) for name in _array(path, arrays, "names")]
    for name in names:
        if Path(name).name != name or not (folder / "images" / name).is_file():
            raise TripletsError(f"{folder / 'images' / name} is not a file, but {path} names it")
    images = read_images([folder / "images" / name for name in names], size)
    indices, votes = (_array(path, arrays, f"{split}/{key}") for key in ("triplets", "votes"))
    name = folder.resolve().name
    kinds = (name,) * len(indices)
    source = {"folder": os.fspath(folder), "split": split, "size": size}
    source["sha256"] = array_hash(images, indices, votes, labels=kinds)
    with _naming(path):
        return IndexedTriplets(images, indices, votes, kinds, f"{name} {split}", source)


def bapps_categories(folder: Path) -> list[Path]:
    """Folders with most parts of a category, so that missing parts can be named."""
    found = []
    for place, inner, _ in os.walk(folder):
        has = set(inner) & set(PARTS)
        if "ref" in has and len(has) > 1:
            found.append(Path(place))
        inner[:] = sorted(name for name in inner if name not in has and not name.startswith("."))
    return sorted(found)


def check_size(size: int | None) -> None:
    """Raises a TripletsError unless `size` is None or 1 or more."""
    if size is not None and size < 1:
        raise TripletsError(f"size is {size}; give 1 or more pixels, or None to keep images as they are")


def read_images(paths: Sequence[Path], size: int | None, *, bicubic: bool = False) -> UInt8[np.ndarray, "n h w 3"]:
    """Images, `resized`, which must then have one size. They are decoded in threads, as Pillow releases the GIL.

    Raises:
        TripletsError: they differ in size; names two of them.
        ImageFileError: one cannot be read.
    """
    first = resized(read_uint8(paths[0]), size, bicubic=bicubic)
    images = np.empty((len(paths), *first.shape), np.uint8)

    def fill(index: int) -> None:
        image = resized(read_uint8(paths[index]), size, bicubic=bicubic)
        if image.shape != first.shape:
            found, expected = (f"{height}x{width}" for height, width, _ in (image.shape, first.shape))
            raise TripletsError(f"{paths[index]} is {found} pixels and {paths[0]} {expected}; all must be of one size")
        images[index] = image

    for _ in in_threads(fill, range(len(paths))):
        pass
    return images


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order; the first error cancels the calls that have not begun."""
    with ThreadPoolExecutor() as pool:
        try:
            yield from pool.map(function, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _array(path: Path, arrays: Npz, key: str) -> np.ndarray:
    if key not in arrays:
        raise TripletsError(f"{path} has no {key}, only {', '.join(sorted(arrays))}")
    return arrays[key]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to errors about its arrays."""
    try:
        yield
    except TripletsError as error:
        raise TripletsError(f"{path}: {error}") from error


def _made(path: Path, arrays: Npz, key: str) -> dict[str, Any]:
    """The source of a set, as `write_npz` wrote it."""
    try:
        return json_object(str(arrays[key]))
    except ValueError as error:
        raise TripletsError(f"{path}: {key} does not say how the set was made: {error}") from error


def _check_declared(path: Path, arrays: Npz, part: str) -> None:
    """Raises a TripletsError, before they are read, for images that do not fit together."""
    found = {part + name: arrays.declared(part + name) for name in IMAGES if part + name in arrays}
    shapes = {declared.shape for declared in found.values()}
    if len(shapes) > 1 or any(declared.dtype != np.uint8 or len(declared.shape) != 4 for declared in found.values()):
        listing = ", ".join(f"{name} {declared.dtype} {declared.shape}" for name, declared in found.items())
        raise TripletsError(f"{path}: images must be uint8 (n, h, w, 3), of one shape, got {listing}")


def _part(path: Path, arrays: Npz, part: str) -> Triplets:
    _check_declared(path, arrays, part)
    reference, p0, p1 = (_array(path, arrays, part + name) for name in IMAGES)
    name = part.removesuffix("/")
    sure = arrays.get(f"{part}sure")
    with _naming(path):
        if f"{part}d0" in arrays and f"{part}{JUDGMENTS}" not in arrays:
            judgment, sure = teacher_opinion(arrays[f"{part}d0"], _array(path, arrays, f"{part}d1"))
        else:
            judgment = _array(path, arrays, part + JUDGMENTS).astype(np.float32)
        kinds = _labels(path, arrays, part, len(reference))
        source: dict[str, Any] = {"file": os.fspath(path), "part": name}
        if f"{part}source" in arrays:
            source["made"] = _made(path, arrays, f"{part}source")
        source["sha256"] = array_hash(reference, p0, p1, judgment, labels=kinds)
        return Triplets(reference, p0, p1, judgment, kinds, sure, f"{path.name} {name}".rstrip(), source)


def _labels(path: Path, arrays: Npz, part: str, count: int) -> tuple[str, ...]:
    """The label of each triplet; "blur/jpeg" where p0 and p1 have their own."""
    if f"{part}kind" not in arrays:
        return (part.removesuffix("/") or path.stem,) * count
    names, indices = _array(path, arrays, "kinds"), arrays[f"{part}kind"]
    whole = np.issubdtype(indices.dtype, np.integer)
    if not whole or indices.ndim not in (1, 2) or not np.all((indices >= 0) & (indices < len(names))):
        raise TripletsError(f"{part}kind must hold indices, (n,) or (n, 2), of the {len(names)} kinds")
    return tuple("/".join(str(names[index]) for index in row) for row in indices.reshape(len(indices), -1))

"""Labelled images to train classifiers on: archives and folders with one subfolder per class, or TensorFlow Datasets.

- An archive: a `.zip` of files `CLASS/NAME`, which is not unpacked.
- A folder with one subfolder of images per class.
- `tfds:NAME`, a data set of TensorFlow Datasets with images and labels, such as `tfds:cifar10`.

A folder that holds both parts of a data set has them as `train.zip` and `test.zip`, or as folders `train` and `test`.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from rlpips_jax.errors import TrainingError
from rlpips_jax.files.array_hash import array_hash
from rlpips_jax.files.formats import FORMATS, SUFFIXES
from rlpips_jax.files.image_files import image_paths
from rlpips_jax.files.regular import open_regular, read_regular

TFDS = "tfds:"
PARTS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Labelled images of one size, in memory.

    Attributes:
        name: of the data set and part.
        images: `(n, h, w, 3)`.
        labels: `(n,)`, indices into `classes`.
        classes: names, sorted.
    """

    name: str
    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int32[np.ndarray, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def identity(self) -> str:
        """Identifies the content."""
        return array_hash(self.images, self.labels, labels=self.classes)

    def select(self, rows: slice | np.ndarray) -> "ClassImages":
        """The images of some rows."""
        return ClassImages(self.name, self.images[rows], self.labels[rows], self.classes)


def read_classes(data: str | os.PathLike[str], part: str) -> ClassImages:
    """Reads one part of a data set; the docstring of this module lists its forms.

    Args:
        data: a folder with both parts, `tfds:NAME`, or the path of an archive or folder of classes, which is then read
            whatever the part.
        part: "train" or "test".

    Raises:
        TrainingError: there is no such data set, it has no classes or one only, an image cannot be read, or images
            have several sizes.
    """
    if part not in PARTS:
        raise TrainingError(f"the part of a data set must be one of {', '.join(PARTS)}, got {part!r}")
    text = os.fspath(data)
    if text.startswith(TFDS):
        return _from_tfds(text.removeprefix(TFDS), part)
    path = Path(data)
    for candidate in (path / f"{part}.zip", path / part, path):
        if candidate.is_file():
            return _from_archive(candidate)
        if candidate.is_dir() and (candidate == path / part or any(image_paths(candidate, recursive=True))):
            return _from_folder(candidate)
    raise TrainingError(
        f"{text} has no images by class: give a .zip archive or a folder with one subfolder of images per class, a "
        f"folder with {part}.zip or {part}/, or {TFDS}NAME"
    )


def _from_archive(path: Path) -> ClassImages:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            files = {
                info.filename: archive.read(info)
                for info in sorted(archive.infolist(), key=lambda info: info.filename)
                if PurePosixPath(info.filename).suffix.lower() in SUFFIXES
            }
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TrainingError(f"{path} cannot be read as an archive of images: {error}") from error
    return _decoded(path, {name: files[name].__bytes__ for name in files})


def _from_folder(path: Path) -> ClassImages:
    files = {file.relative_to(path).as_posix(): file for file in image_paths(path, recursive=True)}
    return _decoded(path, {name: (lambda file=file: read_regular(file)) for name, file in files.items()})


def _decoded(path: Path, files: Mapping[str, Callable[[], bytes]]) -> ClassImages:
    """The images in files, called CLASS/NAME; those that lie in no class are left out."""
    names = [name for name in files if len(PurePosixPath(name).parts) > 1]
    owners = [PurePosixPath(name).parts[-2] for name in names]
    classes = tuple(sorted(set(owners)))
    if len(classes) < 2:
        raise TrainingError(f"{path} has images of {len(classes)} classes; two or more are needed, one folder for each")

    def decode(name: str) -> UInt8[np.ndarray, "h w 3"]:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(files[name]()), formats=list(FORMATS)) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # Decoders raise errors of many classes.
            raise TrainingError(f"{path}: {name} cannot be read: {error}") from error

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(decode, names))
    if len({image.shape for image in images}) > 1:
        odd = next(index for index, image in enumerate(images) if image.shape != images[0].shape)
        sizes = " and ".join(f"{names[k]} {images[k].shape[0]}x{images[k].shape[1]}" for k in (0, odd))
        raise TrainingError(f"{path} has images of several sizes ({sizes}); one size is needed")
    labels = np.array([classes.index(owner) for owner in owners], np.int32)
    return ClassImages(f"{path.parent.name} {path.stem}".strip(), np.stack(images), labels, classes)


def _from_tfds(name: str, part: str) -> ClassImages:
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder(name)
        builder.download_and_prepare()
        source = builder.as_data_source(part)
        found = [(example["image"], example["label"]) for example in source]
        classes = tuple(builder.info.features["label"].names)
    except Exception as error:  # Of the download, the library and the file system.
        raise TrainingError(f"{TFDS}{name} cannot be read: {error}") from error
    images, labels = zip(*found, strict=True)
    return ClassImages(f"{name} {part}", np.stack(images), np.array(labels, np.int32), classes)

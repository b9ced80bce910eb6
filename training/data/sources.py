"""Where judged triplets come from: random-access sources of one interface, in memory or in the records of BAPPS.

A source can be pickled, for the processes that prepare batches (`training.data.feed`).
"""

import functools
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.triplet_files import BAPPS_SIZE, resized
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets, Triplets
from rlpips_jax.files.array_hash import array_hash

IMAGES = ("reference", "p0", "p1")


class JudgedTriplet(TypedDict):
    """One example: three images, uint8 `(h, w, 3)`, and the fraction of people who found p1 the closer one."""

    reference: UInt8[np.ndarray, "h w 3"]
    p0: UInt8[np.ndarray, "h w 3"]
    p1: UInt8[np.ndarray, "h w 3"]
    judgment: np.float32


@runtime_checkable
class Source(Protocol):
    """Judged triplets by index, 0 to `len(source) - 1`. Several threads may read at once."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> JudgedTriplet: ...


class MemorySource:
    """Triplets in memory.

    Args:
        triplets: any of `rlpips_jax.evaluation`.
    """

    def __init__(self, triplets: AnyTriplets) -> None:
        self.triplets = triplets
        # Those of triplets that share their images would be gathered anew at each reading.
        self._judgment = triplets.judgment

    @property
    def name(self) -> str:
        return self.triplets.name

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> JudgedTriplet:
        _check_index(index, len(self))
        if isinstance(self.triplets, IndexedTriplets):
            reference, p0, p1 = self.triplets.images[self.triplets.indices[index]]
        else:
            reference, p0, p1 = (getattr(self.triplets, name)[index] for name in IMAGES)
        return {"reference": reference, "p0": p0, "p1": p1, "judgment": self._judgment[index]}

    def __repr__(self) -> str:
        return f"MemorySource({self.triplets!r})"


class RecordSource:
    """A split of a prepared data set of triplets; PNG files are decoded and resized as they are read.

    Args:
        directory: what `training.data.bapps.bapps_dataset_builder.prepare` gives.
        split: such as "train_cnn" or "val_traditional".
        size: the shorter side is resized to so many pixels as LPIPS's published scores have it, by Pillow's bilinear
            filter; None keeps images as they are, 256x256.

    Raises:
        TripletsError: no prepared data set there, or not of triplets, or without this split.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str, *, size: int | None = BAPPS_SIZE) -> None:
        if size is not None and size < 1:
            raise TripletsError(f"size is {size}; give 1 or more pixels, or None to keep images as they are")
        self.directory = Path(directory)
        self.split = split
        self.size = size
        self._length = len(_open(self.directory, split, (*IMAGES, "judgment")))

    @functools.cached_property
    def _records(self) -> Sequence[Mapping[str, Any]]:
        return _open(self.directory, self.split, (*IMAGES, "judgment"))

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay here; another process opens its own.
        return {key: value for key, value in vars(self).items() if key != "_records"}

    @property
    def name(self) -> str:
        return self.split

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> JudgedTriplet:
        _check_index(index, len(self))
        example = self._records[index]
        reference, p0, p1 = (decode_png(example[name], self.size) for name in IMAGES)
        return {"reference": reference, "p0": p0, "p1": p1, "judgment": np.float32(example["judgment"])}

    def __repr__(self) -> str:
        return f"RecordSource({os.fspath(self.directory)!r}, {self.split!r}, size={self.size})"


class Pairs(NamedTuple):
    """Pairs of images, `(n, h, w, 3)` uint8, and the fraction of people who took them for the same, `(n,)`."""

    p0: UInt8[np.ndarray, "n h w 3"]
    p1: UInt8[np.ndarray, "n h w 3"]
    same: Float32[np.ndarray, " n"]


def read_pairs(directory: str | os.PathLike[str], split: str, *, size: int | None = BAPPS_SIZE) -> Pairs:
    """All pairs of a split of BAPPS's configuration "jnd", in memory.

    Args:
        directory: what `prepare` gives.
        split: "val_traditional" or "val_cnn".
        size: as in `RecordSource`.

    Raises:
        TripletsError: no prepared data set there, or not of pairs, or without this split.
    """
    records = _open(Path(directory), split, ("p0", "p1", "same"))

    def read(index: int) -> tuple[np.ndarray, np.ndarray, float]:
        example = records[index]
        return decode_png(example["p0"], size), decode_png(example["p1"], size), example["same"]

    with ThreadPoolExecutor() as pool:
        p0, p1, same = zip(*pool.map(read, range(len(records))), strict=True)
    return Pairs(np.stack(p0), np.stack(p1), np.array(same, np.float32))


def materialise(source: Source) -> Triplets:
    """All of a source in memory, for `rlpips_jax.evaluation`: 36 KB a triplet at 64x64.

    Labels are those of the triplets where it has some, otherwise its name without the "train_" or "val_" of BAPPS's
    splits; of judgments, one half is not sure.

    Raises:
        TripletsError: the source is empty, or its images are of several sizes.
    """
    if isinstance(source, MemorySource):
        return source.triplets.batch(0, len(source))
    count = len(source)
    if not count:
        raise TripletsError(f"{source} is empty")
    shape = source[0]["reference"].shape
    arrays = {name: np.empty((count, *shape), np.uint8) for name in IMAGES}
    judgment = np.empty(count, np.float32)

    def fill(index: int) -> None:
        example = source[index]
        for name, images in arrays.items():
            if example[name].shape != shape:
                raise TripletsError(
                    f"{name} of example {index} of {source} has shape {example[name].shape}, and the first reference "
                    f"{shape}; all must be of one size"
                )
            images[index] = example[name]
        judgment[index] = example["judgment"]

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(count)):
            pass
    kinds = (source.name.removeprefix("train_").removeprefix("val_"),) * count
    made = {"from": repr(source), "sha256": array_hash(*arrays.values(), judgment, labels=kinds)}
    return Triplets(**arrays, judgment=judgment, kinds=kinds, sure=judgment != 0.5, name=source.name, source=made)


def decode_png(content: bytes, size: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The image in a PNG file's bytes, resized as `rlpips_jax.evaluation.triplet_files.resized` has it."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return resized(np.asarray(image.convert("RGB")), size)


def _check_index(index: int, length: int) -> None:
    if not 0 <= index < length:
        raise IndexError(f"index {index} is not among the {length} examples, counted from 0")


def _open(directory: Path, split: str, wanted: tuple[str, ...]) -> Sequence[Mapping[str, Any]]:
    """The records of a split, images as PNG bytes."""
    # Here, as whoever trains on triplets in memory needs none of it.
    import tensorflow_datasets as tfds

    if not (directory / "dataset_info.json").is_file():
        raise TripletsError(
            f"{directory} holds no prepared data set; training.data.bapps.bapps_dataset_builder.prepare makes one"
        )
    # Type checkers see neither through its decorators nor which of a union its features are.
    builder = cast(Any, tfds.builder_from_directory(directory))
    features = builder.info.features
    if missing := [name for name in wanted if name not in features]:
        raise TripletsError(
            f"{directory} has {', '.join(sorted(features))}, not {', '.join(missing)}: triplets are in BAPPS's "
            "configuration twoafc, pairs in jnd"
        )
    if split not in builder.info.splits:
        raise TripletsError(
            f"{directory} has no split {split!r}, only {', '.join(builder.info.splits)}. A split is left out where its "
            "archive was not there or not wanted when the data set was built: remove the folder and build it again "
            "with the archive"
        )
    images = {name: tfds.decode.SkipDecoding() for name in wanted if isinstance(features[name], tfds.features.Image)}
    return builder.as_data_source(split, decoders=images)

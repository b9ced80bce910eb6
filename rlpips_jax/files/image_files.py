"""Reads image files (`rlpips_jax.files.decoding`), writes them atomically, and lists them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import jax.core
import numpy as np
from jaxtyping import Shaped, UInt8

from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.decoding import cause, frames, load_image
from rlpips_jax.files.formats import SUFFIXES
from rlpips_jax.images import UNIT_RANGE, ValueRange, check_images, check_value_range

__all__ = ["SUFFIXES", "frames", "image_paths", "load_image", "save_animation", "save_image"]

WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}

ANIMATION_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 1}),
    ".png": ("PNG", {}),
}


def save_image(
    path: str | os.PathLike[str],
    image: Shaped[jax.Array | np.ndarray, "..."],
    *,
    value_range: ValueRange = UNIT_RANGE,
) -> None:
    """Writes one image with 8 bits per channel, atomically: if writing fails, the old file stays.

    PNG and WebP are lossless; JPEG has quality 95 without chroma subsampling. Floats become
    `round(255 (x - black) / (white - black))`. Missing folders are made.

    Args:
        path: its suffix (.png, .jpg, .jpeg or .webp) selects the format.
        image: `(h, w, 3)`, or grey `(h, w)`; uint8, or floating point in `value_range`.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: type, shape, range or values are wrong; NaN is an error, and values are not clipped.
        ImageFileError: the suffix is unknown, or the file cannot be written.
    """
    from PIL import Image

    path = Path(path)
    check_suffix(path)
    kind, options = WRITERS[path.suffix.lower()]
    levels = _levels(image, value_range)
    with _whole(path) as file:
        Image.fromarray(levels).save(file, kind, **options)


def check_suffix(path: Path) -> None:
    """Raises an ImageFileError if `save_image` cannot write a file of this suffix."""
    if path.suffix.lower() not in WRITERS:
        raise ImageFileError(f"{path} must end in one of {', '.join(WRITERS)}, which selects the format")


def save_animation(
    path: str | os.PathLike[str],
    frames: Shaped[jax.Array | np.ndarray, "n h w *c"],
    *,
    seconds: float | int | Sequence[float | int] = 0.1,
    value_range: ValueRange = UNIT_RANGE,
) -> None:
    """Writes frames as an animation that repeats for ever, atomically as `save_image` does.

    Args:
        path: its suffix selects the format: .gif, with 256 colours per frame, or .png, a lossless APNG.
        frames: `(n, h, w, 3)`, or grey `(n, h, w)`; uint8, or floating point in `value_range`.
        seconds: how long each frame is shown: one number for all frames, or one per frame.
        value_range: black and white of floating-point frames.

    Raises:
        ImageError: as for `save_image`, or there are no frames, or `seconds` has a wrong length or value.
        ImageFileError: the suffix is unknown, or the file cannot be written.
    """
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() not in ANIMATION_WRITERS:
        raise ImageFileError(f"{path} must end in one of {', '.join(ANIMATION_WRITERS)}, which selects the format")
    if not len(frames):
        raise ImageError("an animation needs at least one frame")
    times = [seconds] * len(frames) if isinstance(seconds, int | float) else list(seconds)
    if len(times) != len(frames) or not all(0 < time < float("inf") for time in times):
        raise ImageError(f"seconds must be a number above 0, or one per frame ({len(frames)} frames), got {seconds!r}")
    pictures = [Image.fromarray(_levels(frame, value_range)) for frame in frames]
    kind, options = ANIMATION_WRITERS[path.suffix.lower()]
    durations = [round(1000 * time) for time in times]
    with _whole(path) as file:
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=durations, loop=0, **options)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write to, which replaces `path` when the block ends without an error."""
    try:
        with replacing(path) as file:
            yield file
    except Exception as error:  # Encoders raise errors of many classes.
        raise ImageFileError(f"{path} cannot be written: {cause(error)}") from error


def image_paths(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """Lists the images in a folder, sorted, without hidden files (whose name begins with a dot).

    Args:
        folder: the folder to search.
        recursive: search its subfolders too, linked ones among them, but not hidden ones.

    Returns:
        The paths of files whose suffix is in `SUFFIXES`; empty if there are none.

    Raises:
        ImageFileError: the folder does not exist or cannot be read.
    """
    return sorted(path for path in files_below(folder, recursive=recursive) if path.suffix.lower() in SUFFIXES)


def files_below(folder: str | os.PathLike[str], *, recursive: bool = True) -> Iterator[Path]:
    """All files in a folder that are not hidden, in no order. Arguments and errors as in `image_paths`.

    A link to a folder that it lies in is not entered: that would never end.
    """
    try:
        yield from _files(Path(folder), recursive, ())
    except OSError as error:
        raise ImageFileError(f"{folder} cannot be listed: {cause(error)}; give a folder of images") from error


def _files(folder: Path, recursive: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    place = status.st_dev, status.st_ino
    if place in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield folder / entry.name
            elif recursive:
                yield from _files(folder / entry.name, recursive, (*above, place))


def _levels(image: Any, value_range: ValueRange) -> UInt8[np.ndarray, "..."]:
    if isinstance(image, jax.core.Tracer):
        raise ImageError("save_image needs values; call it outside jit, grad and vmap")
    black, white = check_value_range(value_range)
    if getattr(image, "ndim", None) == 2:
        grey = np.asarray(image)
        check_images((black, white), image=np.repeat(grey[..., None], 3, axis=-1))
        array = grey
    else:
        array = np.asarray(check_images((black, white), image=image)[0])
        if array.ndim != 3:
            raise ImageError(f"image has shape {array.shape}; save the images of a batch one by one, each (h, w, 3)")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    scaled = (array.astype(np.float64) - black) * (255 / (white - black))
    # Rounding brings values that the tolerance of the range check accepts back to 0 or 255.
    return np.rint(scaled).astype(np.uint8)

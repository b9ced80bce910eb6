"""Patches cut at random from photographs, with enough contrast to be distorted."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.files.image_files import image_paths, load_image

MINIMUM_DEVIATION = 0.06
"""A patch is kept when the standard deviation of its values, in [0, 1], is above this."""


def list_photographs(folder: str | Path) -> list[Path]:
    """The images anywhere under ``folder``, sorted.

    Raises `ImageFileError` if the folder is missing or has no image.
    """
    files = image_paths(folder, recursive=True)
    if not files:
        raise ImageFileError(f"folder {folder} holds no image; give a folder of photographs")
    return files


def read_uint8(file: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """`rlpips_jax.load_image`, rounded to 8 bits per channel if the file has more."""
    return as_uint8(load_image(file))


def as_uint8(image: Shaped[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """An image file's values, rounded to 8 bits per channel if there are more."""
    return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)


def deviation(patch: UInt8[np.ndarray, "h w 3"]) -> float:
    """Standard deviation of all values of a patch, in units of [0, 1]."""
    return float(patch.astype(np.float32).std()) / 255


def halve(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h//2 w//2 3"]:
    """The image at half its height and width by 2 x 2 box averages, rounded to the nearest (halves up)."""
    wide = image.astype(np.uint16)
    total = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _cut(image: UInt8[np.ndarray, "h w 3"], size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    side = 2 * size if min(image.shape[:2]) >= 2 * size and rng.random() < 0.5 else size
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    patch = image[top : top + side, left : left + side]
    patch = patch if side == size else halve(patch)
    flip_y, flip_x = rng.integers(2, size=2)
    return patch[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def patches(
    folder: str | Path, count: int, *, size: int = 64, rng: np.random.Generator
) -> UInt8[np.ndarray, "count size size 3"]:
    """``count`` random patches from the photographs under ``folder``, in random order.

    A patch is cut at ``size``, or, half of the time if the photograph is large enough, at twice that and
    box-averaged; it is flipped at random along each axis, and kept if its standard deviation is above
    `MINIMUM_DEVIATION`. Photographs contribute equally, except those with too little contrast.

    Raises `ImageFileError` if there is no photograph or one cannot be read, and `ImageError` if all are too
    small or too flat, or ``count`` or ``size`` makes no sense.
    """
    if count < 0 or size < 1:
        raise ImageError(f"count is {count} and size {size}; count must be at least 0 and size at least 1")
    files = list_photographs(folder)
    result = np.empty((count, size, size, 3), np.uint8)
    filled = 0
    while filled < count:
        before = filled
        for position, index in enumerate(rng.permutation(len(files))):
            if filled == count:
                break
            image = read_uint8(files[index])
            if min(image.shape[:2]) < size:
                continue
            wanted = math.ceil((count - filled) / (len(files) - position))
            goal = filled + wanted
            for _ in range(8 * wanted):
                patch = _cut(image, size, rng)
                if deviation(patch) > MINIMUM_DEVIATION:
                    result[filled] = patch
                    filled += 1
                    if filled == goal:
                        break
        if filled == before:
            raise ImageError(
                f"none of the {len(files)} images under {folder} gave a patch; they must be at least {size} "
                f"pixels high and wide and have a standard deviation above {MINIMUM_DEVIATION}"
            )
    rng.shuffle(result)
    return result

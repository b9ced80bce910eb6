"""`Reading`: how image files become the arrays that are compared."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Shaped

from rlpips_jax.errors import ImageError
from rlpips_jax.files.decoding import Background, frames, load_image

Side = int | tuple[int, int]
"""Pixels: of the shorter side or of a square, or height and width."""

Picture = Shaped[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How image files are read. Two results agree only if their images were read alike.

    Attributes:
        background, bits, max_pixels: as in `rlpips_jax.load_image`.
        resize: the shorter side, or height and width, to resize each image to, bicubic and antialiased.
        crop: the side of a square, or height and width, to cut from the middle of each image, after resizing.

    Raises:
        ImageError: a side is not 1 or more.
    """

    background: Background | None = None
    bits: int | None = None
    max_pixels: int | None = None
    resize: Side | None = None
    crop: Side | None = None

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            side = getattr(self, name)
            if side is not None and np.min(side) < 1:
                raise ImageError(f"{name} must be 1 or more pixels, or (height, width), got {side}")

    @property
    def words(self) -> str:
        """What changes numbers, in words; empty if files are read as they are."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "max_pixels"}
        return ", ".join(f"{name} {_text(value)}" for name, value in given.items() if value is not None)

    def image(self, path: str | os.PathLike[str], *, pipes: bool = False) -> Picture:
        """The image in a file. Errors and warnings are those of `load_image`, and of images too small to be cropped."""
        image = load_image(path, background=self.background, bits=self.bits, max_pixels=self.max_pixels, pipes=pipes)
        return self._prepared(image, path)

    def frames(self, path: str | os.PathLike[str]) -> Iterator[Picture]:
        """The frames of an animation, or the pages of a document."""
        for frame in frames(path, background=self.background, max_pixels=self.max_pixels):
            yield self._prepared(frame, path)

    def _prepared(self, image: Picture, path: str | os.PathLike[str]) -> Shaped[np.ndarray, "i j 3"]:
        if self.resize is not None:
            image = resized(image, self.resize)
        if self.crop is None:
            return image
        height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if image.shape[0] < height or image.shape[1] < width:
            raise ImageError(
                f"'{path}' is {image.shape[1]}x{image.shape[0]} pixels, too small to crop {width}x{height} from"
            )
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])


AS_STORED = Reading()
"""Files as they are."""


def resized(image: Picture, side: Side) -> Shaped[np.ndarray, "i j 3"]:
    """The image with another size, bicubic and antialiased.

    Args:
        image: uint8, or floats in [0, 1], where they stay.
        side: pixels of the shorter side, or height and width.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if isinstance(side, int):
        shorter = min(height, width)
        height, width = max(1, round(height * side / shorter)), max(1, round(width * side / shorter))
    else:
        height, width = side
    if (height, width) == image.shape[:2]:
        return image
    # Pillow widens its filters with the reduction, so the result is antialiased.
    options: Any = {"size": (width, height), "resample": Image.Resampling.BICUBIC}
    if image.dtype == np.uint8:
        return np.array(Image.fromarray(image).resize(**options))
    channels = [Image.fromarray(channel).resize(**options) for channel in np.moveaxis(image, -1, 0).astype(np.float32)]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0, 1)


def _text(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    numbers = tuple(value)
    return f"{numbers[1]}x{numbers[0]}" if len(numbers) == 2 else ",".join(map(str, numbers))

"""Reads image files into arrays of the library's convention.

The formats are PNG, JPEG, WebP, TIFF, BMP and GIF; the content of a file decides, not its name. The result is RGB,
upright, `(h, w, 3)`: `uint8` for files of up to 8 bits per channel; `float32` in [0, 1] for files of 16 bits, exactly
`stored / 65535`, and for TIFFs of 12 bits, `stored / 4095`.

- Grey, palette and 1-bit images become RGB without loss; CMYK becomes RGB by the plain formula, without a profile.
- The EXIF orientation is applied, as image viewers do.
- An opaque alpha channel is dropped. A transparent image is blended with `background`, so hidden colours do not count.
- Colour profiles are ignored, because published distances are computed from stored values. Convert files with
  different profiles to sRGB before comparing them.
- From an animation or a document of several pages the first image is read, with a warning. The additional pictures in
  a camera's JPEG (previews, depth, gain maps) are not pages and cause no warning.
- A file with more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 478 485 by default) is refused before it takes memory,
  also where Pillow only warns.
- A damaged file is an error, unless `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set.

Pillow keeps only 8 of the 16 bits of a colour channel. This module makes it decode such files twice, once per byte;
layouts where that is impossible (planar, CMYK or premultiplied TIFFs) are refused, not rounded.

This module does not import JAX, so that processes that only read files start quickly.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt, UInt8

from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning
from rlpips_jax.files.regular import open_regular
from rlpips_jax.warning import warn_user

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's names of the formats read here. Its other decoders are not used; some of them start other programs."""

OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
"""The opposite of each byte order in Pillow's raw modes (little, big, native); with it Pillow keeps the low byte."""

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Matches the beginning of a URL; with one slash, because `Path` joins two into one."""

OTHER_LIBRARY = (
    "save it with 8 or 16 unsigned bits, or read it with another library (tifffile.imread) and pass the array with its "
    "value_range"
)

# Tags of TIFF and EXIF.
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, PLANAR_CONFIGURATION = 258, 262, 274, 284
WHITE_IS_ZERO, PLANAR = 0, 2


class _Picture(NamedTuple):
    """The content of a file: RGB or RGBA values from 0 to `white`, and the texts of warnings."""

    values: UInt[np.ndarray, "h w c"]
    white: int
    remarks: list[str]


def load_image(
    path: str | os.PathLike[str], *, background: Sequence[int] | None = None
) -> UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]:
    """Reads one image file; the docstring of this module tells how each kind is converted.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP or GIF.
        background: RGB, 0 to 255, to blend transparent pixels with; by default white, with a warning.

    Returns:
        RGB, upright: `uint8`, or `float32` in [0, 1] if the file has more than 8 bits per channel.

    Raises:
        ImageFileError: the file is missing, a folder, empty, not an image, damaged, cut off or too large, or its
            values have no fixed range (floating point, signed, 32 bits).
        ImageError: `background` is not three numbers from 0 to 255.

    Warns:
        ImageFileWarning: transparency without a `background`, several pages, or damaged EXIF data.
    """
    colour = _check_background(background)
    path = Path(path)
    picture = _read(path)
    image, transparent = _flatten(picture, colour)
    remarks = picture.remarks
    if transparent and background is None:
        remarks.append("it is partly transparent; it was blended with white (choose with background=)")
    for remark in remarks:
        warn_user(f"{path}: {remark}", ImageFileWarning)
    return image


def _read(path: Path) -> _Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file:
            if not file.read(1):
                raise ImageFileError(f"{path} is empty (0 bytes), not an image")
            return _decode(path, file)
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        if URL.match(str(path)):
            raise ImageFileError(f"{path} looks like a URL, and URLs are not read: download the image") from error
        raise ImageFileError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise ImageFileError(
            f"{path} is a folder, not an image file; 'rlpips distance --dirs' compares two folders, and "
            "rlpips_jax.image_paths lists the images in one"
        ) from error
    except UnidentifiedImageError as error:
        if _begins_as_tiff(path):
            raise ImageFileError(
                f"{path} is a TIFF of a kind that Pillow does not read, such as floating-point, signed or 32-bit "
                f"colours; {OTHER_LIBRARY}"
            ) from error
        raise ImageFileError(
            f"{path} is not an image in one of the formats {', '.join(FORMATS)} (its name does not matter)"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError(f"{path} is too large: {error} {_limit_advice()}") from error
    except OSError as error:
        # For damaged data decoders raise an OSError without errno.
        if error.errno is None:
            raise _damage(path, error) from error
        raise ImageFileError(f"{path} cannot be opened: {error.strerror}") from error
    except Exception as error:  # Decoders raise errors of many classes for damaged files.
        raise _damage(path, error) from error


def _damage(path: Path, error: Exception) -> ImageFileError:
    return ImageFileError(f"{path} cannot be read: {cause(error)}; it is damaged, cut off or of an unsupported kind")


def _decode(path: Path, file: IO[bytes]) -> _Picture:
    image = _open(path, file)
    if image.format == "PNG":
        # Pillow verifies the checksums of the pixel data only on request.
        image.verify()
        image = _open(path, file)
    remarks = []
    if getattr(image, "is_animated", False) and image.format != "MPO":
        remarks.append("it holds several images; the first was read")
    if _is_deep(image):
        values, white = _decode_deep(path, file, image)
    else:
        values, white = _decode_bytes(path, image), 255
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as error:
        orientation = 1
        remarks.append(f"its EXIF data are damaged ({cause(error)}); it was read as upright")
    return _Picture(_upright(values, orientation), white, remarks)


def _begins_as_tiff(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(4) in (b"II*\0", b"MM\0*")


def _open(path: Path, file: IO[bytes]) -> "ImageFile":
    from PIL import Image

    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageFileError(f"{path} is too large: {image.width}x{image.height} pixels. {_limit_advice()}")
    if min(image.size) < 1:
        raise ImageFileError(f"{path} is {image.width}x{image.height} pixels: it is empty")
    return image


def _limit_advice() -> str:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    return f"The limit is PIL.Image.MAX_IMAGE_PIXELS = {limit}; set it higher if you trust the file"


def _decode_bytes(path: Path, image: "ImageFile") -> UInt8[np.ndarray, "h w c"]:
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ImageFileError(f"{path} holds {kind} values, for which black and white are not defined; {OTHER_LIBRARY}")
    transparent = image.has_transparency_data
    # Pillow converts premultiplied grey only to this mode.
    source = image.convert("LA") if image.mode == "La" else image
    return np.array(source.convert("RGBA" if transparent else "RGB"))


def _layouts(image: "ImageFile") -> set[str]:
    """Pillow's names of the layout of the samples in the file."""
    return {str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in image.tile if tile.args}


def _tag(image: "ImageFile", number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _bits(image: "ImageFile") -> int:
    """Returns the bits per channel: a tag in TIFF files, 16 in deep PNG files."""
    return int(np.max(_tag(image, BITS_PER_SAMPLE, 1 if image.format == "TIFF" else 16)))


def _is_deep(image: "ImageFile") -> bool:
    if image.format == "PNG":
        return any(";16" in layout for layout in _layouts(image))
    return image.format == "TIFF" and image.mode not in ("I", "F") and _bits(image) > 8


def _decode_deep(path: Path, file: IO[bytes], image: "ImageFile") -> tuple[UInt[np.ndarray, "h w c"], int]:
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        white = 2 ** _bits(image) - 1
        inverted = _tag(image, PHOTOMETRIC, None) == WHITE_IS_ZERO
        grey = np.asarray(image).astype(np.uint16)
        values = np.repeat((white - grey if inverted else grey)[..., None], 3, axis=-1)
    else:
        values, white = _decode_twice(path, file, image), 65535
    if key is not None:
        opaque = np.any(values != np.asarray(key), axis=-1, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(white)], axis=-1)
    return values, white


def _decode_twice(path: Path, file: IO[bytes], image: "ImageFile") -> UInt[np.ndarray, "h w c"]:
    layouts = _layouts(image)
    layout = layouts.pop()
    if layout == "LA;16B":
        # Read as RGBA, the four bytes of a pixel are two of grey and two of alpha.
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        pixels = np.asarray(image).astype(np.uint16)
        grey, alpha = pixels[..., 0] << 8 | pixels[..., 1], pixels[..., 2] << 8 | pixels[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    colours, _, order = layout.partition(";16")
    if (
        layouts
        or colours not in ("RGB", "RGBX", "RGBA")
        or order not in OTHER_BYTE
        or _tag(image, PLANAR_CONFIGURATION, 1) == PLANAR
    ):
        raise ImageFileError(
            f"{path} has 16 bits per channel, of which Pillow reads only 8 in this layout ({layout}); "
            "save it as PNG or as an interleaved RGB TIFF"
        )
    other = f"{colours};16{OTHER_BYTE[order]}"
    high = np.asarray(image).astype(np.uint16)
    again = _open(path, file)
    again.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
        for tile in again.tile
    ]
    return high << 8 | np.asarray(again)


def _upright(values: UInt[np.ndarray, "i j c"], orientation: int) -> UInt[np.ndarray, "h w c"]:
    """Undoes an EXIF orientation, 1 to 8; any other value counts as 1."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _check_background(background: Any) -> UInt[np.ndarray, "3"]:
    colour = np.asarray((255, 255, 255) if background is None else background)
    if colour.shape != (3,) or colour.dtype.kind not in "iu" or colour.min() < 0 or colour.max() > 255:
        raise ImageError(f"background must be three integers from 0 to 255 (red, green, blue), got {background!r}")
    return colour.astype(np.uint64)


def _flatten(
    picture: _Picture, background: UInt[np.ndarray, "3"]
) -> tuple[UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"], bool]:
    """Returns the image without alpha, in its final type, and whether the background is visible."""
    white = picture.white
    colours, alpha = picture.values[..., :3], picture.values[..., 3:]
    if not np.any(alpha != white):
        if white == 255:
            return np.ascontiguousarray(colours), False
        return np.ascontiguousarray(colours.astype(np.float32) / np.float32(white)), False
    alpha = alpha.astype(np.uint64)
    blend = colours * alpha + background * (white // 255) * (white - alpha)
    if white == 255:
        return ((blend + white // 2) // white).astype(np.uint8), True
    return (blend / white**2).astype(np.float32), True


def cause(error: BaseException) -> str:
    """Returns the message of an exception, or the name of its class if the message is empty."""
    return str(error) or type(error).__name__

"""Reads image files into arrays of the library's convention.

The formats are PNG, JPEG, WebP, TIFF, AVIF, JPEG 2000, PPM, BMP, GIF, TGA and what else Pillow decodes by itself
(`rlpips_jax.files.formats`); the content of a file decides, not its name. The result is RGB, upright, `(h, w, 3)`:
`uint8` for files of up to 8 bits per channel; `float32` in [0, 1] for files of 16 bits, exactly `stored / 65535`, and
for those that state 12 bits or another white, `stored / white`.

- Grey, palette and 1-bit images become RGB without loss; CMYK without a profile becomes RGB by the plain formula.
- The EXIF orientation is applied, as image viewers do.
- An opaque alpha channel is dropped. A transparent image is blended with `background`, so hidden colours do not count,
  unless that is "ignore", as in `lpips`, pyiqa and the scripts of E-LPIPS, which drop the alpha channel.
- Colours of an ICC profile other than sRGB (Display P3, Adobe RGB) become sRGB, relative colorimetric. Stored values of
  sRGB files and of files without a profile stay as they are. Files of 16 bits keep theirs, with a warning.
- From an animation or a document of several pages the first image is read, with a warning; `frames` reads all. The
  additional pictures in a camera's JPEG (previews, depth, gain maps) are not pages and cause no warning.
- A file with more pixels than `max_pixels`, or else `PIL.Image.MAX_IMAGE_PIXELS` (89 478 485 by default), is refused
  before it takes memory, also where Pillow only warns.
- A damaged file is an error, unless `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set. Of damage in the middle of a JPEG,
  whose data have no checksum, only that is noticed which breaks its codes or its markers.

Pillow keeps only 8 of the 16 bits of a colour channel. This module makes it decode PNG and TIFF files twice, once per
byte; layouts where that is impossible (planar, CMYK or premultiplied TIFFs) are refused, not rounded. Of AVIF and
JPEG 2000 files with colours of more than 8 bits Pillow gives 8, with a warning.

This module does not import JAX, so that processes that only read files start quickly.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt, UInt8

from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning
from rlpips_jax.files.colour_profiles import to_srgb
from rlpips_jax.files.formats import FORMATS
from rlpips_jax.files.jpeg_scans import check_scans
from rlpips_jax.files.regular import open_once, open_regular
from rlpips_jax.warning import warn_user

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Background = str | Sequence[int]
"""RGB, 0 to 255; the name of a colour, as in CSS ("black", "#ff8000"); or "ignore"."""

IGNORE = "ignore"
"""In place of a colour: the alpha channel is dropped."""

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

SEVERAL = ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "FLI", "DCX")
"""Formats with several images. The further images of others are layers (PSD) or previews (MPO)."""

HEAD = 1 << 16
"""Bytes in which AVIF and JPEG 2000 files state how many bits a channel has."""

TWELVE_BITS = 4095

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
"""Suffixes of videos, which Pillow does not read."""

BLENDED = 1 << 20
"""Pixels that are blended at once."""


class _Picture(NamedTuple):
    """The content of a file: RGB or RGBA values from 0 to `white`, and the texts of warnings."""

    values: UInt[np.ndarray, "h w c"]
    white: int
    remarks: list[str]


def load_image(
    path: str | os.PathLike[str],
    *,
    background: Background | None = None,
    bits: int | None = None,
    max_pixels: int | None = None,
    pipes: bool = False,
) -> UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]:
    """Reads one image file; the docstring of this module tells how each kind is converted.

    Args:
        path: an image in a format of `rlpips_jax.files.formats`: PNG, JPEG, WebP, TIFF, AVIF, PPM, ...
        background: what to blend transparent pixels with: a colour by its name ("black", "#ff8000") or as RGB, 0 to
            255; "ignore" drops the alpha channel; by default white, with a warning.
        bits: of the values in files of 16 bits per channel, if fewer than 16: 12 makes 4095 white.
        max_pixels: most pixels of an image; by default `PIL.Image.MAX_IMAGE_PIXELS`, 89 478 485.
        pipes: whether a named pipe (`/dev/stdin`, `<(...)`) is read to its end; otherwise it is an error.

    Returns:
        RGB, upright: `uint8`, or `float32` in [0, 1] if the file has more than 8 bits per channel.

    Raises:
        ImageFileError: the file is missing, a folder, empty, not an image, damaged, cut off or too large, or its
            values have no fixed range (floating point, signed, 32 bits) or exceed `bits`.
        ImageError: `background`, `bits` or `max_pixels` is none of the above.

    Warns:
        ImageFileWarning: transparency without a `background`, several pages, bits or a colour profile that cannot be
            taken into account, 16 bits of which no more than 12 seem to be in use, or damaged EXIF data.
    """
    path = Path(path)
    finish = _finish(path, background, bits)
    with _limited(max_pixels), _opened(path, pipes=pipes) as file:
        picture = _decode(path, file)
    return finish(picture)


def frames(
    path: str | os.PathLike[str],
    *,
    background: Background | None = None,
    max_pixels: int | None = None,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of an animation (GIF, APNG, WebP, AVIF) or the pages of a TIFF, one after the other.

    Arguments, errors and warnings as in `load_image`; frames have 8 bits per channel.
    """
    path = Path(path)
    finish = _finish(path, background, None)
    with _opened(path) as file:
        with _limited(max_pixels):
            image = _open(path, file)
        if _is_deep(image):
            raise ImageFileError(
                f"{path} has more than 8 bits per channel, and frames are read with 8: split it into files"
            )
        for number in range(_count(image)):
            image.seek(number)
            values, remarks = _decode_bytes(path, image)
            yield finish(_Picture(values, 255, [] if number else remarks))


def frame_count(path: str | os.PathLike[str]) -> int:
    """The number of images in an animation or a document of several pages; 1 for any other file, readable or not."""
    path = Path(path)
    with contextlib.suppress(ImageFileError), _opened(path) as file:
        return _count(_open(path, file))
    return 1


def _count(image: "ImageFile") -> int:
    return getattr(image, "n_frames", 1) if image.format in SEVERAL else 1


@contextlib.contextmanager
def _opened(path: Path, *, pipes: bool = False) -> Iterator[IO[bytes]]:
    """An image file; what goes wrong with it becomes an error of this library."""
    from PIL import Image, UnidentifiedImageError

    beginning = b""
    try:
        with open_once(path) if pipes else open_regular(path) as file:
            beginning = file.read(4)
            if not beginning:
                raise ImageFileError(f"{path} is empty (0 bytes), not an image")
            yield file
    except (ImageError, ImageFileError, ImageFileWarning):
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
        if beginning in (b"II*\0", b"MM\0*"):
            raise ImageFileError(
                f"{path} is a TIFF of a kind that Pillow does not read, such as floating-point, signed or 32-bit "
                f"colours; {OTHER_LIBRARY}"
            ) from error
        if path.suffix.lower() in VIDEOS:
            raise ImageFileError(
                f"{path} is a video; 'ffmpeg -i {path} {path.stem}/%05d.png' makes a folder of its frames, and 'rlpips "
                "distance' compares two such folders"
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
    except MemoryError as error:
        raise ImageFileError(f"{path} cannot be read: it takes more memory than there is for a file") from error
    except Exception as error:  # Decoders raise errors of many classes for damaged files.
        raise _damage(path, error) from error


@contextlib.contextmanager
def _limited(max_pixels: int | None) -> Iterator[None]:
    """Sets Pillow's limit, which is one for the whole process."""
    from PIL import Image

    if max_pixels is None:
        yield
        return
    if max_pixels < 1:
        raise ImageError(f"max_pixels must be 1 or more, got {max_pixels}")
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _finish(path: Path, background: Background | None, bits: int | None) -> Callable[[_Picture], Any]:
    """The last step of reading: from the content of a file to an image, with its warnings. Checks the options."""
    colour = _check_background(background)
    if bits is not None and not 9 <= bits <= 16:
        raise ImageError(f"bits must be from 9 to 16, the bits in use in files of 16 bits per channel, got {bits}")

    def finish(picture: _Picture) -> Any:
        picture = _of_bits(path, picture, bits)
        image, transparent = _flatten(picture, colour)
        remarks = list(picture.remarks)
        if transparent and background is None:
            remarks.append(
                "it is partly transparent; it was blended with white (choose with background= or --background)"
            )
        for remark in remarks:
            warn_user(f"{path}: {remark}", ImageFileWarning)
        return image

    return finish


def _of_bits(path: Path, picture: _Picture, bits: int | None) -> _Picture:
    """A picture of 16 bits with the white that the user states."""
    if picture.white != 65535:
        return picture
    largest = int(picture.values[..., :3].max())
    if bits is None:
        if TWELVE_BITS // 4 < largest <= TWELVE_BITS:
            picture.remarks.append(
                f"it has 16 bits, and no value above {largest}: if its white is {TWELVE_BITS}, pass bits=12 (--bits 12)"
            )
        return picture
    white = 2**bits - 1
    if largest > white:
        raise ImageFileError(f"{path} has values up to {largest}, more than bits={bits} can hold ({white})")
    values = picture.values.copy()
    values[..., 3:] = np.rint(values[..., 3:] * (white / 65535))
    return picture._replace(values=values, white=white)


def _damage(path: Path, error: Exception) -> ImageFileError:
    return ImageFileError(f"{path} cannot be read: {cause(error)}; it is damaged, cut off or of an unsupported kind")


def _decode(path: Path, file: IO[bytes]) -> _Picture:
    from PIL import ImageFile

    image = _open(path, file)
    if image.format == "PNG":
        # Pillow verifies the checksums of the pixel data only on request.
        image.verify()
        image = _open(path, file)
    elif image.format in ("JPEG", "MPO"):
        file.seek(0)
        check_scans(file.read(), damaged=ImageFile.LOAD_TRUNCATED_IMAGES)
    remarks = []
    if getattr(image, "is_animated", False) and image.format in SEVERAL:
        remarks.append("it holds several images; the first was read")
    if image.format == "PPM":
        values, white = _decode_ppm(path, file, image)
    elif _is_deep(image):
        values, white = _decode_deep(path, file, image)
        if image.info.get("icc_profile"):
            remarks.append("its colour profile was ignored, because it has more than 8 bits per channel")
    else:
        if (stated := _stated_bits(file, image)) > 8:
            remarks.append(f"it has {stated} bits per channel, of which 8 were read")
        (values, more), white = _decode_bytes(path, image), 255
        remarks += more
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as error:
        orientation = 1
        remarks.append(f"its EXIF data are damaged ({cause(error)}); it was read as upright")
    return _Picture(_upright(values, orientation), white, remarks)


def _open(path: Path, file: IO[bytes]) -> "ImageFile":
    from PIL import Image

    file.seek(0)
    image = Image.open(file, formats=list(FORMATS))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageFileError(f"{path} is too large: {image.width}x{image.height} pixels. {_limit_advice()}")
    if min(image.size) < 1:
        raise ImageFileError(f"{path} is {image.width}x{image.height} pixels: it is empty")
    return image


def _limit_advice() -> str:
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    return f"The limit is PIL.Image.MAX_IMAGE_PIXELS = {limit}; pass max_pixels= (--max-pixels) if you trust the file"


def _decode_bytes(path: Path, image: "ImageFile") -> tuple[UInt8[np.ndarray, "h w c"], list[str]]:
    """The values of 8 bits per channel, in sRGB, and a remark on a profile that does not allow that."""
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ImageFileError(f"{path} holds {kind} values, for which black and white are not defined; {OTHER_LIBRARY}")
    transparent = image.has_transparency_data
    image.load()
    converted, remarks = image, []
    try:
        converted = to_srgb(image)
    except Exception as error:  # ImageCms raises errors of many classes, and may be missing.
        remarks.append(f"its colour profile was ignored: {cause(error)}")
    # Pillow converts premultiplied grey only to this mode.
    source = converted.convert("LA") if converted.mode == "La" else converted
    return np.array(source.convert("RGBA" if transparent else "RGB")), remarks


def _decode_ppm(path: Path, file: IO[bytes], image: "ImageFile") -> tuple[UInt[np.ndarray, "h w c"], int]:
    """A PPM, PGM or PBM file: Pillow would round colours of more than 8 bits, and is slow at an unusual white."""
    (tile,) = image.tile
    white = 65535 if image.mode == "I" else 255
    if isinstance(tile.args, tuple):
        white = int(tile.args[-1])
    bands = len(image.getbands())
    if tile.codec_name == "ppm":
        file.seek(tile.offset)
        dtype = np.dtype(">u2" if white > 255 else "u1")
        content = file.read(image.height * image.width * bands * dtype.itemsize)
        stored = np.frombuffer(content, dtype).reshape(image.height, image.width, bands)
        if stored.max() > white:
            raise ImageFileError(f"{path} has values up to {stored.max()}, above its own white {white}")
    elif image.mode == "I":
        # Pillow scales plain text to 65535, by rounding, which loses nothing.
        stored = np.rint(np.asarray(image) * (1 if tile.codec_name == "raw" else white / 65535))[..., None]
    elif white > 255:
        raise ImageFileError(
            f"{path} is plain text of more than 8 bits per channel, which Pillow rounds: save it as PNG"
        )
    else:
        values, _ = _decode_bytes(path, image)
        return values, 255
    if white <= 255:
        stored, white = np.rint(stored / white * 255).astype(np.uint8), 255
    return np.broadcast_to(stored, (*stored.shape[:2], 3)).astype(np.uint8 if white == 255 else np.uint16), white


def _stated_bits(file: IO[bytes], image: "ImageFile") -> int:
    """The bits per channel of an AVIF or JPEG 2000 file, which Pillow does not tell; 8 for other formats."""
    if image.format not in ("AVIF", "JPEG2000"):
        return 8
    file.seek(0)
    head = file.read(HEAD)
    if image.format == "AVIF":  # The flags high_bitdepth and twelve_bit of AV1CodecConfigurationRecord.
        flags = head.partition(b"av1C")[2][2:3]
        return {0: 8, 2: 10, 3: 12}.get(flags[0] >> 5 & 3, 8) if flags else 8
    siz = head.partition(b"\xff\x4f\xff\x51")[2][38:39]  # Ssiz of the first component, ISO 15444-1 A.5.1.
    return (siz[0] & 127) + 1 if siz else 8


def _layouts(image: "ImageFile") -> set[str]:
    """Pillow's names of the layout of the samples in the file."""
    return {str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in image.tile if tile.args}


def _tag(image: "ImageFile", number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _bits(image: "ImageFile") -> int:
    """Returns the bits per channel: a tag in TIFF files, 16 in other deep files."""
    return int(np.max(_tag(image, BITS_PER_SAMPLE, 1 if image.format == "TIFF" else 16)))


def _is_deep(image: "ImageFile") -> bool:
    if image.format == "PNG":
        return any(";16" in layout for layout in _layouts(image))
    if image.mode.startswith("I;16"):  # SGI and JPEG 2000, which Pillow shifts up to 16 bits.
        return True
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
    high <<= 8
    high |= np.asarray(again)
    return high


def _upright(values: UInt[np.ndarray, "i j c"], orientation: int) -> UInt[np.ndarray, "h w c"]:
    """Undoes an EXIF orientation, 1 to 8; any other value counts as 1."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _check_background(background: Any) -> UInt[np.ndarray, "3"] | None:
    """The colour to blend with; None to ignore transparency."""
    from PIL import ImageColor

    if background == IGNORE:
        return None
    colour = (255, 255, 255) if background is None else background
    if isinstance(colour, str):
        with contextlib.suppress(ValueError):
            colour = ImageColor.getrgb(colour)
    found = np.asarray(colour)
    if found.shape != (3,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() > 255:
        raise ImageError(
            "background must be the name of a colour (white, black, '#ff8000'), three integers from 0 to 255 (red, "
            f"green, blue), or 'ignore', got {background!r}"
        )
    return found.astype(np.uint64)


def _flatten(
    picture: _Picture, background: UInt[np.ndarray, "3"] | None
) -> tuple[UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"], bool]:
    """Returns the image without alpha, in its final type, and whether the background is visible."""
    values, white = picture.values, picture.white
    shown = None if background is None or not np.any(values[..., 3:] != white) else background
    flat = np.empty((*values.shape[:2], 3), np.uint8 if white == 255 else np.float32)
    # Some rows at a time: exact blending takes 64 bits per value.
    rows = max(1, BLENDED // values.shape[1])
    for start in range(0, len(values), rows):
        colours, alpha = values[start : start + rows, :, :3], values[start : start + rows, :, 3:]
        if shown is not None:
            alpha = alpha.astype(np.uint64)
            blend = 255 * colours.astype(np.uint64) * alpha + shown * white * (white - alpha)
            blended = (blend // 255 + white // 2) // white if white == 255 else blend / (255 * white**2)
        else:
            blended = colours if white == 255 else colours.astype(np.float32) / np.float32(white)
        flat[start : start + rows] = blended
    return flat, shown is not None


def cause(error: BaseException) -> str:
    """Returns the message of an exception, or the name of its class if the message is empty."""
    return str(error) or type(error).__name__

"""Colours of an embedded ICC profile (Display P3, Adobe RGB, grey and CMYK profiles) as sRGB, by Pillow's ImageCms."""

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

NEAR = 2
"""Levels. A profile whose conversion moves no colour further is sRGB but for rounding; stored values stay then."""

GRID = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)
"""Colours of all of RGB, as an image."""

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for the colour space of a profile."""


def to_srgb(image: "Image") -> "Image":
    """The image in sRGB, with its alpha channel if it has one; itself if its profile is sRGB, or if it has none.

    The intent is relative colorimetric.

    Args:
        image: of 8 bits per channel.

    Raises:
        Exception: the profile is damaged, or of another colour space than the image. ImageCms is not particular about
            the class.
    """
    content = image.info.get("icc_profile")
    if not content:
        return image
    space, transform = _transform(content)
    if transform is None:
        return image
    mode = MODES[space]
    if mode == "CMYK" and image.mode != "CMYK":
        raise ValueError("the profile is one of CMYK, the image is not")
    if mode == "L" and image.mode not in ("1", "L", "LA", "La"):
        raise ValueError("the profile is one of grey, the image has colours")
    # Premultiplied alpha is undone first; a palette becomes the colours that it stands for.
    plain = image.convert({"La": "LA", "P": "RGBA", "PA": "RGBA"}.get(image.mode, image.mode))
    converted = transform.apply(plain.convert(mode))
    if image.has_transparency_data:
        converted.putalpha(plain.convert("RGBA").getchannel("A"))
    return converted


@functools.lru_cache(maxsize=64)
def _transform(content: bytes) -> tuple[str, Any]:
    """The colour space of a profile, and its transform to sRGB, None if that changes nothing."""
    from PIL import Image, ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    space = getattr(profile.profile, "xcolor_space", "").strip()
    if space not in MODES:
        raise ValueError(f"profiles of {space} are not supported")
    srgb = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(profile, srgb, MODES[space], "RGB", renderingIntent=intent)
    if space != "CMYK":
        grid = Image.fromarray(GRID if space == "RGB" else np.arange(256, dtype=np.uint8)[None])
        before, after = (np.asarray(picture.convert("RGB"), int) for picture in (grid, transform.apply(grid)))
        if np.abs(before - after).max() <= NEAR:
            return space, None
    return space, transform

"""Heat maps and contact sheets as pictures, drawn with Pillow and its own font."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from rlpips_jax.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (113, 113, 122)
MARGIN, GAP = 16, 12
TEXT, SMALL = 15, 12
LEADING = 1.35
"""Height of a line of text over the size of its font."""

SMALLEST_PANEL, LARGEST_PANEL = 256, 1024
"""Limits in pixels of a panel's shorter and longer side: smaller images are enlarged by repeating pixels, larger ones
reduced."""

Picture = Shaped[np.ndarray, "h w 3"]


def heat(values: Float[np.ndarray, "h w"], maximum: float) -> UInt8[np.ndarray, "h w 3"]:
    """Colours for values from 0 (nearly black, violet) over red to `maximum` and above (pale yellow).

    Equal steps of value are equal steps of perceived colour: the colours lie evenly on a curve through OKLab
    (Ottosson 2020) along which lightness only increases, so the map can be read in grey too.

    Args:
        values: finite, 0 or more.
        maximum: above 0.

    Raises:
        ImageError: a value or the maximum is out of bounds.
    """
    if not (np.isfinite(maximum) and maximum > 0):
        raise ImageError(f"the maximum of a heat map's scale must be a number above 0, got {maximum}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ImageError("values of a heat map must be finite and 0 or more")
    colours = _heat_colours()
    positions = np.minimum(values / maximum, 1) * (len(colours) - 1)
    return colours[np.rint(positions).astype(np.intp)]


@functools.cache
def _heat_colours() -> UInt8[np.ndarray, "256 3"]:
    steps = np.linspace(0, 1, 4096)
    lightness = 0.12 + 0.84 * steps
    hue = np.deg2rad(285 + 180 * steps)
    # Within the gamut of a screen at each lightness and hue.
    chroma = np.interp(steps, (0, 0.25, 0.55, 0.75, 1), (0.05, 0.12, 0.20, 0.155, 0.11))
    curve = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=-1))])
    even = np.linspace(0, travelled[-1], 256)
    lab = np.stack([np.interp(even, travelled, component) for component in curve.T], axis=-1)
    return np.rint(_oklab_to_srgb(lab) * 255).astype(np.uint8)


def _oklab_to_srgb(lab: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    to_cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def heat_map(
    reference: Picture,
    image: Picture,
    values: Float[np.ndarray, "h w"],
    *,
    names: tuple[str, str],
    title: str,
    notes: Sequence[str] = (),
    maximum: float | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Reference, image and heat map side by side, with a scale below the map.

    Args:
        reference: uint8, or floating point in [0, 1].
        image: of the same size.
        values: one per pixel, as from `rlpips_jax.distance_map`.
        names: captions of the reference and the image.
        title: caption of the map.
        notes: lines below the pictures; the last is small print.
        maximum: end of the scale; None for the largest value. Give it to compare several maps.

    Raises:
        ImageError: the sizes differ, or values and maximum cannot be shown.
    """
    if not reference.shape == image.shape == (*values.shape, 3):
        raise ImageError(
            f"a heat map needs pictures and values of one size, got {reference.shape}, {image.shape} and {values.shape}"
        )
    largest = float(values.max())
    # Identical images have a map of zeros, which any scale shows.
    scale = maximum if maximum is not None else largest or 1.0
    panels = [_panel(picture) for picture in (reference, image, heat(values, scale))]
    height = panels[0].height
    width = max(panels[0].width, SMALLEST_PANEL)
    top = MARGIN + _line(TEXT)
    lines = [_line(TEXT)] * (len(notes) - 1) + [_line(SMALL)] * min(len(notes), 1)
    bar = _line(SMALL) + 14
    sheet = _Sheet(2 * MARGIN + 3 * width + 2 * GAP, top + height + GAP + bar + sum(lines) + MARGIN)
    for number, (panel, name) in enumerate(zip(panels, (*names, title), strict=True)):
        left = MARGIN + number * (width + GAP)
        sheet.write(name, left, MARGIN - 2, width)
        sheet.paste(panel, left + (width - panel.width) // 2, top)
    left, below = MARGIN + 2 * (width + GAP), top + height + GAP
    ramp = np.broadcast_to(np.linspace(0, 1, width)[None], (12, width))
    sheet.paste(_panel(heat(ramp, 1.0), enlarge=False), left, below)
    sheet.write("0", left, below + 14, width, SMALL, FAINT)
    end = f"{scale:.4g}" + (" and above" if largest > scale else "")
    sheet.write(end, left, below + 14, width, SMALL, FAINT, to_right=True)
    position = below
    for number, note in enumerate(notes):
        last = number == len(notes) - 1
        # The last note is below the scale, the others beside it.
        if last:
            position = max(position, below + bar)
        room = sheet.width - 2 * MARGIN if last else 2 * width + GAP
        sheet.write(note, MARGIN, position, room, SMALL if last else TEXT, FAINT if last else INK)
        position += lines[number]
    return sheet.pixels(position + MARGIN // 2)


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet and the lines below it, of which the first is dark and the others are grey."""

    picture: Picture
    caption: tuple[str, ...] = ()


def contact_sheet(
    rows: Sequence[Sequence[Tile]], *, title: str = "", notes: Sequence[str] = (), size: int = 160
) -> UInt8[np.ndarray, "H W 3"]:
    """Rows of captioned pictures, each fitted into a square; small ones are enlarged by repeating pixels. A row is as
    high as its highest picture.

    Args:
        rows: at least one, with at least one tile each; they may differ in length.
        title: a line above.
        notes: lines below the title, small.
        size: of the squares in pixels.

    Raises:
        ImageError: there is no picture.
    """
    if not rows or not all(rows):
        raise ImageError("a contact sheet needs rows of one picture or more")
    columns = max(len(row) for row in rows)
    head = (_line(TEXT) if title else 0) + _line(SMALL) * len(notes) + (GAP // 2 if title or notes else 0)
    captions = [max(len(tile.caption) for tile in row) for row in rows]
    pictures = [[_in_square(tile.picture, size) for tile in row] for row in rows]
    highest = [max(picture.height for picture in row) for row in pictures]
    heights = [high + 4 + _line(SMALL) * lines + GAP for high, lines in zip(highest, captions, strict=True)]
    sheet = _Sheet(2 * MARGIN + columns * size + (columns - 1) * GAP, 2 * MARGIN - GAP + head + sum(heights))
    room = sheet.width - 2 * MARGIN
    top = MARGIN
    if title:
        sheet.write(title, MARGIN, top, room)
        top += _line(TEXT)
    for note in notes:
        sheet.write(note, MARGIN, top, room, SMALL, FAINT)
        top += _line(SMALL)
    top = MARGIN + head
    for row, fitted, high, height in zip(rows, pictures, highest, heights, strict=True):
        for column, (tile, picture) in enumerate(zip(row, fitted, strict=True)):
            left = MARGIN + column * (size + GAP)
            sheet.paste(picture, left + (size - picture.width) // 2, top + (high - picture.height) // 2)
            for number, line in enumerate(tile.caption):
                ink = FAINT if number else INK
                sheet.write(line, left, top + high + 4 + number * _line(SMALL), size, SMALL, ink)
        top += height
    return sheet.pixels()


def _in_square(picture: Picture, size: int) -> "Image":
    """A picture fitted into a square, a small one enlarged by repeating pixels."""
    from PIL import Image

    fitted = Image.fromarray(as_bytes(picture))
    times = size // max(fitted.size)
    if times > 1:
        fitted = fitted.resize((fitted.width * times, fitted.height * times), Image.Resampling.NEAREST)
    fitted.thumbnail((size, size), Image.Resampling.LANCZOS)
    return fitted


class _Sheet:
    """A white picture to paste pictures and write lines on."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    @property
    def width(self) -> int:
        return self.image.width

    def paste(self, picture: "Image", left: int, top: int) -> None:
        self.image.paste(picture, (left, top))

    def write(
        self,
        text: str,
        left: int,
        top: int,
        room: int,
        size: int = TEXT,
        ink: tuple[int, int, int] = INK,
        *,
        to_right: bool = False,
    ) -> None:
        font = _font(size)
        text = _fitted(text, font, room)
        left += round(room - font.getlength(text)) if to_right else 0
        self.draw.text((left, top), text, fill=ink, font=font)

    def pixels(self, height: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        return np.array(self.image)[:height]


@functools.cache
def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitted(text: str, font: "FreeTypeFont | ImageFont", room: int) -> str:
    """The text, without its middle if it is too long: paths differ at their ends."""
    if font.getlength(text) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= room:
            return short
    return ""


def _line(size: int) -> int:
    return round(size * LEADING)


def _panel(picture: Picture, *, enlarge: bool = True) -> "Image":
    from PIL import Image

    panel = Image.fromarray(as_bytes(picture))
    if not enlarge:
        return panel
    if max(panel.size) > LARGEST_PANEL:
        panel.thumbnail((LARGEST_PANEL, LARGEST_PANEL), Image.Resampling.LANCZOS)
        return panel
    times = min(-(-SMALLEST_PANEL // min(panel.size)), max(1, LARGEST_PANEL // max(panel.size)))
    return panel.resize((panel.width * times, panel.height * times), Image.Resampling.NEAREST)


def as_bytes(picture: Shaped[np.ndarray, "*n h w 3"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Pictures as uint8; floats in [0, 1] are rounded, and those outside are clipped."""
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def amplified(
    before: UInt8[np.ndarray, "h w 3"], after: UInt8[np.ndarray, "h w 3"]
) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The difference of two pictures around grey, times a whole number so that it can be seen, and that number."""
    change = after.astype(np.int32) - before
    factor = max(1, 110 // max(1, int(np.abs(change).max())))
    return np.clip(128 + factor * change, 0, 255).astype(np.uint8), factor

"""Image files of every kind that people have, damaged ones among them."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning
from rlpips_jax.files.image_files import image_paths, load_image, save_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
ROWS, COLUMNS = np.mgrid[0:24, 0:40]
SMOOTH = np.stack([ROWS * 10, COLUMNS * 6, 255 - ROWS * 4 - COLUMNS * 3], -1).astype(np.uint8)
"""No two of its eight orientations are alike."""

LOSSLESS = ["PNG", "TIFF", "BMP", "WEBP"]


def write(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    image.save(path, **options)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour_type: int, bits: int, *between: bytes, size: Any = None) -> bytes:
    """A PNG file made by the letter of its specification, unfiltered."""
    height, width = size or pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(pixels.shape[0], -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *between, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(
    data: bytes,
    width: int,
    height: int,
    bits: list[int],
    photometric: int,
    *,
    order: str = "<",
    tags: dict[int, int] | None = None,
) -> bytes:
    """A TIFF file of one strip; further tags by number."""
    values: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: bits,
        259: [1],
        262: [photometric],
        273: [0],
        277: [len(bits)],
        278: [height],
        279: [len(data)],
    }
    values |= {tag: [value] for tag, value in (tags or {}).items()}
    entries, extra = b"", b""
    after = 8 + 2 + 12 * len(values) + 4
    values[273] = [after + 2 * len(bits)]
    for tag, items in sorted(values.items()):
        if len(items) > 2:
            field = struct.pack(order + "I", after + len(extra))
            extra += struct.pack(f"{order}{len(items)}H", *items)
            kind = 3
        elif len(items) == 2:
            field, kind = struct.pack(order + "HH", *items), 3
        else:
            field, kind = struct.pack(order + "I", items[0]), 4
        entries += struct.pack(order + "HHI", tag, kind, len(items)) + field
    directory = struct.pack(order + "H", len(values)) + entries + bytes(4)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return start + directory + extra.ljust(2 * len(bits), b"\0") + data


def put(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# Round trips


@settings(max_examples=40, deadline=None)
@given(
    image=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    suffix=st.sampled_from([".png", ".webp", ".PNG"]),
)
def test_lossless_formats_return_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, image: np.ndarray, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    save_image(path, image)
    loaded = load_image(path)
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous
    assert loaded.flags.writeable
    np.testing.assert_array_equal(loaded, image)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_returns_nearly_what_was_saved(tmp_path: Path, suffix: str) -> None:
    save_image(tmp_path / f"a{suffix}", SMOOTH)
    assert np.abs(load_image(tmp_path / f"a{suffix}").astype(int) - SMOOTH).max() <= 4


def test_suffix_states_the_format(tmp_path: Path) -> None:
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")):
        save_image(tmp_path / f"a{suffix}", NOISE)
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.format == kind


@pytest.mark.parametrize("kind", LOSSLESS)
def test_content_counts_not_the_name(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "picture.jpg", NOISE, format=kind, lossless=True)
    np.testing.assert_array_equal(load_image(path), NOISE)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("offset", [-0.49, 0.0, 0.49])
def test_floats_go_to_the_nearest_level(tmp_path: Path, value_range: tuple[float, float], offset: float) -> None:
    levels = np.arange(256).reshape(16, 16)
    inside = np.clip(levels + offset, 0, 255) / 255
    black, white = value_range
    image = np.repeat((black + (white - black) * inside)[..., None], 3, -1).astype(np.float32)
    save_image(tmp_path / "a.png", image, value_range=value_range)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[..., 1], levels)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_arrays_of_jax_are_saved(tmp_path: Path, dtype: Any) -> None:
    image = jnp.asarray([[[0.0, 0.5, 1.0], [0.25, 0.75, 1.0]]], dtype)
    save_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), [[[0, 128, 255], [64, 191, 255]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_grey_arrays_are_saved(tmp_path: Path, dtype: type) -> None:
    grey = NOISE[..., 0]
    image = grey if dtype == np.uint8 else (grey / 255).astype(dtype)
    save_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, -1))


# Orientation

SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""Where the specification of EXIF has the stored row 0 and column 0 appear to the eye."""


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    sides = SIDES[orientation]
    if "bottom" in sides:
        upright = np.flip(upright, 0)
    if "right" in sides:
        upright = np.flip(upright, 1)
    # Row 0 at the left or right: the stored rows are columns to the eye.
    return np.moveaxis(upright, 1, 0) if sides[0] in ("left", "right") else upright


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[274] = orientation
    return data


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation_is_undone(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.ascontiguousarray(stored(SMOOTH, orientation))
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    path = write(tmp_path / "a", pixels, format=kind, exif=exif(orientation), **options)
    difference = load_image(path).astype(int) - SMOOTH
    assert np.abs(difference).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", SIDES)
def test_orientation_of_deep_files_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = RNG.integers(0, 65536, (3, 5, 3))
    pixels = stored(upright, orientation)
    height, width = pixels.shape[:2]
    content = tiff(pixels.astype("<u2").tobytes(), width, height, [16] * 3, 2, tags={274: orientation})
    np.testing.assert_array_equal(load_image(put(tmp_path, content)), upright.astype(np.float32) / 65535)
    data = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    path = put(tmp_path, png(pixels, 2, 16, chunk(b"eXIf", data)))
    np.testing.assert_array_equal(load_image(path), upright.astype(np.float32) / 65535)


@pytest.mark.parametrize("orientation", [0, 9, 1000])
def test_orientation_that_is_none_changes_nothing(tmp_path: Path, orientation: int) -> None:
    path = write(tmp_path / "a.png", NOISE, exif=exif(orientation))
    np.testing.assert_array_equal(load_image(path), NOISE)


def test_damaged_exif_is_said(tmp_path: Path) -> None:
    path = put(tmp_path, png(NOISE, 2, 8, chunk(b"eXIf", b"nonsense")))
    with pytest.warns(ImageFileWarning, match="EXIF data are damaged"):
        image = load_image(path)
    np.testing.assert_array_equal(image, NOISE)


# More than 8 bits


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_deep_png_is_exact(tmp_path: Path, colour_type: int, channels: int) -> None:
    pixels = RNG.integers(0, 65536, (5, 7, channels))
    pixels[0, :3, 0] = [0, 255, 65535]
    if channels in (2, 4):
        pixels[..., -1] = 65535
    image = load_image(put(tmp_path, png(pixels, colour_type, 16)))
    assert image.dtype == np.float32
    colours = pixels[..., :1] if channels < 3 else pixels[..., :3]
    expected = np.broadcast_to(colours, (5, 7, 3)).astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_tiff_is_exact(tmp_path: Path, order: str, deflated: bool, channels: int) -> None:
    pixels = RNG.integers(0, 65536, (5, 7, channels))
    pixels[..., 3:] = 65535
    data = pixels.astype(order + "u2").tobytes()
    tags = {259: 8} if deflated else {}
    if channels == 4:
        tags[338] = 2
    photometric = 1 if channels == 1 else 2
    content = tiff(
        zlib.compress(data) if deflated else data, 7, 5, [16] * channels, photometric, order=order, tags=tags
    )
    expected = np.broadcast_to(pixels[..., :3], (5, 7, 3)).astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(load_image(put(tmp_path, content)), expected)


def test_deep_grey_where_zero_is_white(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (5, 7))
    image = load_image(put(tmp_path, tiff(pixels.astype("<u2").tobytes(), 7, 5, [16], 0)))
    np.testing.assert_array_equal(image[..., 0], (65535 - pixels).astype(np.float32) / np.float32(65535))


def test_twelve_bits(tmp_path: Path) -> None:
    # Two samples in three bytes, the most significant bits first.
    data = bytes([0xFF, 0xF0, 0x00, 0x80, 0x10, 0x01])
    image = load_image(put(tmp_path, tiff(data, 4, 1, [12], 1)))
    expected = np.array([0xFFF, 0x000, 0x801, 0x001], np.float32) / np.float32(4095)
    np.testing.assert_array_equal(image, np.repeat(expected[None, :, None], 3, -1))


@pytest.mark.parametrize(
    ("channels", "photometric", "tags"),
    [(3, 2, {284: 2}), (3, 2, {284: 2, 259: 8}), (4, 2, {338: 1}), (4, 5, {})],
    ids=["planar", "planar and deflated", "premultiplied", "CMYK"],
)
def test_deep_layouts_that_would_lose_bits_are_refused(
    tmp_path: Path, channels: int, photometric: int, tags: dict[int, int]
) -> None:
    data = RNG.integers(0, 65536, (5, 7, channels)).astype("<u2").tobytes()
    if 259 in tags:
        data = zlib.compress(data)
    path = put(tmp_path, tiff(data, 7, 5, [16] * channels, photometric, tags=tags))
    with pytest.raises(ImageFileError, match=r"16 bits per channel.*save it as PNG"):
        load_image(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = write(tmp_path / "a.tif", np.ones((4, 5), dtype))
    with pytest.raises(ImageFileError, match="black and white are not defined"):
        load_image(path)


# Modes and transparency


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", NOISE[..., 0])
    np.testing.assert_array_equal(load_image(path), np.repeat(NOISE[..., :1], 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit(tmp_path: Path, kind: str) -> None:
    bits = NOISE[..., 0] > 127
    path = write(tmp_path / "a", bits, format=kind)
    np.testing.assert_array_equal(load_image(path), np.repeat(bits[..., None] * np.uint8(255), 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette(tmp_path: Path, kind: str) -> None:
    colours = np.array([[255, 0, 0], [1, 2, 3], [0, 200, 255]], np.uint8)
    indices = np.arange(12).reshape(3, 4) % 3
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a", kind)
    np.testing.assert_array_equal(load_image(tmp_path / "a"), colours[indices])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(tmp_path: Path, kind: str) -> None:
    # Blocks of 16, which JPEG's own blocks do not mix.
    inks = np.array([[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0], [0, 255, 255, 0]], np.uint8)
    colours = np.array([[255, 255, 255], [0, 0, 0], [0, 255, 255], [255, 0, 0]], np.uint8)
    pixels = np.repeat(np.repeat(inks[None], 16, 0), 16, 1)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "a", kind)
    expected = np.repeat(np.repeat(colours[None], 16, 0), 16, 1)
    assert np.abs(load_image(tmp_path / "a").astype(int) - expected).max() <= 2


def with_alpha(alpha: Any, channels: int = 3) -> np.ndarray:
    alpha = np.broadcast_to(np.uint8(alpha), NOISE.shape[:2])
    return np.concatenate([NOISE[..., :channels], alpha[..., None]], -1)


@pytest.mark.parametrize(
    ("kind", "channels"), [("PNG", 1), ("TIFF", 1), ("WEBP", 1), *((kind, 3) for kind in LOSSLESS)]
)
def test_opaque_alpha_is_dropped(tmp_path: Path, kind: str, channels: int) -> None:
    path = write(tmp_path / "a", with_alpha(255, channels), format=kind, lossless=True)
    np.testing.assert_array_equal(load_image(path), np.broadcast_to(NOISE[..., :channels], NOISE.shape))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 128, 200)])
def test_transparency_is_laid_over_the_background(tmp_path: Path, background: tuple[int, int, int]) -> None:
    share = (COLUMNS * 6).astype(np.uint8)
    path = write(tmp_path / "a.png", with_alpha(share))
    opacity = share[..., None] / 255
    expected = NOISE * opacity + np.array(background) * (1 - opacity)
    image = load_image(path, background=background)
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 0.5 + 1e-9


def test_transparency_without_a_background_is_white_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", with_alpha(0))
    with pytest.warns(ImageFileWarning, match=r"a\.png: it is partly transparent"):
        image = load_image(path)
    np.testing.assert_array_equal(image, np.full_like(NOISE, 255))


def test_deep_transparency(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (5, 7, 4))
    image = load_image(put(tmp_path, png(pixels, 6, 16)), background=(255, 0, 51))
    opacity = pixels[..., 3:] / 65535
    expected = pixels[..., :3] / 65535 * opacity + np.array([1, 0, 0.2]) * (1 - opacity)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected, rtol=0, atol=2**-24)


@pytest.mark.parametrize(("colour_type", "bits"), [(0, 8), (2, 8), (0, 16), (2, 16)])
def test_one_transparent_colour(tmp_path: Path, colour_type: int, bits: int) -> None:
    """A pixel is transparent if all bits of all its channels match, and no other is."""
    white, channels = 2**bits - 1, 1 if colour_type == 0 else 3
    pixels = np.full((2, 2, channels), 7)
    pixels[0, 1, -1] = 8
    transparency = chunk(b"tRNS", struct.pack(f">{channels}H", *[7] * channels))
    image = load_image(put(tmp_path, png(pixels, colour_type, bits, transparency)), background=(255, 0, 0))
    expected = np.broadcast_to([1.0, 0, 0], (2, 2, 3)).copy()
    expected[0, 1] = pixels[0, 1] / white
    np.testing.assert_allclose(image if bits == 16 else image / 255, expected, rtol=1e-7)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette(bytes([255, 0, 0, 9, 9, 9, 0, 200, 255]))
    image.save(tmp_path / "a.png", transparency=transparency)
    last = [0, 200, 255] if transparency == 1 else [0, 100, 128]
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.png", background=(0, 0, 0)), [[[255, 0, 0], [0, 0, 0], last]]
    )


@pytest.mark.parametrize(("channels", "photometric"), [(1, 1), (3, 2)])
def test_premultiplied_transparency(tmp_path: Path, channels: int, photometric: int) -> None:
    content = tiff(bytes([64] * channels + [128]), 1, 1, [8] * (channels + 1), photometric, tags={338: 1})
    for level, expected in ((0, 64), (255, 64 + 127)):
        image = load_image(put(tmp_path, content), background=[level] * 3)
        np.testing.assert_allclose(image, np.full((1, 1, 3), expected), atol=1)


@pytest.mark.parametrize("background", [(), (0, 0), (0, 0, 256), (-1, 0, 0), [0, 0, 0, 255]])
def test_background_that_is_none(tmp_path: Path, background: Any) -> None:
    path = write(tmp_path / "a.png", NOISE)
    with pytest.raises(ImageError, match="three integers from 0 to 255"):
        load_image(path, background=background)


# Several images in one file


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_is_read_and_said(tmp_path: Path, kind: str) -> None:
    first, second = (Image.fromarray(np.full((4, 5, 3), level, np.uint8)) for level in (255, 0))
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second], lossless=True)
    with pytest.warns(ImageFileWarning, match="several images; the first was read"):
        image = load_image(tmp_path / "a")
    np.testing.assert_array_equal(image, np.full((4, 5, 3), 255))


def test_preview_in_a_camera_jpeg_is_no_page(tmp_path: Path) -> None:
    preview = Image.fromarray(SMOOTH[:12, :20])
    Image.fromarray(SMOOTH).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], quality=95, subsampling=0
    )
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - SMOOTH).max() <= 4


# Damage


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH if kind == "JPEG" else NOISE).save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "png": encoded("PNG"),
    "deep png": png(RNG.integers(0, 65536, (5, 7, 3)), 2, 16),
    "jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "webp": encoded("WEBP", lossless=True),
    "tiff": encoded("TIFF"),
    "deflated tiff": encoded("TIFF", compression="tiff_adobe_deflate"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
}


def outcome(path: Path) -> np.ndarray | None:
    """The image, or None if it is refused as it should be."""
    try:
        return load_image(path)
    except ImageFileError as error:
        if str(path) not in str(error):
            raise AssertionError("the error does not name the file") from error
        return None


@pytest.mark.parametrize("kind", FILES)
def test_cut_off_files_are_refused(tmp_path: Path, kind: str) -> None:
    """Wherever a file is cut, it gives an error, or (only its very end is missing) the whole image."""
    content = FILES[kind]
    whole = load_image(put(tmp_path, content))
    spared = 0
    for length in sorted({*range(1, 40), *range(40, len(content), 37), *range(len(content) - 30, len(content))}):
        image = outcome(put(tmp_path, content[:length]))
        if image is not None:
            np.testing.assert_array_equal(image, whole)
            spared = max(spared, len(content) - length)
    # End marks, or their check sums, may be missing.
    assert spared <= {"png": 4, "deep png": 4, "jpeg": 2, "progressive jpeg": 2, "gif": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", ["png", "deep png"])
def test_any_changed_byte_of_a_png_is_noticed(tmp_path: Path, kind: str) -> None:
    content = FILES[kind]
    whole = load_image(put(tmp_path, content))
    for position in sorted({*range(60), *range(60, len(content), 29), *range(len(content) - 20, len(content))}):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        image = outcome(put(tmp_path, bytes(changed)))
        if position < len(content) - 12:
            assert image is None, position
        elif image is not None:  # The last chunk marks the end and holds nothing.
            np.testing.assert_array_equal(image, whole)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(FILES)), seed=st.integers(0, 2**32 - 1), changes=st.integers(1, 30))
def test_damaged_files_give_an_image_or_the_right_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, changes: int
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(FILES[kind])
    # Half of the damage near the start, where the headers are.
    near = 80 if seed % 2 else len(content)
    for position in rng.integers(0, near, changes):
        content[position] = rng.integers(0, 256)
    image = outcome(put(tmp_path_factory.getbasetemp(), bytes(content), "damaged"))
    assert image is None or (image.ndim == 3 and image.shape[-1] == 3)


@pytest.mark.parametrize("side", [100_000, 10_000])
@pytest.mark.parametrize("strict", [True, False])
def test_bombs_are_refused(tmp_path: Path, side: int, strict: bool) -> None:
    """Pillow refuses the larger by an error and only warns of the smaller."""
    content = png(np.zeros((1, 1, 3)), 2, 8, size=(side, side))
    path = put(tmp_path, content, "bomb.png")
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        with pytest.raises(ImageFileError, match=r"bomb\.png is too large.*MAX_IMAGE_PIXELS = 89478485"):
            load_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert filters == list(warnings.filters)


def test_limit_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.png", NOISE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", NOISE.shape[0] * NOISE.shape[1] - 1)
    with pytest.raises(ImageFileError, match="too large"):
        load_image(path)
    for limit in (NOISE.shape[0] * NOISE.shape[1], None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        np.testing.assert_array_equal(load_image(path), NOISE)


def test_what_is_no_image(tmp_path: Path) -> None:
    cases = {
        "text.png": (b"Not an image at all.\n", "not an image in one of the formats"),
        "vector.eps": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image in one of the formats",
        ),
        "empty.png": (b"", "empty"),
        "nothing.bmp": (encoded("BMP")[:18] + bytes(4) + encoded("BMP")[22:], ""),
    }
    for name, (content, message) in cases.items():
        with pytest.raises(ImageFileError, match=f"{name}.*{message}"):
            load_image(put(tmp_path, content, name))


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"is a folder.*image_paths"):
        load_image(tmp_path)
    with pytest.raises(ImageFileError, match=r"absent\.png does not exist"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageFileError, match="null byte"):
        load_image("a\0.png")


def test_errors_are_those_of_the_system_too(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="does not exist"):
        load_image(tmp_path / "absent.png")


def test_path_may_be_a_string(tmp_path: Path) -> None:
    save_image(str(tmp_path / "a.png"), NOISE)
    np.testing.assert_array_equal(load_image(str(tmp_path / "a.png")), NOISE)


# Writing


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 5, 3), np.nan), "NaN"),
        (np.full((4, 5, 3), np.inf), "infinity"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5, 3), 1.01), r"outside value_range"),
        (np.full((4, 5, 3), -0.01), r"outside value_range"),
        (np.zeros((4, 5, 3), np.int32), "dtype int32"),
        (np.zeros((4, 5, 3), bool), "dtype bool"),
        (np.zeros((4, 5, 4), np.uint8), "4 channels"),
        (np.zeros((3, 4, 5), np.uint8), "channels first"),
        (np.zeros((2, 4, 5, 3), np.uint8), "one by one"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "0x5"),
        (np.zeros((0, 5), np.uint8), "0x5"),
    ],
)
def test_what_is_no_image_is_not_saved(tmp_path: Path, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        save_image(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


def test_rounding_beyond_the_range_does_not_wrap(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", np.array([[[1.000001, -1e-6, 1.0]]], np.float32))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), [[[255, 0, 255]]])


def test_saving_inside_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="outside jit"):
        jax.jit(lambda image: save_image(tmp_path / "a.png", image))(jnp.zeros((4, 5, 3)))


@pytest.mark.parametrize("name", ["a", "a.gif", "a.exr", ".png"])
def test_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageFileError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        save_image(tmp_path / name, NOISE)


def test_folders_are_made(tmp_path: Path) -> None:
    save_image(tmp_path / "new" / "er" / "a.png", NOISE)
    np.testing.assert_array_equal(load_image(tmp_path / "new" / "er" / "a.png"), NOISE)


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg", SMOOTH)
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ImageFileError, match="cannot be written"):
        save_image(tmp_path / "a.jpg", np.zeros((1, 65_536, 3), np.uint8))
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(ImageFileError, match="cannot be written"):
            save_image(path, NOISE)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_saved_file_is_readable_by_those_whom_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_image(tmp_path / "a.png", NOISE)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_longest_names_are_written(tmp_path: Path) -> None:
    save_image(tmp_path / ("a" * 251 + ".png"), NOISE)
    assert image_paths(tmp_path) == [tmp_path / ("a" * 251 + ".png")]


# Listing


def test_images_of_a_folder(tmp_path: Path) -> None:
    inside = ["b.png", "a.JPG", "c.webp", "d.tiff", "e.gif", "f.bmp", "g.jpeg", "h.tif"]
    for name in [*inside, "notes.txt", ".hidden.png", "png", "in/z.png", "in/deep/y.jpg", ".git/x.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    assert image_paths(tmp_path) == sorted(tmp_path / name for name in inside)
    everything = sorted(tmp_path / name for name in [*inside, "in/z.png", "in/deep/y.jpg"])
    assert image_paths(str(tmp_path), recursive=True) == everything
    assert image_paths(tmp_path / "in" / "deep" / "..", recursive=False) == [tmp_path / "in/deep/../z.png"]


def test_folder_without_images(tmp_path: Path) -> None:
    assert image_paths(tmp_path) == []


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for path in (tmp_path / "absent", tmp_path / "a.png"):
        with pytest.raises(ImageFileError, match="give a folder of images"):
            image_paths(path)


@pytest.mark.shared
def test_photographs_are_what_pillow_reads(shared: Path) -> None:
    paths = image_paths(shared / "images" / "kodak")
    assert len(paths) == 24
    with Image.open(paths[0]) as image:
        np.testing.assert_array_equal(load_image(paths[0]), np.asarray(image.convert("RGB")))


def test_what_is_not_a_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="URLs are not read"):
        load_image("https://example.org/a.png")
    with pytest.raises(ImageFileError, match="--dirs"):
        load_image(tmp_path)
    with pytest.raises(ImageFileError, match=r"b\.png does not exist"):
        load_image("a:b.png")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_floating_point_colours_is_called_what_it_is(tmp_path: Path, order: str) -> None:
    path = tmp_path / "float.tif"
    tags = {256: 1, 257: 1, 258: 32, 259: 1, 262: 2, 273: 8 + 2 + 12 * 10 + 4, 277: 3, 278: 1, 279: 12, 339: 3}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    path.write_bytes(start + entries + bytes(4) + struct.pack(f"{order}3f", 0.1, 0.2, 0.3))
    with pytest.raises(ImageFileError, match=r"float.tif is a TIFF .* floating-point.*tifffile.imread.*value_range"):
        load_image(path)

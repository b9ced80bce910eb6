"""Colours of embedded profiles, against their arithmetic; profiles that do not fit."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from rlpips_jax.errors import ImageFileWarning
from rlpips_jax.files.image_files import load_image

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)

# Columns are the primaries in XYZ, adapted to D50.
SRGB = np.array(
    [[0.4360657, 0.3851515, 0.1430784], [0.2224932, 0.7168870, 0.0606169], [0.0139160, 0.0970764, 0.7140961]]
)
ADOBE = np.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]]
)
WHITE = (0.9642, 1.0, 0.8249)


def profile(matrix: np.ndarray | None, gamma: float) -> bytes:
    """An ICC profile, version 2, by the letter of its specification: a matrix and one curve, or a curve of grey."""

    def xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(WHITE)}
    if matrix is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    space = b"GRAY" if matrix is None else b"RGB "
    header = struct.pack(">I4sI4s4s4s", 128 + len(table + data), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(struct.pack(">i", round(v * 65536)) for v in WHITE)
    return header.ljust(128, b"\0") + table + data


def save(path: Path, pixels: np.ndarray, icc: bytes) -> Path:
    Image.fromarray(pixels).save(path, icc_profile=icc)
    return path


def encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB's curve, IEC 61966-2-1, in levels."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_foreign_colours_become_srgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS, profile(ADOBE, 2.199))
    expected = encoded((COLOURS / 255) ** 2.199 @ ADOBE.T @ np.linalg.inv(SRGB).T)
    # The library of profiles computes in 8 and 16 bits.
    np.testing.assert_allclose(load_image(path), expected, rtol=0, atol=1.6)
    assert np.abs(load_image(path).astype(int) - COLOURS).max() > 20


def test_alpha_outlives_the_conversion(tmp_path: Path) -> None:
    alpha = np.zeros((8, 8, 1), np.uint8)
    path = save(tmp_path / "a.png", np.concatenate([COLOURS, alpha], axis=-1), profile(ADOBE, 2.199))
    assert load_image(path, background="red").reshape(-1, 3).tolist() == [[255, 0, 0]] * 64
    plain = save(tmp_path / "b.png", COLOURS, profile(ADOBE, 2.199))
    np.testing.assert_array_equal(load_image(path, background="ignore"), load_image(plain))


def test_grey_follows_its_curve(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS[..., 0], profile(None, 1.8))
    np.testing.assert_allclose(load_image(path)[..., 0], encoded((COLOURS[..., 0] / 255) ** 1.8), rtol=0, atol=1.1)


def test_stored_values_of_srgb_stay(tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.png", COLOURS, icc)), COLOURS)


@pytest.mark.parametrize("icc", [b"no profile", profile(None, 2.2), profile(ADOBE, 2.2)[:300]])
def test_a_profile_that_does_not_fit_is_told(tmp_path: Path, icc: bytes) -> None:
    path = save(tmp_path / "a.png", COLOURS, icc)
    with pytest.warns(ImageFileWarning, match=r"its colour profile was ignored"):
        np.testing.assert_array_equal(load_image(path), COLOURS)


def test_deep_files_keep_their_values(tmp_path: Path) -> None:
    deep = COLOURS[..., 0].astype(np.uint16) * 257
    path = save(tmp_path / "a.tif", deep, profile(None, 1.8))
    with pytest.warns(ImageFileWarning, match="ignored, because it has more than 8 bits"):
        np.testing.assert_array_equal(load_image(path)[..., 0], deep.astype(np.float32) / np.float32(65535))

"""Formats beyond PNG and JPEG, how files are read on request, and frames of animations."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import ImageError, ImageFileError, ImageFileWarning
from rlpips_jax.files.decoding import frame_count
from rlpips_jax.files.formats import FORMATS, SUFFIXES
from rlpips_jax.files.image_files import frames, image_paths, load_image

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize(
    "kind", [kind for kind in FORMATS if kind in ("JPEG2000", "PPM", "QOI", "DDS", "SGI", "PCX", "TGA")]
)
def test_lossless_formats_are_read_whatever_their_names(tmp_path: Path, kind: str) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "picture", kind)
    np.testing.assert_array_equal(load_image(tmp_path / "picture"), PICTURE)


def test_avif_is_read(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.avif", quality=95)
    assert np.abs(load_image(tmp_path / "a.avif").astype(int) - smooth).max() < 12


def test_pillow_knows_every_format_and_suffix() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert {suffix: Image.EXTENSION.get(suffix) for suffix in SUFFIXES if suffix not in Image.EXTENSION} == {}


@pytest.mark.parametrize(("white", "channels"), [(65535, 1), (65535, 3), (4095, 1), (1000, 3), (100, 3), (3, 1)])
def test_ppm_of_any_white_is_exact(tmp_path: Path, white: int, channels: int) -> None:
    stored = RNG.integers(0, white + 1, (5, 7, channels))
    head = f"P{6 if channels == 3 else 5}\n7 5\n{white}\n".encode()
    (tmp_path / "a").write_bytes(head + stored.astype(">u2" if white > 255 else "u1").tobytes())
    (tmp_path / "text").write_bytes(f"P{3 if channels == 3 else 2}\n7 5\n{white}\n".encode())
    with (tmp_path / "text").open("a") as file:
        print(*stored.ravel(), file=file)
    expected = np.broadcast_to(stored, (5, 7, 3))
    if white > 255:
        expected = expected.astype(np.float32) / np.float32(white)
    else:
        expected = np.rint(expected / white * 255).astype(np.uint8)
    np.testing.assert_array_equal(load_image(tmp_path / "a"), expected)
    if white > 255 and channels == 3:
        with pytest.raises(ImageFileError, match="plain text of more than 8 bits"):
            load_image(tmp_path / "text")
    else:
        np.testing.assert_array_equal(load_image(tmp_path / "text"), expected)


def test_a_ppm_that_is_cut_off_or_above_its_white(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"P5\n7 5\n100\n" + bytes(34))
    (tmp_path / "white").write_bytes(b"P5\n1 1\n100\n\xff")
    for name, words in (("short", "damaged, cut off"), ("white", "above its own white 100")):
        with pytest.raises(ImageFileError, match=words):
            load_image(tmp_path / name)


def test_a_video_is_answered_with_the_way_to_its_frames(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(64))
    with pytest.raises(ImageFileError, match=r"is a video; 'ffmpeg -i .*a/%05d\.png'"):
        load_image(tmp_path / "a.mp4")


def test_bits_in_use(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (6, 6)).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    with pytest.warns(ImageFileWarning, match="no value above .*bits=12"):
        load_image(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png", bits=12)
    np.testing.assert_array_equal(found[..., 0], stored.astype(np.float32) / np.float32(4095))
    with pytest.raises(ImageFileError, match="more than bits=10 can hold"):
        load_image(tmp_path / "a.png", bits=10)
    with pytest.raises(ImageError, match="bits must be from 9 to 16"):
        load_image(tmp_path / "a.png", bits=8)


def test_backgrounds_by_name(tmp_path: Path) -> None:
    pixels = np.concatenate([PICTURE, np.zeros((24, 40, 1), np.uint8)], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name, colour in (("black", 0), ("#ffffff", 255)):
        assert set(load_image(tmp_path / "a.png", background=name).ravel()) == {colour}
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", background="ignore"), PICTURE)
    with pytest.raises(ImageError, match="name of a colour"):
        load_image(tmp_path / "a.png", background="blackish")


def test_large_pictures_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match=r"too large.*--max-pixels"):
        load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", max_pixels=960), PICTURE)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_on_request(tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "a.png"
    Image.fromarray(PICTURE).save(file)
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    thread.start()
    np.testing.assert_array_equal(load_image(pipe, pipes=True), PICTURE)
    thread.join()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_frames_are_read_one_by_one(tmp_path: Path, suffix: str) -> None:
    levels = [np.full((8, 9, 3), level, np.uint8) for level in (10, 200, 90)]
    first, *others = map(Image.fromarray, levels)
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=others, lossless=True)
    assert frame_count(path) == 3
    for frame, level in zip(frames(path), levels, strict=True):
        np.testing.assert_array_equal(frame, level)


def test_linked_folders_are_entered_but_not_for_ever(tmp_path: Path) -> None:
    for path in (tmp_path / "here/b.png", tmp_path / "there/a.png"):
        path.parent.mkdir()
        Image.fromarray(PICTURE).save(path)
    (tmp_path / "here/link").symlink_to(tmp_path / "there")
    (tmp_path / "there/back").symlink_to(tmp_path / "here")
    found = image_paths(tmp_path / "here", recursive=True)
    assert found == [tmp_path / "here/b.png", tmp_path / "here/link/a.png"]

"""JPEG files that cost too much, or whose data are interrupted."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import rlpips_jax as rl
from rlpips_jax.errors import ImageFileError
from rlpips_jax.files.jpeg_scans import SCANS, check_scans


def jpeg(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", **options)
    return file.getvalue()


def test_scans_are_counted(tmp_path: Path) -> None:
    whole = jpeg(progressive=True)
    at = whole.rindex(b"\xff\xda")
    # The last scan again and again costs libjpeg as much as the first.
    (tmp_path / "many.jpg").write_bytes(whole[:at] + whole[at:-2] * 5000 + whole[-2:])
    started = time.process_time()
    with pytest.raises(ImageFileError, match=f"many.jpg cannot be read: it has more than {SCANS} scans"):
        rl.load_image(tmp_path / "many.jpg")
    assert time.process_time() - started < 1
    check_scans(whole[:at] + whole[at:-2] * 50 + whole[-2:])


@pytest.mark.parametrize("progressive", [False, True])
def test_data_that_are_interrupted_are_damage(
    tmp_path: Path, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = jpeg(progressive=progressive)
    check_scans(whole)
    at = len(whole) // 2
    path = tmp_path / "damaged.jpg"
    for interruption in (b"\xff\xd9", b"\xff\x05", b"\xff\xc0\x00\x04ab"):
        path.write_bytes(whole[:at] + interruption + whole[at + len(interruption) :])
        with pytest.raises(ImageFileError, match="damaged"):
            rl.load_image(path)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path.write_bytes(whole[:at] + b"\xff\xd9" + whole[at + 2 :])
    assert rl.load_image(path).shape == (64, 96, 3)


def test_what_cameras_append_is_no_damage() -> None:
    whole = jpeg()
    for appended in (b"", b"\0" * 9, b"SEFH data of the camera", jpeg(quality=10)):
        check_scans(whole + appended)

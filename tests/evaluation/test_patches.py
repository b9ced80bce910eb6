"""Patches: as many as asked, cut as stated, with enough contrast."""

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.evaluation import patches as data


def noise_image(height: int, width: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.fromarray(noise_image(150, 140)).save(tmp_path / "a.PNG")
    Image.fromarray(noise_image(64, 80, seed=1)).save(tmp_path / "deeper" / "b.jpg", quality=95)
    Image.fromarray(noise_image(70, 70, seed=2)).save(tmp_path / "deeper" / "c.webp", lossless=True)
    Image.fromarray(noise_image(40, 400)).save(tmp_path / "small.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_files_are_found_at_any_depth(folder):
    names = [file.name for file in data.list_photographs(folder)]
    assert names == ["a.PNG", "b.jpg", "c.webp", "small.png"]


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_patches_are_as_many_and_as_large_as_asked(folder, count):
    patches = data.patches(folder, count, size=32, rng=np.random.default_rng(0))
    assert (patches.shape, patches.dtype) == ((count, 32, 32, 3), np.uint8)
    assert all(patch.astype(float).std() / 255 > 0.06 for patch in patches)


def test_patches_follow_the_generator(folder):
    first, again, other = (data.patches(folder, 8, rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_patch_is_a_flipped_crop_or_box_average(tmp_path):
    # Red counts columns and green rows, so that a patch tells where it came from; blue adds contrast.
    y, x = np.mgrid[0:128, 0:128]
    image = np.stack([x, y, (x + y) % 2 * 255], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "ramp.png")
    steps = set()
    for patch in data.patches(tmp_path, 60, rng=np.random.default_rng(0)).astype(int):
        across, down = np.unique(np.diff(patch[..., 0], axis=1)), np.unique(np.diff(patch[..., 1], axis=0))
        assert len(across) == len(down) == 1
        assert abs(across[0]) == abs(down[0])
        steps.add((int(across[0]), int(down[0])))
    assert steps == {(i * scale, j * scale) for i in (-1, 1) for j in (-1, 1) for scale in (1, 2)}


def test_halving_averages_and_rounds():
    image = np.array([[0, 1, 255, 255], [1, 0, 255, 254]], np.uint8)[..., None].repeat(3, axis=2)
    assert data.halve(image)[..., 0].tolist() == [[1, 255]]


def test_flat_photographs_give_way_to_the_others(tmp_path):
    for name in ("flat1", "flat2"):
        Image.fromarray(noise_image(100, 100, 120, 125)).save(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match=r"standard deviation above 0\.06"):
        data.patches(tmp_path, 5, rng=np.random.default_rng(0))
    Image.fromarray(noise_image(100, 100)).save(tmp_path / "rich.png")
    assert len(data.patches(tmp_path, 30, rng=np.random.default_rng(0))) == 30


def test_missing_empty_and_damaged_folders_are_named(tmp_path):
    rng = np.random.default_rng(0)
    with pytest.raises(ImageFileError, match="cannot be listed"):
        data.patches(tmp_path / "nowhere", 1, rng=rng)
    with pytest.raises(ImageFileError, match="holds no image"):
        data.patches(tmp_path, 1, rng=rng)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ImageFileError, match=r"broken\.png is not an image"):
        data.patches(tmp_path, 1, rng=rng)


def test_cut_off_files_are_named(tmp_path):
    Image.fromarray(noise_image(100, 100)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageFileError, match=r"cut\.jpg cannot be read"):
        data.patches(tmp_path, 1, rng=np.random.default_rng(0))
    (tmp_path / "cut.jpg").unlink()


def test_deep_files_are_rounded_to_bytes(tmp_path):
    deep = np.arange(10000, dtype=np.uint16).reshape(100, 100) * 6
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (patch,) = data.patches(tmp_path, 1, size=100, rng=np.random.default_rng(0))
    assert sorted(patch[..., 0].ravel()) == sorted(np.rint(deep / 257).astype(np.uint8).ravel())

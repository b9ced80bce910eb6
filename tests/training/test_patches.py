"""Patches and their distorted versions: enough contrast, no dependence on the number of workers."""

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import ImageError, ImageFileError
from rlpips_jax.evaluation.distortions import TRAINING_KINDS
from training import patches as data


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


def test_pairs_do_not_depend_on_the_number_of_workers(monkeypatch):
    references = noise_image(5 * 16, 16).reshape(5, 16, 16, 3)
    monkeypatch.setattr(data, "CHUNK", 2)
    alone = data.make_pairs(references, versions=3, seed=4, workers=1)
    together = data.make_pairs(references, versions=3, seed=4, workers=2)
    assert (alone.distorted.shape, alone.distorted.dtype) == ((5, 3, 16, 16, 3), np.uint8)
    assert np.array_equal(alone.references, references)
    assert np.array_equal(alone.distorted, together.distorted)
    other = data.make_pairs(references, versions=3, seed=5, workers=1)
    assert not np.array_equal(alone.distorted, other.distorted)


def test_chunks_of_equal_references_differ(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 1)
    references = np.stack([noise_image(16, 16)] * 4)
    distorted = data.make_pairs(references, versions=2, workers=1).distorted.reshape(8, -1)
    assert len(np.unique(distorted, axis=0)) >= 7  # a faint version may round back to the reference


def test_kinds_are_drawn_evenly_and_never_the_reserved_one(monkeypatch):
    calls = []

    def record(image, kind, strength, rng):
        calls.append((kind, strength))
        return image

    monkeypatch.setattr(data, "distort", record)
    rng, count = np.random.default_rng(0), 6000
    image = noise_image(4, 4)
    lengths = []
    for _ in range(count):
        before = len(calls)
        data.random_distortion(image, rng)
        lengths.append(len(calls) - before)
    kinds, strengths = zip(*calls, strict=True)
    assert set(kinds) == set(TRAINING_KINDS)
    assert "salt_pepper" not in kinds
    shares = np.array([kinds.count(kind) for kind in TRAINING_KINDS]) / len(kinds)
    assert np.abs(shares - 1 / 9).max() < 5 * (1 / 9 * 8 / 9 / len(kinds)) ** 0.5
    assert np.mean(np.array(lengths) == 2) == pytest.approx(0.2, abs=5 * (0.16 / count) ** 0.5)
    assert np.histogram(strengths, 4, (0, 1))[0] / len(kinds) == pytest.approx(0.25, abs=0.025)


def test_faint_versions_keep_a_part_of_the_change(monkeypatch):
    monkeypatch.setattr(data, "COMPOSED", 0.0)
    monkeypatch.setattr(data, "FAINT", 1.0)
    monkeypatch.setattr(data, "distort", lambda image, kind, strength, rng: image + np.uint8(100))
    image = np.full((2, 2, 3), 50, np.uint8)
    rng = np.random.default_rng(0)
    changes = [int(data.random_distortion(image, rng)[0, 0, 0]) - 50 for _ in range(200)]
    assert min(changes) in range(5, 8)
    assert max(changes) in range(45, 51)


@pytest.mark.parametrize("references", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_references_of_another_form_are_refused(references):
    with pytest.raises(ImageError, match=r"give uint8 \(n, h, w, 3\)"):
        data.make_pairs(references, workers=1)


def test_no_references_give_no_pairs():
    assert data.make_pairs(np.zeros((0, 8, 8, 3), np.uint8), versions=2).distorted.shape == (0, 2, 8, 8, 3)


def test_zero_workers_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        data.make_pairs(np.zeros((1, 8, 8, 3), np.uint8), workers=0)

"""Distorted versions of patches: even kinds, no dependence on the number of workers."""

import numpy as np
import pytest

from rlpips_jax.errors import DistortionError, ImageError
from rlpips_jax.evaluation import pairs as data
from rlpips_jax.evaluation.distortions import training_kinds


def noise_image(height: int, width: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.uint8)


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
    assert set(kinds) == set(training_kinds())
    assert "salt_pepper" not in kinds
    shares = np.array([kinds.count(kind) for kind in training_kinds()]) / len(kinds)
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
    with pytest.raises(DistortionError, match="at least 1"):
        data.make_pairs(np.zeros((1, 8, 8, 3), np.uint8), workers=0)

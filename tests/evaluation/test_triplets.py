"""Triplets: one seed, one set; ordered by construction, or judged by the teacher; and what LPIPS says of real ones."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, SQUEEZE
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import ImageError, ImageFileError, TripletsError
from rlpips_jax.evaluation import triplets as module
from rlpips_jax.evaluation.distortions import DISTORTIONS, training_kinds
from rlpips_jax.evaluation.scores import best_two_afc_score, majority_accuracy, two_afc_score
from rlpips_jax.evaluation.triplet_files import read_judgments, read_npz
from rlpips_jax.evaluation.triplets import (
    AnyTriplets,
    IndexedTriplets,
    Triplets,
    crossed,
    ordinal,
    teacher_opinion,
    triplet_distances,
)
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with structure at several scales."""
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(2):
        rng = np.random.default_rng(seed)
        layers = [
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize(
                (160, 160), Image.Resampling.BICUBIC
            )
            for side in (5, 20, 80)
        ]
        mean = np.mean([np.asarray(layer, np.float64) for layer in layers], axis=0)
        Image.fromarray(np.rint(mean).astype(np.uint8)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def of_one_kind(photographs: Path) -> Triplets:
    return ordinal(photographs, 180, kinds=tuple(DISTORTIONS), size=32)


@pytest.fixture(scope="module")
def of_two_kinds(photographs: Path, tiny: Lpips) -> Triplets:
    return crossed(photographs, 100, teacher=tiny, size=32)


def indexed(count: int = 12, seed: int = 0, images: int = 5) -> IndexedTriplets:
    rng = np.random.default_rng(seed)
    indices = rng.permuted(np.tile(np.arange(images), (count, 1)), axis=1)[:, :3]
    votes = rng.integers(1, 4, (count, 2))
    return IndexedTriplets(rng.integers(0, 256, (images, 32, 40, 3), np.uint8), indices, votes, ("noise",) * count)


def arrays(triplets: Triplets) -> tuple[np.ndarray, ...]:
    return triplets.reference, triplets.p0, triplets.p1, triplets.judgment


def same(a: Triplets, b: Triplets) -> bool:
    return a.kinds == b.kinds and all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


def pixel_distances(triplets: Triplets) -> tuple[np.ndarray, np.ndarray]:
    reference, p0, p1 = (images.astype(np.float64) for images in arrays(triplets)[:3])
    return np.square(reference - p0).sum(axis=(1, 2, 3)), np.square(reference - p1).sum(axis=(1, 2, 3))


def test_pixels_rank_what_is_ordered_by_construction(of_one_kind):
    assert two_afc_score(*pixel_distances(of_one_kind), of_one_kind.judgment) >= 0.98
    assert set(of_one_kind.judgment) == {0, 1}
    # Five standard deviations of a fair coin.
    assert of_one_kind.judgment.mean() == pytest.approx(0.5, abs=5 * 0.5 / 180**0.5)
    assert of_one_kind.sure is None


def test_kinds_take_turns(of_one_kind, photographs):
    assert of_one_kind.kinds == tuple(DISTORTIONS) * 18
    assert ordinal(photographs, 18, size=16).kinds == training_kinds() * 2
    assert set(ordinal(photographs, 3, size=16, kinds=["salt_pepper"]).kinds) == {"salt_pepper"}


def test_each_pair_shares_one_draw_at_two_strengths(photographs):
    # What brightness adds is one number, so it tells the strength and the sign, where nothing clips.
    triplets = ordinal(photographs, 60, kinds=["brightness"], size=32)
    change = [
        np.median(images.astype(float) - triplets.reference, axis=(1, 2, 3)) / 255 for images in arrays(triplets)[1:3]
    ]
    assert (np.sign(change[0]) == np.sign(change[1])).all()
    strengths = np.sort([np.log(np.abs(c) / 0.03) / np.log(0.4 / 0.03) for c in change], axis=0)
    rounding = 0.5 / 255 / 0.03 / np.log(0.4 / 0.03)
    assert strengths[0].min() > 0.05 - rounding
    assert strengths[0].max() < 0.75 + rounding
    step = strengths[1] - strengths[0]
    assert step.min() > 0.12 - 2 * rounding
    assert step.max() < 0.25 + 2 * rounding


@pytest.mark.slow
def test_one_seed_makes_one_set(photographs, tiny, of_two_kinds):
    assert same(ordinal(photographs, 9, seed=3, size=32), ordinal(photographs, 9, seed=3, size=32))
    assert not same(ordinal(photographs, 9, seed=3, size=32), ordinal(photographs, 9, seed=4, size=32))
    again = crossed(photographs, 100, teacher=tiny, size=32)
    assert same(again, of_two_kinds)
    assert again.source == of_two_kinds.source
    assert again.source["teacher"] == tiny.signature
    assert {"folder", "count", "seed", "kinds", "size", "version", "sha256"} < again.source.keys()


@pytest.mark.slow
def test_crossed_triplets_have_two_kinds_and_the_teachers_opinion(of_two_kinds, tiny):
    pairs = [label.split("/") for label in of_two_kinds.kinds]
    assert all(first != second for first, second in pairs)
    assert {kind for pair in pairs for kind in pair} == set(training_kinds())
    d0, d1 = (
        np.asarray(rl.distance(of_two_kinds.reference, image, tiny)) for image in (of_two_kinds.p0, of_two_kinds.p1)
    )
    assert d0.min() > 0
    assert d1.min() > 0
    # sigmoid(4 log(d0 / d1)) is the ratio of the fourth powers.
    np.testing.assert_allclose(of_two_kinds.judgment, d0**4 / (d0**4 + d1**4), atol=1e-4)
    clear = np.abs(np.log(d0 / d1))
    assert of_two_kinds.sure.tolist() == (clear > 0.5).tolist()
    assert 0 < of_two_kinds.sure.mean() < 1


@pytest.mark.slow
def test_equal_images_are_drawn_again(photographs, tiny, monkeypatch, of_two_kinds):
    apply = module.distortions.apply
    drawn = []

    def fail_at_first(image, kind, strength, draw):
        drawn.append(kind)
        return image.copy() if len(drawn) <= 5 else apply(image, kind, strength, draw)

    monkeypatch.setattr(module.distortions, "apply", fail_at_first)
    triplets = ordinal(photographs, 3, size=32)
    assert min(distance.min() for distance in pixel_distances(triplets)) > 0
    drawn.clear()
    triplets = crossed(photographs, 100, teacher=tiny, size=32)
    assert min(distance.min() for distance in pixel_distances(triplets)) > 0
    # Only the three that were equal to their references are others than they would have been.
    changed = (triplets.p0 != of_two_kinds.p0).any(axis=(1, 2, 3)) | (triplets.p1 != of_two_kinds.p1).any(
        axis=(1, 2, 3)
    )
    assert np.flatnonzero(changed).tolist() == [0, 1, 2]


def test_kinds_that_change_nothing_are_an_error(photographs, tiny, monkeypatch):
    monkeypatch.setattr(module.distortions, "apply", lambda image, *_: image.copy())
    monkeypatch.setattr(module, "REDRAWS", 12)
    with pytest.raises(TripletsError, match="not changed by blur"):
        ordinal(photographs, 3, size=32)
    with pytest.raises(TripletsError, match="a distance by lpips-tiny is still 0 after 12 draws"):
        crossed(photographs, 3, teacher=tiny, size=32)


def test_black_and_white_drawings_get_the_kinds_that_change_them(tmp_path):
    drawing = (np.indices((64, 64)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    assert ordinal(tmp_path, 2, size=32, kinds=["quantize", "noise"]).kinds == ("noise", "noise")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"count": 0}, TripletsError, "1 or more"),
        ({"seed": -1}, TripletsError, "seed 0 or more"),
        ({"kinds": ["blur", "blurr"]}, TripletsError, "'blurr' is not a distortion; choose of blur"),
        ({"kinds": []}, TripletsError, "at least"),
        ({"kinds": ["blur", "blur"]}, TripletsError, "all different"),
        ({"folder": "nowhere"}, ImageFileError, "nowhere cannot be listed"),
        ({"size": 400}, ImageError, "at least 400"),
    ],
)
def test_what_cannot_be_made_is_explained(change, error, words, photographs, tiny):
    arguments: dict[str, Any] = {"folder": photographs, "count": 2, "size": 32} | change
    with pytest.raises(error, match=words):
        ordinal(**arguments)
    with pytest.raises(error, match=words):
        crossed(**arguments, teacher=tiny)


def test_one_kind_cannot_be_crossed(photographs, tiny):
    with pytest.raises(TripletsError, match="at least 2, all different"):
        crossed(photographs, 2, teacher=tiny, kinds=["blur"])
    with pytest.raises(TripletsError, match="give a list"):
        crossed(photographs, 2, teacher=tiny, kinds="blur")


def test_an_opinion_is_sure_of_clear_differences():
    judgment, sure = teacher_opinion(np.array([1.0, 1, 2, 1.6]), np.array([1.0, 2, 1, 1]))
    np.testing.assert_allclose(judgment, [0.5, 1 / 17, 16 / 17, 1.6**4 / (1 + 1.6**4)], rtol=1e-6)
    assert sure.tolist() == [False, True, True, False]
    with pytest.raises(TripletsError, match="d1 has the value 0"):
        teacher_opinion(np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    with pytest.raises(TripletsError, match="d0 has the value nan"):
        teacher_opinion(np.array([np.nan]), np.array([1.0]))


@pytest.mark.parametrize("make", [lambda: indexed(12), None])
def test_batches_put_together_are_the_set(make, of_two_kinds):
    triplets: AnyTriplets = make() if make else of_two_kinds
    parts = [triplets.batch(start, start + 7) for start in range(0, len(triplets), 7)]
    assert [len(part) for part in parts[:-1]] == [7] * (len(parts) - 1)
    whole = triplets.batch(0, len(triplets))
    assert sum(len(part) for part in parts) == len(whole) == len(triplets)
    for name in ("reference", "p0", "p1", "judgment", "sure"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert sum((part.kinds for part in parts), ()) == triplets.kinds
    assert {(part.name, id(part.source)) for part in parts} == {(triplets.name, id(triplets.source))}


def test_indexed_triplets_gather_images_and_count_votes():
    triplets = indexed()
    batch = triplets.batch(3, 5)
    for row, image in enumerate(("reference", "p0", "p1")):
        np.testing.assert_array_equal(getattr(batch, image)[1], triplets.images[triplets.indices[4, row]])
    for (for_p0, for_p1), judgment, sure in zip(triplets.votes, triplets.judgment, triplets.sure, strict=True):
        assert judgment == np.float32(for_p1 / (for_p0 + for_p1))
        assert sure == (for_p0 != for_p1)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_distances_are_those_of_each_pair(batch, of_one_kind, tiny):
    triplets = of_one_kind.batch(0, 12)
    triplets = dataclasses.replace(triplets, p0=np.concatenate([triplets.reference[:1], triplets.p0[1:]]))
    d0, d1 = triplet_distances(tiny, triplets, batch=batch)
    np.testing.assert_allclose(d0, rl.distance(triplets.reference, triplets.p0, tiny), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(d1, rl.distance(triplets.reference, triplets.p1, tiny), rtol=1e-5, atol=1e-7)
    assert d0[0] == 0
    assert d0[1:].min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 40])
def test_distances_of_shared_images_are_those_of_each_pair(count, tiny, monkeypatch):
    monkeypatch.setattr(module, "MATRIX", 3)  # 4 x 5 distances are worth 12 triplets, and more are not
    triplets = indexed(12, images=count)
    triplets.indices[0, 1] = triplets.indices[0, 0]
    whole = triplets.batch(0, 12)
    found = triplet_distances(tiny, triplets)
    for distances, images in zip(found, (whole.p0, whole.p1), strict=True):
        np.testing.assert_allclose(distances, rl.distance(whole.reference, images, tiny), rtol=1e-5, atol=1e-7)
    assert found[0][0] == 0


def test_no_triplets_have_no_distances(tiny, of_one_kind):
    for triplets in (of_one_kind.batch(0, 0), indexed(0)):
        assert [len(distances) for distances in triplet_distances(tiny, triplets)] == [0, 0]
    with pytest.raises(TripletsError, match="batch must be a whole number, 1 or more, got 0"):
        triplet_distances(tiny, of_one_kind, batch=0)


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p0": IMAGES.astype(np.float32)}, "p0 is float32"),
        ({"reference": IMAGES[..., 0]}, r"reference is uint8 \(2, 8, 8\)"),
        ({"p1": IMAGES[:, :7]}, r"p1 has shape \(2, 7, 8, 3\)"),
        ({"judgment": np.array([0, 2], np.float32)}, "from 0 to 2"),
        ({"judgment": np.array([0, np.nan], np.float32)}, "fractions from 0 to 1"),
        ({"judgment": np.array([0, 1], np.float64)}, "must be float32"),
        ({"judgment": np.array([1], np.float32)}, "judgment has 1 entries for 2 triplets"),
        ({"kinds": ("blur",)}, "kinds has 1 entries"),
        ({"sure": np.array([True] * 3)}, "sure has 3 entries"),
    ],
)
@pytest.mark.usefixtures("wrong_types")
def test_triplets_that_do_not_fit_are_refused(change, words):
    fields: dict[str, Any] = {"reference": IMAGES, "p0": IMAGES, "p1": IMAGES}
    fields |= {"judgment": np.array([0, 1], np.float32), "kinds": ("blur",) * 2}
    assert len(Triplets(**fields)) == 2
    with pytest.raises(TripletsError, match=words):
        Triplets(**fields | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": IMAGES[0]}, r"images are uint8 \(8, 8, 3\)"),
        ({"indices": np.zeros((2, 2), int)}, r"indices are int64 \(2, 2\)"),
        ({"indices": np.zeros((2, 3))}, "indices are float64"),
        ({"indices": np.array([[0, 1, 0], [0, 1, 2]])}, r"triplet 1 names the images \[0, 1, 2\]; there are 2"),
        ({"indices": np.array([[0, -1, 0], [0, 1, 1]])}, "triplet 0 names"),
        ({"votes": np.array([[0, 1], [0, 0]])}, r"triplet 1 has the votes \[0, 0\]"),
        ({"votes": np.array([[-1, 2], [0, 1]])}, "triplet 0 has the votes"),
        ({"votes": np.ones((3, 2), int)}, "votes has 3 entries for 2"),
        ({"kinds": ()}, "kinds has 0 entries"),
    ],
)
@pytest.mark.usefixtures("wrong_types")
def test_indexed_triplets_that_do_not_fit_are_refused(change, words):
    fields: dict[str, Any] = {"images": IMAGES, "indices": np.array([[0, 1, 0], [0, 1, 1]])}
    fields |= {"votes": np.array([[0, 1], [2, 3]]), "kinds": ("blur",) * 2}
    assert len(IndexedTriplets(**fields)) == 2
    with pytest.raises(TripletsError, match=words):
        IndexedTriplets(**fields | change)


def lpips(shared: Path, name: str) -> Lpips:
    """LPIPS with its authors' weights."""
    architecture, file = {"alex": (ALEX, "alexnet"), "squeeze": (SQUEEZE, "squeezenet1_1")}[name]
    parameters: dict[str, Any] = {}
    for path in (f"{file}-features.pth", f"lpips_heads/v0.1-{name}.pth"):
        parameters |= from_pytorch(read_checkpoint(shared / "weights" / path), with_heads(architecture), path)
    return Lpips(parameters, f"lpips-{name}", architecture)


@pytest.mark.slow
@pytest.mark.shared
def test_lpips_ranks_ordinal_triplets(shared):
    triplets = next(part for part in read_npz(shared / "triplets" / "kodak.npz") if part.name == "kodak.npz ordinal")
    assert set(triplets.kinds) == set(DISTORTIONS)
    assert two_afc_score(*triplet_distances(lpips(shared, "alex"), triplets), triplets.judgment) > 0.99


@pytest.mark.slow
@pytest.mark.shared
def test_the_teacher_of_crossed_triplets_judges_them_again(shared):
    """Judgments and certainties, made from stored distances, are those of LPIPS-alex."""
    triplets = read_npz(shared / "triplets" / "kodak.npz")[0]
    judgment, sure = teacher_opinion(*triplet_distances(lpips(shared, "alex"), triplets))
    np.testing.assert_allclose(judgment, triplets.judgment, atol=1e-4)
    assert triplets.sure is not None
    assert np.array_equal(sure, triplets.sure)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("name", "score", "accuracy"), [("alex", 0.7355, 0.8039), ("squeeze", 0.7074, 0.7622)])
def test_lpips_agrees_with_people_about_materials_as_is_known(name, score, accuracy, shared):
    triplets = read_judgments(shared / "judgments" / "materials")
    assert (len(triplets), len(triplets.images), triplets.images.shape[1:]) == (3000, 100, (298, 298, 3))
    assert best_two_afc_score(triplets.judgment) == pytest.approx(0.8397, abs=5e-5)
    d0, d1 = triplet_distances(lpips(shared, name), triplets)
    assert two_afc_score(d0, d1, triplets.judgment) == pytest.approx(score, abs=0.002)
    assert majority_accuracy(d0, d1, triplets.judgment) == pytest.approx(accuracy, abs=0.002)

"""Triplets in files: what is written is read again, and what is missing or wrong is named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import ImageFileError, TripletsError
from rlpips_jax.evaluation.sources import read
from rlpips_jax.evaluation.triplet_files import (
    read_bapps,
    read_judgments,
    read_npz,
    summarise_npz,
    write_bapps,
    write_npz,
)
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets
from rlpips_jax.files.array_hash import array_hash

PARTS = ("ref", "p0", "p1", "judge")


def made(kinds: list[str], height: int = 6, width: int = 8, seed: int = 0) -> Triplets:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, len(kinds), height, width, 3), np.uint8)
    judgment = rng.choice(np.arange(6, dtype=np.float32) / np.float32(5), len(kinds))
    reference, p0, p1 = images
    return Triplets(reference, p0, p1, judgment, tuple(kinds), rng.random(len(kinds)) < 0.5, "made", {"seed": seed})


def assert_same(a: Triplets, b: Triplets) -> None:
    assert a.kinds == b.kinds
    for name in ("reference", "p0", "p1", "judgment"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def by_kind(triplets: Triplets) -> Triplets:
    order = sorted(range(len(triplets)), key=lambda index: triplets.kinds[index].split("/"))
    columns = {name: getattr(triplets, name)[order] for name in ("reference", "p0", "p1", "judgment", "sure")}
    return dataclasses.replace(triplets, kinds=tuple(triplets.kinds[index] for index in order), **columns)


@pytest.fixture
def bapps(tmp_path: Path) -> Path:
    """A set of three categories, one within the folder of another."""
    write_bapps(made(["blur", "noise", "blur/jpeg", "blur", "noise", "noise"]), tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def materials(tmp_path: Path) -> Path:
    """A folder of votes about three pictures."""
    folder = tmp_path / "materials"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["c.png", "a.png", "b.png"]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(folder / "images" / name)
    arrays = {"names": np.array(names)}
    for split, rows in (("train", [[2, 1, 0]]), ("test", [[0, 1, 2], [1, 2, 0]])):
        arrays[f"{split}/triplets"] = np.array(rows, np.int16)
        arrays[f"{split}/votes"] = np.array([[1, 3], [2, 2]][: len(rows)], np.int16)
    np.savez(folder / "triplets.npz", **arrays)  # pyright: ignore
    return folder


def change(path: Path, **changes: np.ndarray | None) -> None:
    """Replaces arrays of a file of several, or takes them out; `__` stands for the slash."""
    with np.load(path) as file:
        arrays = dict(file) | {key.replace("__", "/"): array for key, array in changes.items()}
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})  # pyright: ignore


def test_bapps_is_read_as_it_was_written(bapps):
    written = by_kind(made(["blur", "noise", "blur/jpeg", "blur", "noise", "noise"]))
    found = read_bapps(bapps, size=None)
    assert_same(found, written)
    assert found.kinds == ("blur", "blur", "blur/jpeg", "noise", "noise", "noise")
    assert found.sure is not None
    assert found.sure.tolist() == [True] * 6
    assert found.name == "set"
    assert found.source["sha256"] == array_hash(
        written.reference, written.p0, written.p1, written.judgment, labels=written.kinds
    )
    assert (bapps / "blur" / "jpeg" / "p1" / "000002.png").is_file()
    assert np.load(bapps / "noise" / "judge" / "000001.npy").shape == (1,)


def test_votes_can_be_written_as_bapps(materials, tmp_path):
    triplets = read_judgments(materials)
    write_bapps(triplets, tmp_path / "new")
    assert_same(read_bapps(tmp_path / "new", size=None), triplets.batch(0, 2))


def test_a_category_alone_is_named_for_its_folder(bapps):
    assert read_bapps(bapps / "noise").kinds == ("noise",) * 3
    assert read_bapps(bapps.parent).kinds[:2] == ("set/blur", "set/blur")


def test_a_divided_jury_is_not_sure(bapps):
    np.save(bapps / "noise" / "judge" / "000001.npy", np.float32(0.5))
    sure = read_bapps(bapps / "noise").sure
    assert sure is not None
    assert sure.tolist() == [False, True, True]


def test_large_files_are_reduced_as_published_scores_have_it(tmp_path):
    # Antialiased, a fine chequerboard is grey; sampled, it would be black, white or a pattern.
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    images = checks[None]
    write_bapps(Triplets(images, images, images, np.ones(1, np.float32), ("x",)), tmp_path / "large")
    (triplets,) = read(tmp_path / "large")
    assert isinstance(triplets, Triplets)
    assert triplets.reference.shape == (1, 64, 64, 3)
    assert np.abs(triplets.reference.astype(int) - 127.5).max() <= 0.5
    assert read_bapps(tmp_path / "large", size=None).reference.shape == (1, 256, 256, 3)
    (smaller,) = read(tmp_path / "large", size=16)
    assert smaller.batch(0, 1).reference.shape == (1, 16, 16, 3)


def test_the_shorter_side_gets_the_size(tmp_path):
    write_bapps(made(["x"], height=30, width=45), tmp_path / "wide")
    assert read_bapps(tmp_path / "wide", size=10).p0.shape == (1, 10, 15, 3)
    write_bapps(made(["x"], height=45, width=30), tmp_path / "high")
    assert read_bapps(tmp_path / "high", size=10).p0.shape == (1, 15, 10, 3)


@pytest.mark.parametrize(("part", "suffix"), [("ref", "png"), ("p0", "png"), ("p1", "png"), ("judge", "npy")])
def test_a_missing_file_is_named(bapps, part, suffix):
    (bapps / "noise" / part / f"000004.{suffix}").unlink()
    with pytest.raises(TripletsError, match=rf"noise/{part}/000004\.{suffix} is missing; there is .*/000004\."):
        read_bapps(bapps)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_folder_is_named(bapps, part):
    for path in (bapps / "noise" / part).iterdir():
        path.unlink()
    (bapps / "noise" / part).rmdir()
    if part == "ref":  # Without references it is no category; the other two are read.
        assert set(read_bapps(bapps).kinds) == {"blur", "blur/jpeg"}
        return
    with pytest.raises(TripletsError, match=f"noise/{part} is missing"):
        read_bapps(bapps)


def test_wrong_files_are_named(bapps):
    noise = bapps / "noise"
    np.save(noise / "judge" / "000004.npy", np.float32(-1))
    with pytest.raises(TripletsError, match=r"judge/000004\.npy holds -1; a judgment is a fraction"):
        read_bapps(bapps)
    np.save(noise / "judge" / "000004.npy", np.zeros(2))
    with pytest.raises(TripletsError, match=r"judge/000004\.npy is not a \.npy file of one number"):
        read_bapps(bapps)
    np.save(noise / "judge" / "000004.npy", np.array([{"vote": 1}], object), allow_pickle=True)
    with pytest.raises(TripletsError, match=r"judge/000004\.npy is not a \.npy file of one number"):
        read_bapps(bapps)
    (noise / "judge" / "000004.npy").write_bytes(b"")
    with pytest.raises(TripletsError, match=r"judge/000004\.npy is not a \.npy file of one number"):
        read_bapps(bapps)
    Image.new("RGB", (9, 6)).save(noise / "p1" / "000005.png")
    with pytest.raises(TripletsError, match=r"p1/000005\.png is 6x9 pixels and .*ref/000000\.png 6x8"):
        read_bapps(bapps, size=None)
    (noise / "p0" / "000005.png").write_bytes(b"not an image")
    with pytest.raises(ImageFileError, match=r"p0/000005\.png is not an image"):
        read_bapps(bapps)
    Image.new("RGB", (8, 6)).save(noise / "ref" / "000005.jpg")
    with pytest.raises(TripletsError, match=r"000005\.png and 000005\.jpg have the same name"):
        read_bapps(bapps)


def test_an_empty_category_is_named(bapps):
    for part in PARTS:
        (bapps / "empty" / part).mkdir(parents=True)
    with pytest.raises(TripletsError, match="empty has no triplets"):
        read_bapps(bapps)


def test_writing_never_mixes_with_what_is_there(bapps):
    with pytest.raises(TripletsError, match="is not empty"):
        write_bapps(made(["blur"]), bapps)
    with pytest.raises(TripletsError, match="no triplets to write"):
        write_bapps(made(["blur"]).batch(0, 0), bapps.parent / "none")


@pytest.mark.parametrize("kind", ["", "../x", "/x", "blur/", "x/ref", "a\\b", "c:", ".hidden"])
def test_kinds_that_are_no_folders_are_refused(kind, tmp_path):
    with pytest.raises(TripletsError, match="cannot be a folder's name"):
        write_bapps(made([kind]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_npz_files_are_read_as_they_were_written(tmp_path):
    parts = {"crossed": made(["blur/jpeg", "noise/warp"], seed=1), "ordinal": made(["noise", "blur", "noise"])}
    write_npz(tmp_path / "set.npz", parts)
    found = read_npz(tmp_path / "set.npz")
    assert [part.name for part in found] == ["set.npz crossed", "set.npz ordinal"]
    for written, part in zip(parts.values(), found, strict=True):
        assert_same(part, written)
        assert part.sure is not None
        np.testing.assert_array_equal(part.sure, written.sure)
        assert part.source["made"] == written.source
        json.dumps(dict(part.source))
    assert [str(part) for part in found] == [str(part) for part in read(tmp_path / "set.npz")]
    assert list(tmp_path.iterdir()) == [tmp_path / "set.npz"]


def test_a_file_is_summarised_without_its_images(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    write_npz(path, {"crossed": made(["blur/jpeg", "noise/warp"], seed=1), "ordinal": made(["noise"])})
    monkeypatch.setattr(np, "load", None)
    found = summarise_npz(path)
    assert found == {"crossed": ((2, 6, 8, 3), {"seed": 1}), "ordinal": ((1, 6, 8, 3), {"seed": 0})}
    np.savez(path, ref=np.zeros((3, 4, 5, 3), np.uint8))
    assert summarise_npz(path) == {"": ((3, 4, 5, 3), {})}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TripletsError, match=r"set\.npz cannot be read as an \.npz file"):
        summarise_npz(path)
    with pytest.raises(TripletsError, match=r"nowhere\.npz does not exist"):
        summarise_npz(tmp_path / "nowhere.npz")


def test_distances_of_a_teacher_stand_for_judgments(tmp_path):
    triplets = made(["x", "x", "x"])
    arrays = {"a/ref": triplets.reference, "a/p0": triplets.p0, "a/p1": triplets.p1}
    arrays |= {"a/d0": np.array([1.0, 2, 1]), "a/d1": np.array([1.0, 1, 1.5])}
    arrays |= {"a/kind": np.array([[0, 1], [1, 2], [2, 0]]), "kinds": np.array(["blur", "noise", "jpeg"])}
    np.savez(tmp_path / "teacher.npz", **arrays)  # pyright: ignore
    (found,) = read_npz(tmp_path / "teacher.npz")
    np.testing.assert_allclose(found.judgment, [1 / 2, 16 / 17, 1 / (1 + 1.5**4)], rtol=1e-6)
    assert found.sure is not None
    assert found.sure.tolist() == [False, True, False]
    assert found.kinds == ("blur/noise", "noise/jpeg", "jpeg/blur")


def test_what_an_npz_file_lacks_is_named(tmp_path):
    path = tmp_path / "set.npz"

    def fails(words: str, **changes: np.ndarray | None) -> None:
        write_npz(path, {"a": made(["x", "y"])})
        change(path, **changes)
        with pytest.raises(TripletsError, match=rf"set\.npz.*{words}"):
            read_npz(path)

    fails("has no a/p1, only", a__p1=None)
    fails("has no a/judge, only", a__judge=None)
    fails("has no kinds, only", kinds=None)
    fails("holds no part/ref, only a/judge", a__ref=None)
    fails("a/kind must hold indices", a__kind=np.array([0, 2]))
    fails("a/kind must hold indices", a__kind=np.array(["x", "y"]))
    fails("fractions from 0 to 1", a__judge=np.array([-1.0, 1.0]))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TripletsError, match=r"cannot be read as an \.npz file of numbers"):
        read_npz(path)
    np.savez(path, **{"a/ref": np.array([{}], object)})  # pyright: ignore
    with pytest.raises(TripletsError, match=r"cannot be read as an \.npz file of numbers"):
        read_npz(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(TripletsError, match=r"set\.npz is a single array"):
        read_npz(path)
    with pytest.raises(TripletsError, match=r"nowhere\.npz does not exist"):
        read_npz(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [("a.zip", ["a"], "end in .npz"), ("a.npz", [], "one or more"), ("a.npz", ["a/b"], "without a slash")],
)
def test_npz_files_that_could_not_be_read_are_not_written(name, parts, words, tmp_path):
    with pytest.raises(TripletsError, match=words):
        write_npz(tmp_path / name, dict.fromkeys(parts, made(["x"])))
    assert not list(tmp_path.iterdir())


def test_votes_are_read_with_their_images(materials):
    triplets = read_judgments(materials)
    assert triplets.judgment.tolist() == [0.75, 0.5]
    assert triplets.sure.tolist() == [True, False]
    assert triplets.kinds == ("materials",) * 2
    assert triplets.name == "materials test"
    batch = triplets.batch(0, 2)
    for column, names in (("reference", "ca"), ("p0", "ab"), ("p1", "bc")):
        for image, name in zip(getattr(batch, column), names, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(materials / "images" / f"{name}.png")))
    (train,) = read(materials, split="train", size=8)
    assert isinstance(train, IndexedTriplets)
    assert (len(train), train.images.shape) == (1, (3, 10, 8, 3))


def test_what_is_wrong_with_votes_is_named(materials):
    path = materials / "triplets.npz"
    with pytest.raises(TripletsError, match="no split 'val'; it has test, train"):
        read_judgments(materials, split="val")
    change(path, test__votes=np.array([[1, 3], [0, 0]]))
    with pytest.raises(TripletsError, match=r"triplets\.npz: triplet 1 has the votes"):
        read_judgments(materials)
    change(path, names=np.array(["a.png", "b.png", "../images/c.png"]))
    with pytest.raises(TripletsError, match=r"\.\./images/c\.png is not a file, but"):
        read_judgments(materials)
    change(path, names=np.array(["a.png", "b.png", "d.png"]))
    with pytest.raises(TripletsError, match=r"images/d\.png is not a file, but .*triplets\.npz names it"):
        read_judgments(materials)
    with pytest.raises(TripletsError, match=r"triplets\.npz does not exist"):
        read_judgments(materials / "images")


def test_sizes_without_pixels_are_refused(bapps, materials):
    with pytest.raises(TripletsError, match="size is 0"):
        read_bapps(bapps, size=0)
    with pytest.raises(TripletsError, match="size is 0"):
        read(bapps, size=0)
    with pytest.raises(TripletsError, match="size is -1"):
        read_judgments(materials, size=-1)


def test_other_folders_are_told_from_triplets(bapps, tmp_path):
    (found,) = read(bapps)
    assert len(found) == 6
    with pytest.raises(TripletsError, match="nowhere does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        TripletsError, match=r"holds no judged triplets; give one of: an [.]npz file; .*ref, p0, p1, judge.*photographs"
    ):
        read(tmp_path / "empty")
    with pytest.raises(TripletsError, match="at any depth"):
        read_bapps(tmp_path / "empty")
    with pytest.raises(TripletsError, match=r"read\('.*ref', count=600\)"):
        read(bapps / "noise" / "ref")
    for part in ("p0", "p1", "same"):
        (tmp_path / "jnd" / "val" / part).mkdir(parents=True)
    for folder in (tmp_path / "jnd", tmp_path / "jnd" / "val"):
        with pytest.raises(TripletsError, match="holds judged pairs, not triplets: BAPPS's pairs"):
            read(folder)


@pytest.mark.shared
def test_the_fixed_test_set_is_read(shared):
    crossed, ordinal = read(shared / "triplets" / "kodak.npz")
    assert (crossed.name, ordinal.name) == ("kodak.npz crossed", "kodak.npz ordinal")
    assert len(crossed) == len(ordinal) == 600
    assert ordinal.kinds[:3] == ("blur", "noise", "jpeg")
    assert all(kind.count("/") == 1 for kind in crossed.kinds)
    assert set(ordinal.judgment) == {0, 1}
    assert ordinal.sure is None

"""What a run learns from, and what it is evaluated on."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.errors import TrainingError, TripletsError
from rlpips_jax.evaluation import triplet_distances
from rlpips_jax.evaluation import triplets as made_triplets
from rlpips_jax.evaluation.triplet_files import write_npz
from rlpips_jax.evaluation.triplets import Triplets
from training.config import Lin
from training.sets import Sets, load_sets, sized
from training.step import JUDGED, ORDINAL

TINY: dict[str, Any] = {"teacher": "lpips-tiny", "triplets": 6, "validation_triplets": 4, "size": 32}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def made(photographs) -> Sets:
    return load_sets(Lin(photographs=photographs, validation=photographs, **TINY))


def images(source: Any) -> np.ndarray:
    return np.stack([[source[index][name] for name in ("reference", "p0", "p1")] for index in range(len(source))])


def test_photographs_give_as_many_of_each_sort(made, photographs) -> None:
    assert made.sources.keys() == {ORDINAL, JUDGED}
    for (source,) in made.sources.values():
        assert len(source) == 6
        assert images(source).shape == (6, 3, 32, 32, 3)
        assert images(source).dtype == np.uint8
    names = [f"6 of {photographs.name} ordinal", f"6 of {photographs.name} crossed"]
    assert [one["triplets"] for one in made.described] == names


def test_ordinal_judgments_are_certain_and_the_teachers_are_opinions(made) -> None:
    ordinal, judged = (made.sources[group][0] for group in (ORDINAL, JUDGED))
    assert {float(ordinal[index]["judgment"]) for index in range(6)} <= {0.0, 1.0}
    opinions = np.array([float(judged[index]["judgment"]) for index in range(6)])
    assert not set(opinions) <= {0.0, 1.0}
    columns = images(judged)
    triplets = Triplets(columns[:, 0], columns[:, 1], columns[:, 2], opinions.astype(np.float32), ("",) * 6)
    d0, d1 = triplet_distances(rl.load("lpips-tiny"), triplets)
    np.testing.assert_allclose(opinions, d0**4 / (d0**4 + d1**4), atol=1e-5)


def test_validation_is_drawn_otherwise_also_from_the_same_photographs(made, photographs) -> None:
    assert set(made.validation) == {f"{photographs.name} ordinal", f"{photographs.name} crossed"}
    learnt = {image.tobytes() for (source,) in made.sources.values() for image in images(source)[:, 0]}
    for triplets in made.validation.values():
        assert len(triplets) == 4
        references = triplets.batch(0, 4).reference
        assert not learnt & {reference.tobytes() for reference in references}
    sure = {name.rpartition(" ")[2]: triplets.sure is not None for name, triplets in made.validation.items()}
    assert sure == {"ordinal": False, "crossed": True}


def test_the_seed_decides(made, photographs) -> None:
    def of(seed: int) -> Any:
        return images(load_sets(Lin(photographs=photographs, seed=seed, **TINY)).sources[ORDINAL][0])

    assert np.array_equal(of(0), images(made.sources[ORDINAL][0]))
    assert not np.array_equal(of(0), of(1))


def test_triplets_are_the_same_on_processors_that_round_otherwise(made, photographs, monkeypatch) -> None:
    measure = made_triplets.triplet_distances

    def rounded(*arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        d0, d1 = measure(*arguments, **options)
        return np.nextafter(d0, np.float32(np.inf)), d1

    def again(**options: Any) -> Sets:
        return load_sets(Lin(photographs=photographs, **{**TINY, **options}))

    with monkeypatch.context() as patch:
        patch.setattr(made_triplets, "triplet_distances", rounded)
        found = again()
    sources = [sets.sources[JUDGED][0] for sets in (made, found)]
    assert any(sources[0][index]["judgment"] != sources[1][index]["judgment"] for index in range(6))
    assert found.identities == made.identities
    assert again(seed=1).identities[1] != made.identities[1]
    changed = dataclasses.replace(rl.load("lpips-tiny"), dtype="bfloat16")
    monkeypatch.setattr(rl, "load", lambda *_, **__: changed)
    # Ordinal triplets have no teacher.
    assert [one == its for one, its in zip(again().identities, made.identities, strict=True)] == [True, False]


def test_a_file_of_triplets_is_judged_and_is_not_evaluated_on_unless_told(tmp_path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 256, (5, 32, 32, 3), np.uint8) for name in ("ref", "p0", "p1")}
    path = tmp_path / "triplets.npz"
    arrays: dict[str, Any] = dict(columns)
    np.savez(path, **arrays, judge=np.array([0, 0.25, 0.5, 1, 1], np.float32))
    sets = load_sets(Lin(data=str(path), size=32))
    assert (set(sets.sources), sets.validation) == ({JUDGED}, {})
    (source,) = sets.sources[JUDGED]
    np.testing.assert_array_equal(images(source), np.stack(list(columns.values()), axis=1))
    assert [float(source[index]["judgment"]) for index in range(5)] == [0, 0.25, 0.5, 1, 1]
    validated = load_sets(Lin(data=str(path), size=32, validation=path)).validation
    assert [len(triplets) for triplets in validated.values()] == [5]


def write(path: Path, **sizes: int) -> Path:
    """A file of four triplets of noise of each part, at these sizes."""
    rng, arrays = np.random.default_rng(0), {}
    for part, size in sizes.items():
        arrays |= {f"{part}/{name}": rng.integers(0, 256, (4, size, size, 3), np.uint8) for name in ("ref", "p0", "p1")}
        arrays[f"{part}/judge"] = np.linspace(0, 1, 4, dtype=np.float32)
    np.savez(path, **arrays)
    return path


def test_a_file_is_described_by_what_it_was_made_of(photographs, tmp_path) -> None:
    folder, count = tmp_path / "somewhere", 3
    parts = {
        "crossed": made_triplets.crossed(photographs, count, teacher=rl.load("lpips-tiny"), size=32),
        "ordinal": made_triplets.ordinal(photographs, count, size=32),
    }
    write_npz(folder / "learn.npz", parts)
    sets = load_sets(Lin(data=str(folder / "learn.npz")))
    crossed, ordinal = json.loads(json.dumps(sets.described))
    assert (crossed["triplets"], ordinal["triplets"]) == ("3 of learn.npz crossed", "3 of learn.npz ordinal")
    assert crossed["file_sha256"] == hashlib.sha256((folder / "learn.npz").read_bytes()).hexdigest()
    assert crossed["source"]["made"] == {**parts["crossed"].source, "folder": photographs.name}
    assert crossed["source"]["made"]["teacher"] == rl.load("lpips-tiny").signature
    assert (crossed["source"]["file"], crossed["source"]["part"]) == ("learn.npz", "crossed")
    assert str(tmp_path) not in json.dumps(sets.described)
    # What nothing learns from is not spoken of.
    only = sets.only([ORDINAL])
    assert (only.described, only.identities) == ([ordinal], [sets.identities[1]])
    assert only.sources.keys() == {ORDINAL}


def test_a_file_has_its_own_size(tmp_path) -> None:
    path = write(tmp_path / "triplets.npz", first=48, second=48)
    for given in (None, 48):
        assert sized(Lin(data=str(path), size=given)).document()["size"] == 48
        assert images(load_sets(Lin(data=str(path), size=given)).sources[JUDGED][1]).shape == (4, 3, 48, 48, 3)
    for read in (sized, load_sets):
        with pytest.raises(TrainingError, match=r"--size is 64, but the images of .*triplets\.npz have 48 pixels"):
            read(Lin(data=str(path), size=64))
    several = write(tmp_path / "several.npz", first=48, second=32)
    with pytest.raises(TrainingError, match=r"several\.npz has images of 32, 48 pixels"):
        sized(Lin(data=str(several)))


def test_what_is_not_given_is_64(photographs, tmp_path) -> None:
    for data in ("photographs", "bapps", str(tmp_path)):
        assert [sized(Lin(data=data, size=size)).size for size in (None, 32)] == [64, 32]


def test_validation_made_of_photographs_has_the_size_of_a_file(photographs, tmp_path) -> None:
    path = write(tmp_path / "triplets.npz", only=48)
    options: dict[str, Any] = TINY | {"size": None}
    validation = load_sets(Lin(data=str(path), validation=photographs, **options)).validation
    assert [triplets.batch(0, 4).reference.shape for triplets in validation.values()] == [(4, 48, 48, 3)] * 2


def test_what_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"--data photographs needs --photographs.*--data bapps"):
        load_sets(Lin())
    with pytest.raises(TripletsError, match="nowhere"):
        load_sets(Lin(data=str(tmp_path / "nowhere.npz")))


def test_votes_are_learnt_from_beside_other_triplets(photographs, tmp_path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    arrays = {"names": np.array(["a.png", "b.png"])}
    for split, count in (("train", 9), ("test", 1)):
        arrays |= {
            f"{split}/triplets": np.array([[0, 1, 1]] * count, np.int16),
            f"{split}/votes": np.array([[1, 3]] * count, np.int16),
        }
    np.savez(tmp_path / "triplets.npz", **arrays)  # pyright: ignore[reportArgumentType]
    sets = load_sets(Lin(photographs=photographs, votes=tmp_path, **TINY))
    assert [len(source) for source in sets.sources[JUDGED]] == [6, 6]
    (_, votes) = sets.sources[JUDGED]
    assert images(votes).shape == (6, 3, 32, 32, 3)
    assert float(votes[0]["judgment"]) == 0.75
    assert len(sets.sources[ORDINAL]) == 1
    with pytest.raises(TrainingError, match="--votes is not for --data bapps"):
        Lin(data="bapps", votes=tmp_path)

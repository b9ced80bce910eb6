"""Sources: one interface, whatever is behind it."""

import pickle

import numpy as np
import pytest

from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets
from training.data.sources import MemorySource, RecordSource, Source, materialise


def triplets(count: int = 5) -> Triplets:
    rng = np.random.default_rng(count)
    reference, p0, p1 = rng.integers(0, 256, (3, count, 8, 8, 3), np.uint8)
    return Triplets(reference, p0, p1, rng.random(count, np.float32), tuple("abcdefgh"[:count]), name="made")


def indexed() -> IndexedTriplets:
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    indices = np.array([[0, 1, 2], [3, 2, 1], [1, 0, 3]])
    return IndexedTriplets(images, indices, np.array([[1, 3], [2, 0], [1, 1]]), ("a", "b", "a"), "votes")


@pytest.fixture(params=["triplets", "indexed", "records"])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "records":
        return RecordSource(request.getfixturevalue("prepared") / "bapps" / "twoafc" / "1.0.0", "train_cnn")
    return MemorySource({"triplets": triplets, "indexed": indexed}[request.param]())


def test_examples_are_those_of_the_set(source):
    assert isinstance(source, Source)
    whole = materialise(source)
    assert len(whole) == len(source) >= 3
    for index in range(len(source)):
        example = source[index]
        assert set(example) == {"reference", "p0", "p1", "judgment"}
        for name in ("reference", "p0", "p1"):
            assert example[name].dtype == np.uint8
            np.testing.assert_array_equal(example[name], getattr(whole, name)[index])
        assert type(example["judgment"]) is np.float32
        assert example["judgment"] == whole.judgment[index]


def test_other_processes_get_the_same_source(source):
    # Numbers of records have been read, so that files are open.
    first = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert (len(copy), copy.name, repr(copy)) == (len(source), source.name, repr(source))
    for name, value in first.items():
        np.testing.assert_array_equal(copy[0][name], value)


def test_indices_beyond_the_end_are_errors(source):
    for index in (len(source), -1):
        with pytest.raises(IndexError, match=rf"index {index} is not among the {len(source)} examples"):
            source[index]


def test_materialised_triplets_keep_what_is_known(prepared):
    made = triplets()
    whole = materialise(MemorySource(made))
    assert (whole.kinds, whole.name, whole.sure) == (made.kinds, "made", None)
    assert materialise(MemorySource(indexed())).kinds == ("a", "b", "a")
    records = materialise(RecordSource(prepared / "bapps" / "twoafc" / "1.0.0", "train_mix", size=32))
    assert records.reference.shape == (3, 32, 32, 3)
    assert records.kinds == ("mix",) * 3
    assert records.sure is not None
    assert records.sure.tolist() == [True, True, False]


def test_sets_that_cannot_be_materialised_are_named():
    class Odd:
        name = "odd"

        def __init__(self, sides: list[int]) -> None:
            self.sides = sides

        def __len__(self) -> int:
            return len(self.sides)

        def __getitem__(self, index: int) -> dict:
            image = np.zeros((self.sides[index],) * 2 + (3,), np.uint8)
            return {"reference": image, "p0": image, "p1": image, "judgment": np.float32(0)}

        def __repr__(self) -> str:
            return "odd"

    with pytest.raises(TripletsError, match=r"reference of example 1 of odd has shape \(9, 9, 3\)"):
        materialise(Odd([8, 9]))  # pyright: ignore
    with pytest.raises(TripletsError, match="odd is empty"):
        materialise(Odd([]))  # pyright: ignore

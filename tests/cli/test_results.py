"""Numbers of long runs on disk: any interruption is mended, and nothing of another run is taken."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpips_jax.cli.results import Recording, write_whole
from rlpips_jax.errors import RlpipsError

COLUMNS: dict[str, type[np.generic]] = {"d": np.float32, "count": np.int64, "right": np.bool_}
TOTAL = 7


def recording(folder: Path, **settings: Any) -> Recording:
    return Recording(folder, ["some set", "lpips-tiny", "2/255"], {"seed": 0, **settings}, COLUMNS)


def numbers() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return rng.random(TOTAL, np.float32), rng.integers(0, 1000, TOTAL), rng.random(TOTAL) < 0.5


def compute(start: int, size: int = 3) -> Iterator[tuple[np.ndarray, ...]]:
    for begin in range(start, TOTAL, size):
        yield tuple(column[begin : begin + size] for column in numbers())


def collect(made: Recording, compute: Any = compute) -> tuple[np.ndarray, ...]:
    return made.collect(TOTAL, compute, lambda count: None)


def test_columns_come_back_bit_for_bit(tmp_path: Path) -> None:
    first = collect(recording(tmp_path))

    def nothing(start: int) -> Iterator[tuple[np.ndarray, ...]]:
        raise AssertionError("all was recorded already")

    for found in (first, collect(recording(tmp_path), nothing)):
        for column, expected in zip(found, numbers(), strict=True):
            assert column.dtype == expected.dtype
            np.testing.assert_array_equal(column, expected)


def test_any_cut_is_mended(tmp_path: Path) -> None:
    made = recording(tmp_path)
    collect(made)
    whole = made.columns_path.read_bytes()
    for cut in range(0, len(whole) + 1, 7):
        made.columns_path.write_bytes(whole[:cut])
        for column, expected in zip(collect(made), numbers(), strict=True):
            np.testing.assert_array_equal(column, expected)
        assert made.columns_path.read_bytes() == whole


def test_other_settings_are_another_file(tmp_path: Path) -> None:
    one, other = recording(tmp_path), recording(tmp_path, seed=1)
    assert one.path != other.path
    assert one.path.name.startswith("some-set-lpips-tiny-2-255-")


@pytest.mark.parametrize(
    "line",
    [
        b"[[1, 2], [1, 2]]\n",
        b"[[1], [1, 2], [true]]\n",
        b"nonsense\n",
        b'[["0.5"], [1], [true]]\n',
        b"[[0.5], [1.5], [true]]\n",
        b"[[0.5], [1], [1]]\n",
        b"[[true], [1], [true]]\n",
        b"[[null], [1], [true]]\n",
    ],
)
def test_a_damaged_file_is_refused_and_left(tmp_path: Path, line: bytes) -> None:
    made = recording(tmp_path)
    collect(made)
    header = made.columns_path.read_bytes().splitlines(keepends=True)[0]
    made.columns_path.write_bytes(header + line)
    with pytest.raises(RlpipsError, match="record 2 is damaged"):
        collect(made)
    assert made.columns_path.read_bytes() == header + line


def test_a_document_says_how_to_repeat_it(tmp_path: Path) -> None:
    made = recording(tmp_path)
    collect(made)
    made.finish({"share": np.float64(0.5)}, 1.0)
    document = json.loads(made.path.read_text())
    assert document["seed"] == 0
    assert document["share"] == 0.5
    assert document["columns"] == made.columns_path.name
    assert set(document["versions"]) == {"rlpips-jax", "jax", "numpy", "python", "device"}
    before = made.path.read_bytes()
    made.finish({"share": np.float64(0.5)}, 2.0)
    assert made.path.read_bytes() == before
    made.finish({"share": np.float64(0.25)}, 2.0)
    assert json.loads(made.path.read_text())["share"] == 0.25


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_whole(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

"""How measurements are told."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.report import busy, record, relative_difference, seconds, times_cells


def test_relative_differences() -> None:
    assert relative_difference(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert math.isnan(relative_difference(np.array([1.0, np.nan]), np.array([1.0, 2.0])))


def test_cells_of_times() -> None:
    times = {"ours": [0.1, 0.2], "theirs": [0.2, 0.4]}
    assert times_cells(times, ["ours", "theirs", "absent"]) == ["150 ms", "300 ms, x 2 (2 to 2)", "-"]
    assert seconds(1.5) == "1.5 s"


def test_others_are_told_where_they_ran() -> None:
    assert busy({"speed": 0.01, "files": math.nan}) == []
    (told,) = busy({"speed": 0.01, "files": 0.5})
    assert "0.50 during files" in told
    assert "speed" not in told


def test_a_record_has_the_options_and_where_it_was_measured() -> None:
    @dataclass
    class Options:
        repeats: int = 3

    found = record(Options())
    assert found["options"] == {"repeats": 3}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__

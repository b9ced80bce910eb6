"""Timing in turns: order, counts and ratios, never the times themselves."""

import math

import pytest

from benchmarks.timing import median, processor_seconds, side_by_side, slowdown


def test_everybody_warms_up_and_begins_in_turn() -> None:
    called: list[str] = []
    times = side_by_side({name: lambda name=name: called.append(name) for name in "abc"}, repeats=4)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert [len(times[name]) for name in "abc"] == [4, 4, 4]
    assert all(taken >= 0 for name in "abc" for taken in times[name])


def test_an_error_is_not_swallowed() -> None:
    def fail() -> None:
        raise ArithmeticError("no number")

    with pytest.raises(ArithmeticError, match="no number"):
        side_by_side({"a": fail}, repeats=1)


def test_the_slowdown_is_taken_round_by_round() -> None:
    # The second machine load falls on both; the medians' own ratio would be 20 / 10 only by chance.
    found = slowdown([2, 40, 6, 8, 10], [1, 10, 2, 2, 2])
    assert found == (3, 4, 4)
    assert str(slowdown([1, 3], [1, 1])) == "2 (1.5 to 2.5)"
    assert median([3, 1, 2]) == 2


def test_processor_seconds_only_grow() -> None:
    before = processor_seconds()
    if before is None:
        pytest.skip("this system does not tell")
    sum(math.sqrt(value) for value in range(10_000))
    after = processor_seconds()
    assert after is not None
    assert after >= before
    assert after[1] > 0

"""The measurement of large sets, on a small one."""

import csv
from pathlib import Path

import pytest

from benchmarks import sets
from benchmarks.sets import Sample, Sets


@pytest.mark.slow
def test_what_is_promised_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Sets(tmp_path, files=16, sizes=2, smallest=40, largest=48, metric="lpips-tiny", workers=0, check=4)
    sets.main(config)
    printed = capsys.readouterr().out
    assert printed.count("| True |") == 2
    assert "| 16, 8, 2 (40 to 48 pixels a side) |" in printed


def test_files_are_of_the_sizes_asked_for(tmp_path: Path) -> None:
    listing = sets.draw(Sets(tmp_path, files=20, sizes=3, smallest=20, largest=30))
    with open(listing) as file:
        rows = list(csv.DictReader(file))
    shapes = [{sets.rl.load_image(path).shape for path in row.values()} for row in rows]
    assert len(rows) == 10
    assert all(len(shape) == 1 for shape in shapes)
    assert len(set.union(*shapes)) == 3


def test_memory_by_quarters() -> None:
    samples = [Sample(100, 10, 0), *[Sample(number, 5, number) for number in range(1, 100)], Sample(7, 5, 100)]
    scoring, reading = sets.memory(samples, 100).splitlines()
    assert scoring == "| scoring process | 12 | 37 | 62 | 87 | 100 |"
    assert reading == "| reading processes, sum | 5 | 5 | 5 | 5 | 10 |"

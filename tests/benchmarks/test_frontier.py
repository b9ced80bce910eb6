"""The frontier's table and picture: seeds of one metric are one point."""

from pathlib import Path

from PIL import Image

from benchmarks import frontier
from benchmarks.tradeoff import EPSILONS


def numbers(agreement: float, attacked: float) -> dict[str, float]:
    return {"agreement": agreement, "natural": 1.0, **dict.fromkeys(EPSILONS, attacked), frontier.PEOPLE: 0.7}


def test_seeds_of_one_metric_are_one_point(tmp_path: Path) -> None:
    points = {"lpips": [numbers(1.0, 0.1)], "rlpips": [numbers(0.9, 0.5), numbers(0.94, 0.6)]}
    rows = frontier._table(points).rows
    assert [row[:3] for row in rows] == [("lpips", "1", "1.000"), ("rlpips", "2", "0.920 ± 0.028")]
    frontier._draw(points, tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as picture:
        assert min(picture.size) > 400

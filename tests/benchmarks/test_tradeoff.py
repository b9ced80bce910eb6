"""The trade-off's runs, and the table and curves of what they reached."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import tradeoff
from benchmarks.tradeoff import Point, TradeOff
from training.config import Lin, Tune


def options(**changes: Any) -> TradeOff:
    return TradeOff(photographs=Path("learn"), validation=Path("choose"), **changes)


def point(agreement: float, attacked: float, config: Lin | Tune) -> Point:
    ordinal = {"natural": 1.0, **dict.fromkeys(tradeoff.EPSILONS, attacked)}
    return Point(config.document(), {"crossed": {"natural": 0.9, "sure": agreement}, "ordinal": ordinal})


def test_every_weight_and_seed_has_a_run_of_its_own() -> None:
    runs = list(tradeoff._grid(options(natural_weights=(1.0, 2.0), seeds=(0, 1, 2), floor=3.0)))
    assert [(run.seed, run.natural_weight) for run in runs] == [(s, w) for s in range(3) for w in (1.0, 2.0)]
    assert len({run.out for run in runs}) == 6
    assert all(isinstance(run, Lin) and run.floor == 3 for run in runs)


@pytest.mark.parametrize("mode", ["lin", "tune"])
def test_what_is_not_given_is_the_mode_s_own(mode) -> None:
    (run,) = tradeoff._grid(options(mode=mode, natural_weights=(2.0,)))
    assert run.recipe == tradeoff.MODES[mode](natural_weight=2.0).recipe


def test_seeds_of_one_way_make_a_row() -> None:
    points = [point(0.9, 0.5, Lin(seed=0)), point(0.94, 0.6, Lin(seed=1)), point(0.8, 0.7, Tune())]
    rows = tradeoff._table(points).rows
    assert [row[tradeoff.WAYS.index("mode")] for row in rows] == ["lin", "tune"]
    assert [row[-6:-4] for row in rows] == [("2", "0.920 ± 0.028"), ("1", "0.800")]
    assert rows[0][-1] == "0.550 ± 0.071"


def test_curves_are_drawn(tmp_path: Path) -> None:
    points = [
        point(0.9, 0.5, Lin(natural_weight=1.0)),
        point(0.95, 0.4, Lin(natural_weight=4.0)),
        point(0.9, 0.6, Tune()),
    ]
    tradeoff._draw(points, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 400


def test_legends_name_what_tells_curves_of_a_mode_apart() -> None:
    points = [point(0.9, 0.5, config) for config in (Lin(steps=300), Lin(steps=600), Tune(floor=3.0, steps=1200))]
    labels = sorted(tradeoff._labels(list(tradeoff._curves(points))).values())
    assert labels == [
        "lpips-alex, lin, 3/255, no floor, steps 300",
        "lpips-alex, lin, 3/255, no floor, steps 600",
        "lpips-alex, tune, 3/255, floor 3",
    ]

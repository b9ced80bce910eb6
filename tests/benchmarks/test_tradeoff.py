"""The trade-off's runs, and the table and curves of what they reached."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from benchmarks import tradeoff
from benchmarks.tradeoff import Point, TradeOff
from rlpips_jax.distances import network
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation import triplet_files
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


@pytest.fixture(scope="module")
def teacher() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "some" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(folder / "one.png")
    return folder


@pytest.fixture(scope="module")
def learn(teacher, photographs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("first") / "learn.npz"
    tradeoff._make(path, photographs, 4, 0, teacher)
    return path


def test_triplets_that_are_there_are_taken_where_they_are_those_asked_for(
    learn, teacher, photographs, tmp_path, monkeypatch
) -> None:
    before = learn.stat()
    tradeoff._make(learn, photographs, 4, 0, teacher)
    # By a link, and by other words for the folder of photographs.
    (tmp_path / "learn.npz").symlink_to(learn)
    (tmp_path / "pictures").symlink_to(photographs)
    monkeypatch.chdir(photographs.parent)
    for folder in (Path("train"), Path("../some/train"), tmp_path / "pictures"):
        tradeoff._make(tmp_path / "learn.npz", folder, 4, 0, teacher)
    # Written anew, with more beside them.
    sets = {triplets.name.partition(" ")[2]: triplets for triplets in triplet_files.read_npz(learn)}
    triplet_files.write_npz(tmp_path / "more.npz", sets | {"more": sets["ordinal"]})
    tradeoff._make(tmp_path / "more.npz", photographs, 4, 0, teacher)
    assert learn.stat() == before


def test_triplets_of_other_options_are_refused(learn, teacher, photographs, tmp_path) -> None:
    make = functools.partial(tradeoff._make, learn)
    other = rl.load("lpips-tiny", dtype="bfloat16")
    for words, arguments in {
        r"ordinal count 4 \(now 5\), crossed count 4 \(now 5\)": (photographs, 5, 0, teacher),
        r"ordinal seed 0 \(now 2\), crossed seed 1 \(now 3\)": (photographs, 4, 2, teacher),
        r"photographs .*some/train \(now .*other/train\)": (tmp_path / "other" / "train", 4, 0, teacher),
        r"crossed teacher .*dtype=float32.* \(now .*dtype=bfloat16": (photographs, 4, 0, other),
        r"kinds \[.*\] \(now \['blur', 'jpeg'\]\)": (photographs, 4, 0, teacher, ("blur", "jpeg")),
    }.items():
        with pytest.raises(TripletsError, match=rf"learn\.npz was made with .*{words}.*; give another --out"):
            make(*arguments)
    arrays: dict[str, Any] = {name: np.zeros((4, 64, 64, 3), np.uint8) for name in ("ref", "p0", "p1")}
    np.savez(tmp_path / "learn.npz", **arrays, judge=np.zeros(4, np.float32))
    with pytest.raises(TripletsError, match="does not say what its ordinal triplets were made of"):
        tradeoff._make(tmp_path / "learn.npz", photographs, 4, 0, teacher)


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        ("../shared/images/bsds/train", "/data/bsds/train", True),
        ("/photographs/bsds/train", "/data/bsds/train", True),
        ("../train", "/data/bsds/train", True),
        ("../shared/images/bsds/train", "/data/bsds/val", False),
        ("../shared/images/bsds/train", "/data/coco/train", False),
    ],
)
def test_folders_are_known_by_their_last_names(recorded, given, expected) -> None:
    assert tradeoff._may_be_one(recorded, Path(given)) == expected


def test_another_version_of_the_library_has_the_same_teacher(learn, teacher, photographs, monkeypatch) -> None:
    monkeypatch.setattr(network, "__version__", "99.0")
    assert teacher.signature.startswith("rlpips-jax 99.0 ")
    tradeoff._make(learn, photographs, 4, 0, teacher)

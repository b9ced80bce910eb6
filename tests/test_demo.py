"""The demonstration: that it runs offline, and that what it claims is what it measures."""

import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from examples import demo, descended, distorted, fooled, trained
from examples.photographs import photographs
from examples.stage import Effort

LITTLE = Effort(attack_steps=3, samples=40, triplets=6, training_steps=3, descent_steps=3)


@pytest.fixture(scope="module")
def tiny() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def bundled() -> dict[str, np.ndarray]:
    return photographs(None)


def test_bundled_photographs(bundled: dict[str, np.ndarray]) -> None:
    assert list(bundled) == ["astronaut", "chelsea", "coffee", "rocket", "motorcycle"]
    for picture in bundled.values():
        assert picture.shape == (256, 256, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 20


def test_photographs_of_ones_own(tmp_path: Path) -> None:
    for number in range(10):
        Image.fromarray(np.full((30, 50, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    grey = np.full((300, 280), 51 * 257, np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")
    pictures = photographs(tmp_path)
    assert list(pictures) == [f"{number}.png" for number in range(8)]
    assert [int(picture.mean()) for picture in pictures.values()] == [51, 10, 20, 30, 40, 50, 60, 70]
    assert {picture.shape for picture in pictures.values()} == {(256, 256, 3)}


def test_the_middle_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (picture,) = photographs(tmp_path).values()
    assert (picture == 200).all()


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(rl.ImageFileError, match="no images"):
        photographs(tmp_path)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find_spec(name))
    with pytest.raises(rl.ImageFileError, match="--images"):
        photographs(None)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_pixel_error_and_distance_contradict_each_other(
    bundled: dict[str, np.ndarray], tiny: rl.Lpips, name: str
) -> None:
    shown = distorted.sorted_by_distance(bundled[name], {"lpips-tiny": tiny}, "lpips-tiny")
    assert [item.distances["lpips-tiny"] for item in shown] == sorted(item.distances["lpips-tiny"] for item in shown)
    mild, harsh = shown[: len(distorted.MILD)], shown[len(distorted.MILD) :]
    assert {item.kind for item in mild} == set(distorted.MILD)
    assert min(item.pixel_error for item in mild) > 1.3 * max(item.pixel_error for item in harsh)
    for item in shown:
        difference = bundled[name].astype(float) - item.picture
        assert item.pixel_error == pytest.approx(np.sqrt(np.mean(difference**2)) / 255)


def test_a_photograph_without_content_breaks_nothing(tiny: rl.Lpips) -> None:
    flat = np.full((64, 64, 3), 100, np.uint8)
    shown = distorted.sorted_by_distance(flat, {"lpips-tiny": tiny}, "lpips-tiny")
    assert all(np.isfinite(item.distances["lpips-tiny"]) for item in shown)


def test_descent_brings_an_image_nearer(bundled: dict[str, np.ndarray], tiny: rl.Lpips) -> None:
    goal = jnp.asarray(bundled["coffee"][64:128, 64:128], jnp.float32) / 255
    start = jnp.full_like(goal, 0.5)
    image = descended.descend(start, goal, tiny, steps=20)
    assert float(rl.distance(image, goal, tiny)) < 0.5 * float(rl.distance(start, goal, tiny))
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1


@pytest.mark.slow
def test_the_attack_stays_within_its_radii(bundled: dict[str, np.ndarray], tiny: rl.Lpips) -> None:
    original = bundled["astronaut"][96:160, 96:160]
    good, bad = (fooled.jpeg(original, quality) for quality in (fooled.GOOD, fooled.BAD))
    found = fooled.attack(tiny, original, good, bad, steps=6)
    assert found.good < found.bad
    changes = np.abs(found.pictures.astype(int) - good).max(axis=(1, 2, 3))
    assert (changes <= fooled.LEVELS).all()
    assert changes[-1] > 1
    for level in fooled.LEVELS:
        assert found.at(level) == pytest.approx(float(rl.distance(original, found.picture(level), tiny)), rel=1e-4)
        assert found.at(level) > found.good


def test_photographs_that_are_learnt_from_are_not_those_that_are_judged() -> None:
    found = trained.parts(list("abcde"))
    assert found == {"learnt": ["a", "c", "d"], "held-out": ["b", "e"]}
    assert trained.parts(["a"]) == {"learnt": ["a"], "held-out": ["a"]}


@pytest.mark.slow
def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "demo"
    assert demo.Demo(out=out, effort=LITTLE).run() == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(out / "report.html"))
    for name in ("contact_sheet.png", "attacked.png", "descent.png", "heat_map.png"):
        assert str(out / name) in printed
        assert rl.load_image(out / name).std() > 20
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("A change nobody sees", "A minute of training", "From noise", "A certificate", "Where to go next"):
        assert f"<h2>{title}</h2>" in page
    # The numbers of the page are those of the pictures beside it.
    metric = rl.load("lpips-tiny")
    original = rl.load_image(out / "photographs" / "astronaut.png")
    attacked = rl.load_image(out / "copies" / "good-attacked-lpips-tiny.png")
    assert f"lpips-tiny {float(rl.distance(original, attacked, metric)):.3f}" in page
    assert rl.load(out / "trained-here.safetensors").signature in page


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--images", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        demo.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

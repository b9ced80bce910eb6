"""The demonstration: that it runs offline, and that what it claims is what it measures."""

import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.cli import demo


@pytest.fixture(scope="module")
def tiny() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def bundled() -> dict[str, np.ndarray]:
    return demo.photographs(None)


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
    pictures = demo.photographs(tmp_path)
    assert list(pictures) == [f"{number}.png" for number in range(8)]
    assert [int(picture.mean()) for picture in pictures.values()] == [51, 10, 20, 30, 40, 50, 60, 70]
    assert {picture.shape for picture in pictures.values()} == {(256, 256, 3)}


def test_the_middle_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (picture,) = demo.photographs(tmp_path).values()
    assert (picture == 200).all()


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(rl.ImageFileError, match="no images"):
        demo.photographs(tmp_path)


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find_spec(name))
    with pytest.raises(rl.ImageFileError, match="--images"):
        demo.photographs(None)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_pixel_error_and_distance_contradict_each_other(
    bundled: dict[str, np.ndarray], tiny: rl.Lpips, name: str
) -> None:
    shown = demo._sorted_by_distance(bundled[name], {"lpips-tiny": tiny})
    assert [item.distances["lpips-tiny"] for item in shown] == sorted(item.distances["lpips-tiny"] for item in shown)
    mild, harsh = shown[: len(demo.MILD)], shown[len(demo.MILD) :]
    assert {item.kind for item in mild} == set(demo.MILD)
    assert min(item.pixel_error for item in mild) > 1.3 * max(item.pixel_error for item in harsh)
    for item in shown:
        difference = bundled[name].astype(float) - item.picture
        assert item.pixel_error == pytest.approx(np.sqrt(np.mean(difference**2)) / 255)


def test_a_photograph_without_content_breaks_nothing(tiny: rl.Lpips) -> None:
    flat = np.full((64, 64, 3), 100, np.uint8)
    shown = demo._sorted_by_distance(flat, {"lpips-tiny": tiny})
    assert all(np.isfinite(item.distances["lpips-tiny"]) for item in shown)


def test_descent_brings_an_image_nearer(bundled: dict[str, np.ndarray], tiny: rl.Lpips) -> None:
    goal = jnp.asarray(bundled["coffee"][64:128, 64:128], jnp.float32) / 255
    start = jnp.full_like(goal, 0.5)
    image = demo.descend(start, goal, tiny, steps=20)
    assert float(rl.distance(image, goal, tiny)) < 0.5 * float(rl.distance(start, goal, tiny))
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1


def test_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "PHOTOGRAPHS", demo.PHOTOGRAPHS[:2])
    monkeypatch.setattr(demo, "STEPS", 2)
    out = tmp_path / "new" / "demo"
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out)])
    with pytest.raises(SystemExit) as exit_:
        demo.main()
    printed = capsys.readouterr()
    assert (exit_.value.code, printed.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["contact_sheet.png", "descent.png", "heat_map.png"]
    for path in out.iterdir():
        assert str(path) in printed.out
        assert rl.load_image(path).std() > 20
    assert "value_range=(-1, 1) would fit" in printed.out
    # Of two photographs times two mild and four harsh distortions.
    counts = dict(line.rsplit(maxsplit=1) for line in printed.out.splitlines() if line.startswith("  "))
    assert "Of 16 such pairs" in printed.out
    assert counts["  pixel error"] == "0"
    assert counts["  lpips-tiny"] == "16"


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", "--images", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        demo.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

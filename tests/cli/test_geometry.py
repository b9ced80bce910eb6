"""`rlpips average` and `rlpips geodesic`: what they write, and that they can be interrupted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.cli import interrupts
from rlpips_jax.cli.geodesic import save_frames

Command = Callable[..., tuple[int, str, str]]

QUICK = ("--metric", "lpips-tiny", "--steps", "12", "--square", "32", "--coarsest", "32")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Three smooth pictures of different sizes."""
    rng = np.random.default_rng(0)
    paths = []
    for number, shape in enumerate([(40, 50, 3), (36, 36, 3), (48, 40, 3)]):
        drawn = rng.uniform(-0.5, 0.5, shape).cumsum(axis=0).cumsum(axis=1)
        paths.append(tmp_path / f"{number}.png")
        rl.save_image(paths[-1], ((drawn - drawn.min()) / np.ptp(drawn)).astype(np.float32))
    return paths


def test_average_writes_pictures_and_numbers(command: Command, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, printed, _ = command("average", *pictures, "--out", out, *QUICK)
    assert status == 0
    assert sorted(path.name for path in out.iterdir()) == ["average.png", "result.json", "sheet.png"]
    assert rl.load_image(out / "average.png").shape == (32, 32, 3)
    document = json.loads((out / "result.json").read_text())
    assert [entry["image"] for entry in document["distances"]] == [str(path) for path in pictures]
    squares = {name: sum(entry[name] ** 2 for entry in document["distances"]) for name in ("average", "mean")}
    assert squares["average"] < squares["mean"]
    assert f"sum of distances to the power of 2, average: {squares['average']:.6f}"[:-1] in printed


@pytest.mark.slow
def test_average_never_ends_worse_than_it_began(command: Command, pictures: list[Path], tmp_path: Path) -> None:
    # Steps that are far too long.
    status, _, _ = command("average", *pictures[:2], "--out", tmp_path, *QUICK, "--begin", 0, "--pace", 1, "--steps", 2)
    document = json.loads((tmp_path / "result.json").read_text())
    squares = {name: sum(entry[name] ** 2 for entry in document["distances"]) for name in ("average", "mean")}
    assert status == 0
    assert squares["average"] <= squares["mean"]


def test_the_published_schedule_can_be_asked_for(command: Command, pictures: list[Path], tmp_path: Path) -> None:
    found = []
    for number, options in enumerate([(), ("--begin", 2000, "--pace", 50), ("--begin", 0, "--pace", 1)]):
        out = tmp_path / str(number)
        assert command("average", *pictures[:2], "--out", out, *QUICK, *options)[0] == 0
        found.append(rl.load_image(out / "average.png"))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.any(found[0] != found[2])


@pytest.mark.slow
def test_geodesic_goes_on_after_ctrl_c(
    command: Command, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def run(out: Path) -> tuple[int, str, str]:
        return command("geodesic", pictures[0], pictures[1], "--frames", "4", "--out", out, *QUICK)

    with monkeypatch.context() as patched:
        patched.setattr(interrupts, "check", interrupt)
        status, _, complaint = run(tmp_path / "stopped")
    assert status == 130
    assert "the same command goes on from" in complaint
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["snapshot.npz"]
    other = command("average", *pictures[:2], "--out", tmp_path / "stopped", *QUICK)
    assert other[0] == 2
    assert 'what is "geodesic" there and "average" here' in other[2]
    for out in (tmp_path / "stopped", tmp_path / "whole"):
        assert run(out)[0] == 0
        names = sorted(path.name for path in out.iterdir())
        assert names == ["frames", "path.gif", "path.png", "result.json", "strip.png"]
    results: list[Any] = [(tmp_path / name / "result.json").read_text() for name in ("stopped", "whole")]
    assert results[0] == results[1]
    frames = [rl.load_image(path) for path in sorted((tmp_path / "whole" / "frames").iterdir())]
    assert len(frames) == 4
    # There and back; PNG keeps every value.
    for name in ("path.gif", "path.png"):
        with Image.open(tmp_path / "whole" / name) as animation:
            assert getattr(animation, "n_frames", 1) == 6
            if name == "path.png":
                animation.seek(4)
                np.testing.assert_array_equal(np.asarray(animation.convert("RGB")), frames[2])


def test_frames_of_a_longer_path_do_not_stay(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    save_frames(tmp_path, frames)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02}.png" for number in range(11)]
    (tmp_path / "mine.png").write_text("")
    save_frames(tmp_path, frames[5:8])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png", "mine.png"]
    np.testing.assert_array_equal(rl.load_image(tmp_path / "2.png"), frames[7])


def test_errors_name_what_was_wrong(command: Command, pictures: list[Path], tmp_path: Path) -> None:
    for arguments, words in (
        (("average", pictures[0]), "an average needs two pictures or more, got 1"),
        (("average", *pictures), "images differ in size"),
        (("geodesic", *pictures[:2], "--square", "32", "--frames", "2"), "frames must be a whole number, 3 or more"),
        (("geodesic", *pictures[:2], "--square", "0"), "--square must be 1 or more pixels, got 0"),
        (("geodesic", *pictures[:2], "--square", "32", "--steps", "0"), "steps must be a whole number"),
    ):
        status, _, complaint = command(*arguments, "--metric", "lpips-tiny", "--out", tmp_path / "out")
        assert status == 2
        assert words in complaint


def test_animations_are_checked(tmp_path: Path) -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(rl.ImageFileError, match=r"must end in one of \.gif, \.png"):
        rl.save_animation(tmp_path / "a.jpg", frames)
    with pytest.raises(rl.ImageError, match="at least one frame"):
        rl.save_animation(tmp_path / "a.gif", frames[:0])
    with pytest.raises(rl.ImageError, match=r"one per frame \(2 frames\)"):
        rl.save_animation(tmp_path / "a.gif", frames, seconds=[0.1])
    assert not list(tmp_path.iterdir())

"""Convexity along segments, where it is known, and the whole measurement, small."""

from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import convexity
from benchmarks.convexity import Convexity, breaks, interval


def test_breaks_are_measured() -> None:
    t = np.linspace(0, 1, 9)
    values = np.stack([(t - 0.3) ** 2 + 0.1, 1 + t, np.sqrt(t), 1 - np.square(2 * t - 1), 1 + 0 * t])
    found = breaks(values)
    bowl, line, root, hill, flat = range(5)
    assert np.all(found.convexity[[bowl, line, flat]] < 1e-12)
    assert np.all(found.quasi_convexity[[bowl, line, root, flat]] < 1e-12)
    # sqrt(t) is farthest above the chord from 0 to 1 at t = 1/4, a hill of height 1 above both of its feet at 1/2.
    assert found.convexity[root] == pytest.approx(0.25)
    assert found.convexity[hill] == pytest.approx(1)
    assert found.quasi_convexity[hill] == pytest.approx(1)


def test_pixel_l2_is_convex_and_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        drawn = rng.uniform(-0.5, 0.5, (40, 48, 3)).cumsum(axis=0).cumsum(axis=1)
        rl.save_image(tmp_path / f"{number}.png", ((drawn - drawn.min()) / np.ptp(drawn)).astype(np.float32))
    out = tmp_path / "out"
    config = Convexity(tmp_path, out, ("lpips-tiny",), size=32, count=2, segments=2, points=5, batch=3)
    convexity.main(config)
    assert sorted(path.name for path in out.iterdir()) == ["convexity.json", "convexity.md", "convexity.png"]
    lines = (out / "convexity.md").read_text().splitlines()
    assert "| pixel L2 | 4 | 0.000 (0.000 to 0.490) | - | 0.000 (0.000 to 0.490) | - |" in lines
    assert any(line.startswith("| lpips-tiny | 4 |") for line in lines)
    assert min(rl.load_image(out / "convexity.png").shape[:2]) > 300
    assert "lpips-tiny" in capsys.readouterr().out


def test_segments_are_shared_by_all_points() -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    references, starts, ends = convexity.segments(photographs, 3, 0)
    assert references.shape == starts.shape == ends.shape == (6, 32, 32, 3)
    seen = []

    def measure(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.append((x, y))
        return np.ones(len(x))

    assert convexity.profiles(measure, references, starts, ends, 3, 4).shape == (6, 3)
    assert {len(x) for x, _ in seen} == {4}
    np.testing.assert_allclose(seen[0][1], starts[:4] / 255, atol=1e-6)
    np.testing.assert_allclose(seen[-1][1][:2], ends[4:] / 255, atol=1e-6)


def test_weight_files_are_told_apart() -> None:
    assert convexity.short("runs/lin/rlpips-alex.safetensors") == "lin/rlpips-alex"
    assert convexity.short("lpips-alex") == "lpips-alex"


def test_intervals_hold_the_share() -> None:
    low, high = interval(0.5, 100)
    assert low == pytest.approx(0.4038, abs=1e-3)
    assert high == pytest.approx(0.5962, abs=1e-3)
    assert interval(0.0, 10)[0] == pytest.approx(0)

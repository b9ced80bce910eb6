"""Convexity along segments, where it is known, and the whole measurement, small."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import convexity
from benchmarks.convexity import Breaks, Convexity, breaks, interval
from rlpips_jax.backbones import Convolution, Pooling, Sequential
from rlpips_jax.ensemble import Ensemble


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


def test_what_has_no_largest_distance_is_not_whole() -> None:
    line = np.linspace(0.1, 1, 5)
    infinite, lost = line.copy(), line.copy()
    infinite[1], lost[2] = np.inf, np.nan
    found = breaks(np.stack([line, 0 * line, lost, infinite]))
    for part in found:
        np.testing.assert_array_equal(np.isnan(part), [False, True, True, True])
    photographs = np.array([0, 0, 1, 1])
    (row,) = convexity.table({"some": found}, photographs, 1e-3).rows
    assert row[1] == "1 of 4"
    assert convexity.table({"none": Breaks(found.convexity[1:], found.convexity[1:])}, photographs[1:], 1e-3).rows == [
        ("none", "0 of 3", "-", "-", "-", "-")
    ]
    # JSON has no word for them.
    assert convexity.numbers(found.convexity) == [0, None, None, None]


def test_pixel_l2_is_convex_and_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        drawn = rng.uniform(-0.5, 0.5, (40, 48, 3)).cumsum(axis=0).cumsum(axis=1)
        rl.save_image(tmp_path / f"{number}.png", ((drawn - drawn.min()) / np.ptp(drawn)).astype(np.float32))
    out = tmp_path / "out"
    config = Convexity(tmp_path, out, None, ("lpips-tiny",), size=32, count=2, segments=2, points=5, batch=3)
    convexity.main(config)
    assert sorted(path.name for path in out.iterdir()) == ["convexity.json", "convexity.md"]
    lines = (out / "convexity.md").read_text().splitlines()
    # Two photographs say little, however many segments they have.
    assert "| pixel L2 | 4 | 0.000 (0.000 to 0.658) | - | 0.000 (0.000 to 0.658) | - |" in lines
    assert any(line.startswith("| lpips-tiny | 4 |") for line in lines)
    document = json.loads((out / "convexity.json").read_text())
    assert document["photographs"] == [0, 0, 1, 1]
    assert np.shape(document["distances"]["lpips-tiny"]) == (4, 5)
    assert "lpips-tiny" in capsys.readouterr().out


def test_segments_are_shared_by_all_points() -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    lines = convexity.segments(photographs, 3, 0)
    assert lines.references.shape == lines.starts.shape == lines.ends.shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(lines.photographs, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(lines.references, photographs[lines.photographs])
    seen = []

    def measure(x: np.ndarray, y: np.ndarray, number: int) -> np.ndarray:
        seen.append((x, y, number))
        return np.ones(len(x))

    assert convexity.profiles(measure, lines, 3, 4).shape == (6, 3)
    assert {len(x) for x, _, _ in seen} == {4}
    assert [number for _, _, number in seen] == [0, 4] * 3
    np.testing.assert_allclose(seen[0][1], lines.starts[:4] / 255, atol=1e-6)
    np.testing.assert_allclose(seen[-1][1][:2], lines.ends[4:] / 255, atol=1e-6)


def test_an_ensemble_sees_all_points_of_a_segment_alike(drawn: Callable[..., Any]) -> None:
    """Of a segment that does not move all distances are the same number, and of equal segments they differ."""
    ensemble = Ensemble(drawn(Sequential("one", (Convolution(0, 4, 3),), Pooling("max", 2, 2), tapped=(0,))))
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 256, (1, 16, 16, 3), np.uint8).repeat(4, axis=0) for _ in range(2))
    lines = convexity.Segments(x, y, y, np.arange(4))
    measure = convexity.of_metric(ensemble, jax.random.key(0), 2)
    values = convexity.profiles(measure, lines, 4, 2)
    np.testing.assert_allclose(values, values[:, :1].repeat(4, axis=1), rtol=1e-5)
    assert len(np.unique(values[:, 0])) == 4


def test_shares_and_an_example_are_drawn() -> None:
    photographs = np.arange(8).repeat(2)
    t = np.linspace(0, 1, 5)
    values = {
        "bowl": np.tile((t - 0.5) ** 2 + 0.1, (16, 1)),
        "hill": np.where((np.arange(16) < 4)[:, None], 1.5 - (t - 0.5) ** 2, 1 + t),
        "nothing": np.zeros((16, 5)),
    }
    found = {name: breaks(each) for name, each in values.items()}
    picture = convexity.plot(found, values, photographs, 1e-3)
    assert min(picture.shape[:2]) > 300
    for red, green, blue in ((0x71, 0x71, 0x7A), (0xC2, 0x41, 0x0C)):
        assert np.any(np.all(picture == (red, green, blue), axis=-1))


def test_weight_files_are_told_apart() -> None:
    assert convexity.short("runs/lin/rlpips-alex.safetensors") == "lin/rlpips-alex"
    assert convexity.short("lpips-alex") == "lpips-alex"
    assert convexity.short("ensemble:lpips-alex") == "ensemble:lpips-alex"
    assert convexity.short("ensemble:runs/lin/rlpips-alex.safetensors") == "ensemble:lin/rlpips-alex"


def test_intervals_are_of_photographs_not_of_their_segments() -> None:
    """Segments that repeat each other do not make an interval narrower."""
    broken = np.array([True, False] * 10)
    once = interval(broken, np.arange(20))
    np.testing.assert_allclose(once, (0.3, 0.7), atol=0.06)
    assert interval(broken.repeat(5), np.arange(20).repeat(5)) == once
    alone = interval(broken.repeat(5), np.arange(100))
    assert alone[1] - alone[0] < 0.6 * (once[1] - once[0])
    none = interval(np.zeros(120, bool), np.arange(24).repeat(5))
    np.testing.assert_allclose(none, (0, 0.138), atol=1e-3)
    np.testing.assert_allclose(interval(np.ones(120, bool), np.arange(24).repeat(5)), (1 - none[1], 1))


def test_the_documented_command_makes_the_documented_table() -> None:
    """120 segments of 24 photographs at 64x64, of 11 points."""
    config = Convexity(Path())
    assert (config.count, config.count * config.segments, config.size, config.points) == (24, 120, 64, 11)
    assert config.margin == 1e-3
    text = (Path(convexity.__file__).parent.parent / "docs" / "geometry.md").read_text()
    _, section = text.split("## Convexity\n")
    rows = [line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| ")]
    assert {"lpips-alex", "rlpips-alex"} <= set(rows) - {"metric", convexity.PIXELS} <= set(config.metrics)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(rl.RlpipsError, match="--points must be 3 or more"):
        convexity.main(Convexity(Path(), points=2))

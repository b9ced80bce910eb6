"""The surface of an attack's loss holds the ranking in its middle and rises along the gradient."""

from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import loss_surface
from benchmarks.loss_surface import LossSurface, smoothness, surface


def signs(rng: np.random.Generator) -> np.ndarray:
    return (2 * rng.integers(2, size=(32, 32, 3)) - 1).astype(np.float32)


def test_the_middle_of_the_surface_is_the_ranking_as_it_is() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.1, 0.9, (32, 32, 3)).astype(np.float32)
    closer, farther = (reference + scale * signs(rng) for scale in (0.02, 0.05))
    metric = rl.load("lpips-tiny")
    direction = signs(rng)
    values = np.asarray(surface(metric, (reference, closer, farther), direction, 5))
    ratio = rl.distance(reference, closer, metric) / rl.distance(reference, farther, metric)
    assert values.shape == (5, 5)
    assert values[2, 2] == pytest.approx(np.log(ratio), abs=1e-4)
    assert values[3, 2] > values[2, 2]
    assert smoothness(values) == 1
    assert smoothness(-values) < 1


@pytest.mark.slow
def test_every_metric_and_photograph_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rl.save_image(tmp_path / "in" / "a.png", np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8))
    metrics = ("lpips-tiny", "rlpips-tiny")
    loss_surface.main(
        LossSurface(picture=tmp_path / "out" / "s.png", metrics=metrics, images=tmp_path / "in", points=3)
    )
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == list(metrics)
    assert np.ptp(rl.load_image(tmp_path / "out" / "s.png")) > 200

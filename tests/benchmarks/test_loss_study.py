"""One decoder under several losses, small, and the measure of grids."""

from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import loss_study
from benchmarks.loss_study import Study, grid


def test_a_grid_is_energy_at_its_period() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (6, 64, 64, 3)).astype(np.uint8)
    noisy = images + rng.integers(-8, 9, images.shape)
    assert grid(noisy.astype(np.uint8), images) == pytest.approx(1, abs=0.1)
    for period in (2, 4):
        pattern = noisy.copy()
        pattern[:, ::period] += 4
        assert grid(pattern.astype(np.uint8), images) > 1.5
        np.testing.assert_allclose(
            grid(pattern.transpose(0, 2, 1, 3).astype(np.uint8), images.transpose(0, 2, 1, 3)),
            grid(pattern.astype(np.uint8), images),
        )
    odd = noisy.copy()
    odd[:, ::3] += 4
    assert grid(odd.astype(np.uint8), images) == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_losses_are_trained_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        rl.save_image(tmp_path / "photographs" / f"{number}.png", rng.integers(0, 256, (80, 80, 3)).astype(np.uint8))
    config = Study(
        photographs=tmp_path / "photographs",
        validation=tmp_path / "photographs",
        out=tmp_path / "out",
        pictures=tmp_path / "photographs",
        losses=("l2", "rlpips-tiny", "elpips-tiny", "rlpips-tiny+l2"),
        size=32,
        steps=2,
        batch=2,
        count=4,
        shown=2,
    )
    loss_study.main(config)
    table = (config.out / "table.txt").read_text()
    assert [line.split()[0] for line in table.splitlines() if line.split()[0] in config.losses] == list(config.losses)
    assert np.ptp(rl.load_image(config.out / "sheet.png")) > 200
    monkeypatch.setattr(loss_study, "trained", None)  # What is done is not trained again.
    loss_study.main(config)
    assert (config.out / "table.txt").read_text() == table

"""What is measured of ensembles runs, on pictures and a network that are drawn."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import ensemble
from benchmarks.ensemble import Ensembles
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import ESTIMATORS, Ensemble
from tests.ensemble.test_ensemble import SINGLE


@pytest.fixture
def config(drawn: Callable[..., Lpips], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ensembles:
    monkeypatch.setattr(ensemble, "load", lambda _: Ensemble(drawn(SINGLE)))
    return Ensembles(shared=tmp_path, side=36, photographs=2, samples=8, replicates=3, repeats=2)


@pytest.mark.slow
def test_variance(config: Ensembles) -> None:
    rows = ensemble.variance(config).rows
    assert tuple(row[0] for row in rows) == ESTIMATORS
    assert rows[0][2] == "1.00"


def test_comparison(config: Ensembles) -> None:
    rows = ensemble.comparison(config).rows
    assert [row[:3] for row in rows] == [(pair, draws, "64") for pair in "01" for draws in ("plain", "stratified")]
    assert all(float(row[-1]) > 1 for row in rows)


@pytest.mark.slow
def test_cost_and_compilation(config: Ensembles) -> None:
    assert [row[0] for row in ensemble.cost(config).rows] == ["distance", "with gradient by y"]
    assert [row[0] for row in ensemble.compilation(config).rows] == ["1", "8"]

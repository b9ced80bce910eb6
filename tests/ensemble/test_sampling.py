"""What an ensemble draws by: no estimator has a bias, and stratification is worth its while."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import Ensemble, transformations
from rlpips_jax.ensemble import sampling as estimators
from tests.ensemble.test_ensemble import FEW, SINGLE, pairs


@functools.partial(jax.jit, static_argnums=(4, 5))
def replicates(ensemble: Ensemble, x: jax.Array, y: jax.Array, key: jax.Array, count: int, samples: int) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return rl.distance(x, y, ensemble, key=key, samples=samples)

    return jax.lax.map(one, jax.random.split(key, count))


@pytest.mark.slow
def test_estimators_are_unbiased_and_stratification_helps(
    drawn: Callable[..., Lpips], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two scale levels at a ninth of the pixels that they take.
    monkeypatch.setattr(transformations, "PIXELS_A_LEVEL", FEW // 2)
    # Without dropout, which all draw alike.
    ensemble = Ensemble(drawn(SINGLE), keep=1.0)
    x, y = (each[:, :FEW, :FEW] for each in pairs(2))
    found = {
        name: np.asarray(replicates(replace(ensemble, estimator=name), x, y, jax.random.key(place), 63, 32), np.float64)
        for place, name in enumerate(estimators.ESTIMATORS)
    }
    assert estimators.allocation(32, FEW, FEW) == (26, 6)
    # And levels drawn, where samples are few.
    found["few"] = np.asarray(replicates(ensemble, x, y, jax.random.key(5), 500, 2), np.float64)
    assert estimators.allocation(2, FEW, FEW) is None
    errors = {name: values.std(0, ddof=1) / np.sqrt(len(values)) for name, values in found.items()}
    for name in ("published", "stratified", "few"):
        difference = found[name].mean(0) - found["plain"].mean(0)
        assert np.all(np.abs(difference) < 3 * np.hypot(errors[name], errors["plain"])), name
    assert np.mean(errors["stratified"] ** 2) < 0.7 * np.mean(errors["plain"] ** 2)

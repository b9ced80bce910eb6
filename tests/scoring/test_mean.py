"""A mean kept batch by batch is that of all values, on one device and on several."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rlpips_jax as rl
from rlpips_jax.scoring import Mean, filled

VALUES = np.random.default_rng(0).normal(0.4, 0.02, (8, 5)).astype(np.float32)


def assert_is_of(mean: Mean, values: np.ndarray) -> None:
    """Compared with the formulas, in float64."""
    result = mean.compute()
    exact = values.astype(np.float64).ravel()
    assert result.count == exact.size
    np.testing.assert_allclose(result.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.standard_error, exact.std(ddof=1) / np.sqrt(exact.size), rtol=1e-5)


def test_it_is_the_mean_of_all_batches() -> None:
    update = jax.jit(Mean.update)
    assert_is_of(functools.reduce(update, VALUES, Mean()), VALUES)
    halves = [functools.reduce(update, half, Mean()) for half in (VALUES[:3], VALUES[3:])]
    assert_is_of(halves[0].merge(halves[1]), VALUES)


def test_what_is_masked_does_not_count_not_even_nan() -> None:
    mask = np.arange(VALUES.size).reshape(VALUES.shape) % 3 != 0
    spoilt = jnp.asarray(np.where(mask, VALUES, np.nan))
    assert_is_of(Mean().update(spoilt, mask).update(spoilt, np.zeros_like(mask)), VALUES[mask])
    with pytest.raises(rl.MetricError, match=r"shape of the distances, \(8, 5\), got \(8,\)"):
        Mean().update(spoilt, mask[:, 0])


def test_too_few_values_have_no_error() -> None:
    nothing, one = Mean().compute(), Mean().update(jnp.array([0.5])).compute()
    assert (nothing.count, one.count) == (0, 1)
    assert np.isnan([nothing.mean, nothing.standard_error, one.standard_error]).all()
    assert one.mean == 0.5


def across(values: Any) -> Mean:
    return Mean().update(values).across("devices")


@pytest.mark.parametrize("how", ["pmap", "shard_map", "jit"])
def test_devices_agree_on_the_mean_of_all(how: str) -> None:
    mesh = jax.make_mesh((8,), ("devices",))
    over = PartitionSpec("devices")
    placed = jax.device_put(VALUES, NamedSharding(mesh, over))
    if how == "pmap":
        found = jax.pmap(across, axis_name="devices")(VALUES)
        assert np.ptp(found.mean) == 0
        found = jax.tree.map(lambda leaf: leaf[0], found)
    elif how == "shard_map":
        mapped = jax.jit(jax.shard_map(across, mesh=mesh, in_specs=over, out_specs=PartitionSpec()))
        program = mapped.lower(placed).compile().as_text()
        assert program is not None
        assert program.count(" all-reduce(") == 1
        found = mapped(placed)
    else:
        found = jax.jit(Mean.update)(Mean(), placed)
    assert_is_of(found, VALUES)


def test_a_ragged_batch_runs_in_the_program_of_the_others(compilations: list[str]) -> None:
    step = jax.jit(lambda mean, batch, mask: mean.update(batch["x"].mean(axis=1), mask))
    mean = Mean()
    for batch in (VALUES[:3], VALUES[3:6], VALUES[6:]):
        mean = step(mean, *filled({"x": batch}, 3))
    assert len(compilations) == 1
    assert_is_of(mean, VALUES.mean(axis=1))


@pytest.mark.parametrize("lengths", [(4,), (0,), (1, 2)])
def test_a_batch_that_does_not_fit_is_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(rl.MetricError, match=r"one length from 1 to 3, got \["):
        filled([np.zeros((length, 2)) for length in lengths], 3)

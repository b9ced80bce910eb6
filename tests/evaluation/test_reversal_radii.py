"""Radii of reversal: order statistics, which triplets count, and the smallest of several sides."""

import functools

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import minimum
from rlpips_jax.evaluation import Radii, Triplets, reversal_radii, summarise
from rlpips_jax.evaluation.measurement import Distances


def test_quartiles_are_those_of_all_and_shares_those_of_the_correct() -> None:
    n = 40
    radius = np.arange(n, dtype=np.float32)
    radius[-10:] = np.inf
    radius[0] = 0
    natural = Distances(np.full(n, 0.1, np.float32), np.full(n, 0.2, np.float32))
    natural.d0[0] = 0.3
    summary = summarise(Radii(radius, radius / 10), natural, np.zeros(n, np.float32))
    assert [score.mean for score in summary.radius] == [9, 19, 29]
    assert summary.reversed.count == n - 1
    assert summary.reversed.mean == pytest.approx(29 / 39)
    assert summary.rms.mean == pytest.approx(np.arange(1, 30).mean() / 10)
    for score in summary.radius:
        assert score.low < score.mean < score.high
    assert summary.radius[2].high == np.inf


@pytest.mark.slow
def test_intervals_of_medians_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        drawn = rng.exponential(size=25).astype(np.float32)
        natural = Distances(np.zeros(25, np.float32), np.ones(25, np.float32))
        median = summarise(Radii(drawn, drawn), natural, np.zeros(25, np.float32)).radius[1]
        held.append(median.low <= np.log(2) <= median.high)
    assert np.mean(held) >= 0.93


@pytest.mark.slow
def test_the_smallest_side_counts_and_parts_do_not() -> None:
    rng = np.random.default_rng(1)
    reference = rng.integers(60, 200, (5, 32, 32, 3), dtype=np.uint8)
    noisy = [np.clip(reference + rng.normal(0, amount, reference.shape), 0, 255).astype(np.uint8) for amount in (8, 12)]
    triplets = Triplets(reference, noisy[0], noisy[1], np.zeros(5, np.float32), ("noise",) * 5)
    attack = functools.partial(minimum, steps=8)
    key = jax.random.key(0)

    def radii(attacked: str | tuple[str, ...], start: int = 0) -> np.ndarray:
        parts = reversal_radii(
            rl.load("lpips-tiny"), triplets, attack, attacked=attacked, key=key, batch=3, start=start
        )
        return np.concatenate([part.radius for part in parts])

    closer, farther, either = radii("closer"), radii("farther"), radii(("closer", "farther"))
    assert np.all(np.isfinite(closer))
    np.testing.assert_allclose(either, np.minimum(closer, farther), rtol=1e-4)
    np.testing.assert_array_equal(radii("closer", start=3), closer[3:])

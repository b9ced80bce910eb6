"""Median smoothing: the interval of a distance that is linear under noise is known exactly."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom

from rlpips_jax.errors import CertificateError
from rlpips_jax.evaluation import Smoothing, certify_distance
from rlpips_jax.evaluation.certify_distance import order_statistic

SHAPE = (4, 5, 3)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mean:
    """10 plus the difference of the images' sums over the root of their number: N(10 + m, sigma^2) under noise."""

    name: str = "mean"
    signature: str = "mean"
    minimum_size: int = 1

    def features(self, images, *, value_range=(0, 1)):
        return jnp.sum(images, axis=(-3, -2, -1)) / np.sqrt(np.prod(SHAPE))

    def between(self, features, others):
        return 10 + features - others


def certified(smoothing: Smoothing):
    x = jnp.full((2, *SHAPE), 0.5)
    radii = [0.0, 0.1, 0.2]
    return certify_distance(Mean(), x, x, smoothing, radii=radii, key=jax.random.key(0))


def test_the_interval_contains_what_a_change_can_do_and_is_close_to_it():
    smoothing = Smoothing(sigma=0.2, samples=20_000, max_batch=4_000)
    proof = certified(smoothing)
    np.testing.assert_allclose(proof.median, 10, atol=0.01)
    # A change of norm r moves the median by at most r, and some change moves it by r.
    assert np.all(proof.low <= 10 - proof.radii)
    assert np.all(proof.high >= 10 + proof.radii)
    np.testing.assert_allclose(proof.low, np.broadcast_to(10 - proof.radii, (2, 3)), atol=0.02)
    np.testing.assert_allclose(proof.high, np.broadcast_to(10 + proof.radii, (2, 3)), atol=0.02)


def test_too_few_draws_prove_nothing():
    proof = certified(Smoothing(sigma=0.02, samples=50))
    assert np.all(proof.low[:, 2] == 0)
    assert np.all(np.isinf(proof.high[:, 2]))
    assert np.all(np.isfinite(proof.high[:, 0]))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
def test_order_statistics_are_the_smallest_that_are_sure(p):
    samples, alpha = 500, 0.01
    place = order_statistic(p, samples, alpha)
    # The k-th draw lies below the quantile if k draws or more do.
    assert binom.sf(place - 1, samples, p) <= alpha
    assert binom.sf(place - 2, samples, p) > alpha


def test_bounds_are_wrong_at_most_as_often_as_alpha_allows():
    alpha, p, samples, runs = 0.1, 0.8, 200, 2_000
    draws = np.sort(np.random.default_rng(0).standard_normal((runs, samples)), axis=1)
    wrong = np.mean(draws[:, order_statistic(p, samples, alpha) - 1] < ndtri(p))
    assert 0.05 < wrong < alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_what_makes_no_sense_is_refused():
    x = jnp.full((1, *SHAPE), 0.5)
    smoothing = Smoothing(sigma=0.1)
    with pytest.raises(CertificateError, match="radii must be a list of numbers"):
        certify_distance(Mean(), x, x, smoothing, radii=[-1], key=jax.random.key(0))

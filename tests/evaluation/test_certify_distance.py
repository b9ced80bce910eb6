"""Median smoothing: the interval of a distance that is linear under noise is known exactly."""

from dataclasses import dataclass
from typing import Any

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

    name, signature, minimum_size = "mean", "mean 1", 1

    def features(self, images, *, value_range=(0, 1)):
        return jnp.sum(images, axis=(-3, -2, -1)) / np.sqrt(np.prod(SHAPE))

    def between(self, features, others):
        return 10 + features - others


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shifted(Mean):
    """The same, plus a number."""

    shift: jax.Array

    def between(self, features, others):
        return super().between(features, others) + self.shift


@jax.tree_util.register_static
@dataclass(frozen=True)
class Unsteady:
    """The mean over draws of a number from N(0, 1) more: a randomised metric."""

    name, signature, minimum_size = "unsteady", "unsteady 1", 1

    def distance(self, x, y, *, value_range, key, samples):
        raise NotImplementedError

    def under(self, key, *, samples=None):
        raise NotImplementedError

    def expectation(self, function, arguments, *, key, samples):
        metric = Shifted(shift=jnp.mean(jax.random.normal(key, (samples,))))
        return function(metric, metric.features, arguments)


def certified(smoothing: Smoothing, metric: Any = Mean(), **options: Any):
    x = jnp.full((2, *SHAPE), 0.5)
    radii = [0.0, 0.1, 0.2]
    return certify_distance(metric, x, x, smoothing, radii=radii, key=jax.random.key(0), **options)


def test_the_interval_contains_what_a_change_can_do_and_is_close_to_it():
    smoothing = Smoothing(sigma=0.2, samples=20_000, max_batch=4_000)
    proof = certified(smoothing)
    np.testing.assert_allclose(proof.median, 10, atol=0.01)
    # A change of norm r moves the median by at most r, and some change moves it by r.
    assert np.all(proof.low <= 10 - proof.radii)
    assert np.all(proof.high >= 10 + proof.radii)
    np.testing.assert_allclose(proof.low, np.broadcast_to(10 - proof.radii, (2, 3)), atol=0.02)
    np.testing.assert_allclose(proof.high, np.broadcast_to(10 + proof.radii, (2, 3)), atol=0.02)


def test_the_interval_of_a_randomised_metric_is_over_its_draws_too():
    sigma, draws = 0.2, 25
    proof = certified(Smoothing(sigma=sigma, samples=20_000, max_batch=4_000), Unsteady(), draws=draws)
    # The quantiles of N(10, sigma^2 + 1 / draws).
    wider = proof.radii * np.sqrt(1 + 1 / draws / sigma**2)
    assert np.all(proof.low <= 10 - wider)
    assert np.all(proof.high >= 10 + wider)
    np.testing.assert_allclose(proof.low, np.broadcast_to(10 - wider, (2, 3)), atol=0.03)
    np.testing.assert_allclose(proof.high, np.broadcast_to(10 + wider, (2, 3)), atol=0.03)


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

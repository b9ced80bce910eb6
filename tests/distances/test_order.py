"""Of a metric that is not symmetric the first image is the reference, whoever calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.attacks.expectations import ADAPTIVE, measured_distances
from rlpips_jax.attacks.objectives import ATTACKED, attacked_images
from rlpips_jax.attacks.semantic import semantic_similarity
from rlpips_jax.geometry import Descent
from rlpips_jax.images import to_unit

KEY = jax.random.key(0)
REFERENCE, CLOSER, FARTHER = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4, 8, 8, 3)), jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FromReference:
    """The mean of x (x - y)^2: bright pixels of the reference count most."""

    weight: jax.Array
    name, signature, minimum_size = "from reference", "from reference 1", 1

    def features(self, images: Any, *, value_range: Any = (0.0, 1.0)) -> jax.Array:
        return to_unit(images, value_range)

    def between(self, features: jax.Array, others: jax.Array) -> jax.Array:
        return self.weight * jnp.mean(features * jnp.square(features - others), axis=(-3, -2, -1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """The same as a random metric, whose draws change nothing."""

    metric: FromReference
    name, signature, minimum_size = "drawn from reference", "drawn from reference 1", 1

    def distance(self, x: Any, y: Any, *, value_range: Any, key: Any, samples: Any) -> jax.Array:
        return rl.distance(x, y, self.metric, value_range=value_range)

    def under(self, key: Any, *, samples: Any = None) -> FromReference:
        return self.metric

    def expectation(self, function: Callable[..., Any], arguments: Any, *, key: Any, samples: int) -> Any:
        return function(self.metric, self.metric.features, arguments)


METRIC = FromReference(jnp.float32(1))
RANDOM = Drawn(METRIC)
NEAR, FAR = (np.asarray(rl.distance(REFERENCE, other, METRIC)) for other in (CLOSER, FARTHER))


def check(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_backwards_it_is_another_distance() -> None:
    assert np.all(np.abs(rl.distance(CLOSER, REFERENCE, METRIC) - NEAR) > 1e-4)


@pytest.mark.parametrize("attacked", ATTACKED)
def test_orders_of_triplets(attacked: str) -> None:
    triplet = REFERENCE, CLOSER, FARTHER
    moving: Any = attacked_images(*triplet, attacked)
    check(attacks.ranking(METRIC, *triplet, attacked=attacked)(moving), NEAR - FAR)
    expected_ranking: Any = attacks.expected_ranking(RANDOM, *triplet, attacked=attacked, key=KEY)
    check(expected_ranking(moving), NEAR - FAR)


def test_distances_from_images_that_do_not_move() -> None:
    check(attacks.distance_from(METRIC, REFERENCE)(CLOSER), NEAR)
    expected_distance: Any = attacks.expected_distance_from(RANDOM, REFERENCE, key=KEY)
    check(expected_distance(CLOSER), NEAR)
    for metric in (METRIC, RANDOM):
        options: dict[str, Any] = {"randomness": ADAPTIVE, "key": KEY, "value_range": (0, 1)}
        check(measured_distances(metric, REFERENCE, (CLOSER, FARTHER), **options), [NEAR, FAR])


def test_semantic_similarity() -> None:
    matrix = np.asarray(rl.pairwise(REFERENCE, CLOSER, METRIC))
    check(matrix.diagonal(), NEAR)
    others = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix).max(axis=0)
    check(semantic_similarity(METRIC, REFERENCE)(CLOSER), np.minimum(NEAR - others, 0))


def test_comparisons_with_one_reference() -> None:
    for metric in (METRIC, RANDOM):
        found = rl.compare(REFERENCE[0], np.stack([CLOSER[0], FARTHER[0]]), metric, key=KEY, max_samples=64)
        check(found.distances, [NEAR[0], FAR[0]])


@pytest.mark.slow
@pytest.mark.parametrize("metric", [METRIC, RANDOM], ids=["metric", "random"])
def test_averages(metric: Any) -> None:
    found = rl.geometry.average(REFERENCE, metric, key=KEY, descent=Descent(steps=1))
    average = np.broadcast_to(found.image, REFERENCE.shape)
    check(found.distances, rl.distance(REFERENCE, average, METRIC))

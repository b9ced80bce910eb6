"""Attacked references: each counts once, and the usual distance is an estimate too."""

import functools

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import distort, impostor
from rlpips_jax.evaluation.exposure import (
    Exposed,
    different_references,
    exposed,
    rise,
    spread,
    usual_difference,
    usual_distance,
)
from rlpips_jax.evaluation.measurement import Distances
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), np.uint8)
INDICES = np.array([[3, 0, 1], [2, 0, 4], [3, 4, 1]])


@pytest.fixture
def indexed() -> IndexedTriplets:
    return IndexedTriplets(IMAGES, INDICES, np.ones((3, 2), int), ("a",) * 3)


@pytest.fixture
def plain() -> Triplets:
    reference, p0, p1 = (IMAGES[INDICES[:, column]] for column in range(3))
    return Triplets(reference, p0, p1, np.zeros(3, np.float32), ("a",) * 3)


def test_a_reference_of_several_triplets_is_one(indexed: IndexedTriplets, plain: Triplets) -> None:
    for triplets in (indexed, plain):
        found = different_references(triplets)
        np.testing.assert_array_equal(found.first, [0, 1])
        np.testing.assert_array_equal(found.of_triplet, [0, 1, 0])


@pytest.mark.slow
def test_each_reference_is_attacked_once_and_parts_make_the_whole(indexed: IndexedTriplets) -> None:
    metric = rl.load("lpips-tiny")
    attack = functools.partial(distort, epsilon=4 / 255, steps=2)
    whole = list(exposed(metric, indexed, attack, batch=1))
    assert [len(part.distance) for part in whole] == [1, 1]
    (rest,) = exposed(metric, indexed, attack, batch=1, start=1)
    np.testing.assert_array_equal(rest.distance, whole[1].distance)
    assert all(0 < part.rms[0] <= 4 / 255 for part in whole)
    (both,) = exposed(metric, indexed, functools.partial(impostor, bound=0.2, steps=4), batch=2)
    assert np.all(both.distance <= 0.2)
    with pytest.raises(rl.TripletsError, match="batch must be a whole number, 1 or more, got -1"):
        next(exposed(metric, indexed, attack, batch=-1))


def test_what_is_usual(plain: Triplets) -> None:
    assert usual_distance(Distances(np.array([1.0, 2, 3]), np.array([3.0, 4, 5]))) == 3
    pairs = [(column, triplet) for triplet in INDICES for column in (1, 2)]
    apart = [
        np.linalg.norm((IMAGES[t[0]] / 255.0 - IMAGES[t[c]] / 255.0).ravel()) / np.sqrt(32 * 32 * 3) for c, t in pairs
    ]
    assert usual_difference(plain) == pytest.approx(np.mean(apart))
    found = Exposed(np.zeros(2, np.float32), np.full(2, 2 * np.mean(apart), np.float32))
    assert spread(found, plain).mean == pytest.approx(2, rel=1e-6)


@pytest.mark.slow
def test_the_interval_of_a_ratio_holds_it_as_often_as_stated() -> None:
    """Were what is usual taken for exact, four of ten would miss."""
    rng, count, held = np.random.default_rng(1), 60, 0
    images = np.zeros((2 * count, 1, 1, 3), np.uint8)
    indices = np.stack([np.arange(count), *(np.full(count, count),) * 2], axis=1)
    triplets = IndexedTriplets(images, indices, np.ones((count, 2), int), ("a",) * count)
    for _ in range(100):
        usual = rng.gamma(1, 1, count)
        reached = np.asarray(3 * usual + 0.3 * rng.standard_normal(count), np.float32)
        score = rise(Exposed(reached, reached), Distances(usual, usual), triplets)
        held += score.low <= 3 <= score.high
        assert score.count == count
    assert 87 <= held <= 100

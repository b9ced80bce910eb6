"""Objectives whose maximum within a ball is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.attacks import apgd, pgd
from rlpips_jax.errors import AttackError

SHAPE = (2, 4, 4, 3)
KEY = jax.random.key(0)


def linear(weights: Any, images: Any) -> Any:
    return jnp.sum(weights * images, axis=(1, 2, 3))


def nearness(target: Any, images: Any) -> Any:
    return -jnp.sum(jnp.square(images - target), axis=(1, 2, 3))


def longest_step(weights: np.ndarray, image: np.ndarray, epsilon: float) -> np.ndarray:
    """The maximiser of a linear function in an l2 ball and the box: clip(t * weights), with t by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        step = np.clip(image + middle * weights, 0, 1) - image
        low, high = (middle, high) if np.linalg.norm(step) < epsilon else (low, middle)
    return np.clip(image + low * weights, 0, 1) - image


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE[1:]).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """One example far from the ends of the range, one at them."""
    rng = np.random.default_rng(2)
    return np.stack([rng.uniform(0.4, 0.6, SHAPE[1:]), np.rint(rng.uniform(0, 1, SHAPE[1:]))]).astype(np.float32)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_linf_ends_in_the_corner(attack: Any, weights: np.ndarray, images: np.ndarray) -> None:
    result = attack(Partial(linear, weights), images, key=KEY, epsilon=0.1, steps=25)
    corner = np.clip(images + np.float32(0.1) * np.sign(weights), 0, 1)
    np.testing.assert_allclose(result.adversarial, corner, atol=1e-6)


@pytest.mark.parametrize("attack", [functools.partial(pgd, step_size=0.02), apgd])
def test_l2_ends_where_the_gradient_points(attack: Any, weights: np.ndarray, images: np.ndarray) -> None:
    result = attack(Partial(linear, weights), images, key=KEY, epsilon=0.3, norm="l2", steps=200)
    gains = [np.sum(weights * longest_step(weights.astype(float), image.astype(float), 0.3)) for image in images]
    # A ball's projection after which the range is clipped is not that of both together.
    assert np.all(result.after - result.before <= np.asarray(gains) * (1 + 1e-5))
    np.testing.assert_allclose(result.after - result.before, gains, rtol=0.02)
    exact = images[0] + 0.3 * weights / np.linalg.norm(weights)
    np.testing.assert_allclose(result.adversarial[0], exact, atol=0.01)
    np.testing.assert_allclose(result.l2[0], 0.3, rtol=1e-5)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_a_target_outside_is_approached_as_far_as_the_ball_goes(attack: Any, images: np.ndarray) -> None:
    target = np.random.default_rng(3).uniform(-0.5, 1.5, SHAPE[1:]).astype(np.float32)
    target = np.where(np.abs(target - images[0]) < 0.15, images[0] + 0.3, target)
    result = attack(Partial(nearness, target), images[:1], key=KEY, epsilon=0.1, steps=25)
    nearest = np.clip(np.clip(target, images[0] - np.float32(0.1), images[0] + np.float32(0.1)), 0, 1)
    np.testing.assert_allclose(result.adversarial[0], nearest, atol=1e-6)


def test_apgd_halves_its_steps_until_it_meets_a_target_inside(images: np.ndarray) -> None:
    target = images[0] + np.random.default_rng(4).uniform(-0.08, 0.08, SHAPE[1:]).astype(np.float32)
    objective = Partial(nearness, target)
    coarse = pgd(objective, images[:1], key=KEY, epsilon=0.1, steps=100, step_size=0.02)
    fine = apgd(objective, images[:1], key=KEY, epsilon=0.1, steps=100)
    assert fine.after[0] > 0.1 * coarse.after[0]
    np.testing.assert_allclose(fine.adversarial[0], target, atol=0.01)


def test_a_negated_objective_is_made_small() -> None:
    images = np.full((2, 4, 4, 3), 0.5, np.float32)
    target = Partial(lambda images: jnp.square(images - 0.45).sum((1, 2, 3)))
    result = attacks.pgd(attacks.negated(target), images, key=KEY, epsilon=0.1, steps=40)
    np.testing.assert_allclose(result.adversarial, 0.45, atol=0.01)
    np.testing.assert_allclose(result.before, -0.0025 * 48, rtol=1e-4)


def test_a_negated_objective_keeps_its_range() -> None:
    metric = rl.load("lpips-tiny")
    images = np.full((1, 31, 31, 3), 0.5, np.float32)
    objective = attacks.negated(attacks.distance_from(metric, images, value_range=(-1, 1)))
    with pytest.raises(AttackError, match="made for images in value_range"):
        attacks.pgd(objective, images, key=KEY, epsilon=0.1, steps=1)

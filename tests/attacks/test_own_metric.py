"""A metric of a user's own, which is nothing but its members, under every attack."""

import functools
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.attacks import ATTACKED
from rlpips_jax.errors import AttackError
from rlpips_jax.images import to_unit

KEY = jax.random.key(0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blurred:
    """The mean square difference of blurred images; its features are a dictionary."""

    weight: jax.Array
    name = signature = "blurred"
    minimum_size = 2

    def features(self, images: Any, *, value_range: Any = (0.0, 1.0)) -> Any:
        x = to_unit(images, value_range)
        return {"blurred": x[..., 1:, 1:, :] + x[..., :-1, :-1, :]}

    def between(self, features: Any, others: Any) -> Any:
        return self.weight * jnp.square(features["blurred"] - others["blurred"]).mean((-3, -2, -1))


class Embedded(Blurred):
    """The same with vectors whose squared distance it is."""

    def embedded(self, features: Any) -> Any:
        blurred = features["blurred"]
        return blurred * jnp.sqrt(self.weight / blurred[0].size)


jax.tree_util.register_dataclass(Embedded, data_fields=["weight"], meta_fields=[])


@pytest.fixture(scope="module")
def metric() -> Blurred:
    return Blurred(jnp.float32(2.0))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """References, closer and farther images, all smooth."""
    coarse = np.random.default_rng(0).uniform(0.2, 0.8, (3, 4, 4, 4, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(coarse, (3, 4, 12, 12, 3), "linear"))


@pytest.mark.parametrize("name", attacks.table.names("objective"))
def test_attacks_on_triplets(metric: Blurred, images: np.ndarray, name: str) -> None:
    reference, closer, farther = images
    entry = attacks.ATTACKS[name]
    epsilon = 0.1 if entry.unit == "range" else 1.0
    attack = functools.partial(entry.function, key=KEY, epsilon=epsilon, **entry.options(steps=6, norm="linf"))
    result = attack(attacks.ranking(metric, reference, closer, farther), closer)
    margin = metric.between(metric.features(result.adversarial), metric.features(reference)) - metric.between(
        metric.features(farther), metric.features(reference)
    )
    np.testing.assert_allclose(result.after, margin, rtol=1e-4, atol=1e-6)
    assert np.mean(result.after) > np.mean(result.before)


@pytest.mark.parametrize("side", ATTACKED)
def test_every_side_has_an_objective(metric: Blurred, images: np.ndarray, side: str) -> None:
    d0, d1 = (metric.between(metric.features(images[0]), metric.features(other)) for other in images[1:])
    moving = jnp.asarray(attacks.attacked_images(images[0], images[1], images[2], side))
    np.testing.assert_allclose(
        attacks.ranking(metric, images[0], images[1], images[2], attacked=side)(moving), d0 - d1, rtol=1e-4, atol=1e-7
    )


def test_triplets_are_attacked_from_every_side(metric: Blurred, images: np.ndarray) -> None:
    attack = functools.partial(attacks.pgd, epsilon=0.1, steps=3)
    result = attacks.attack_triplets(metric, *images, attack=attack, key=KEY, attacked=ATTACKED)
    np.testing.assert_allclose(
        result.after.closer, rl.distance(result.reference, result.closer, metric), rtol=1e-4, atol=1e-7
    )
    assert np.all(result.after.margin > result.before.margin)


def test_attacks_on_distances(metric: Blurred, images: np.ndarray) -> None:
    far = attacks.distort(metric, images[0], key=KEY, epsilon=0.1, steps=3)
    assert np.all(far.after > 0)
    near = attacks.impostor(metric, images[0], key=KEY, bound=0.02, steps=10)
    assert np.all(near.distance <= 0.02)
    assert np.all(near.l2 > 0.1)
    crowd = attacks.semantic(metric, images[0], images[0], key=KEY, epsilon=0.5, steps=3)
    assert np.all(crowd.after > crowd.before)


@pytest.mark.usefixtures("wrong_types")
def test_attacks_within_a_perceptual_distance_need_an_embedding(metric: Blurred, images: np.ndarray) -> None:
    objective = Partial(lambda x: x.mean((1, 2, 3)))
    attacked: dict[str, Any] = {"key": KEY, "bound": 0.05, "steps": 2}
    for attack in (attacks.perceptual_pgd, attacks.lagrangian, attacks.fast_lagrangian):
        with pytest.raises(AttackError, match=r"a method embedded\(features\); blurred has none"):
            attack(objective, images[0], metric=cast(Any, metric), **attacked)
        result = attack(objective, images[0], metric=Embedded(metric.weight), **attacked)
        distances = metric.between(metric.features(result.adversarial), metric.features(images[0]))
        assert np.all(np.sqrt(distances) <= 0.05 * (1 + 1e-4))
        assert np.all(result.after > result.before)


def test_images_are_brought_within(metric: Blurred, images: np.ndarray) -> None:
    within = attacks.project_perceptual(Embedded(metric.weight), images[1], images[0], bound=0.05)
    assert np.all(rl.attacks.perceptual_distance(metric, metric.features(within), metric.features(images[0])) <= 0.0501)

"""Attacks on ensembles: what they reach is judged by other draws, unless all are known; and luck is worth nothing."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax.attacks import (
    ATTACKED,
    Randomness,
    apgd,
    attack_triplets,
    distort,
    expected_distance_from,
    expected_ranking,
    impostor,
    pgd,
    randomised,
    square,
)
from rlpips_jax.attacks.expectations import choice_key, judge_key
from rlpips_jax.backbones import Convolution, Pool, Pooling, Sequential
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import EnsembleError

MINI = Sequential(
    name="mini", layers=(Convolution(0, 6, 5, stride=4), Pool(1), Convolution(2, 8, 3)), pooling=Pooling("max", 3, 2),
    tapped=(0, 2),
)  # fmt: skip
KEY = jax.random.key(7)
EPSILON = 16 / 255
ATTACK = functools.partial(pgd, epsilon=EPSILON, steps=4)
RANDOMNESS = Randomness(draws=2, samples=3)


@pytest.fixture(scope="module")
def plain(drawn: Callable[..., Lpips]) -> Lpips:
    return drawn(MINI)


@pytest.fixture(scope="module")
def ensemble(plain: Lpips) -> Ensemble:
    return Ensemble(plain)


@pytest.fixture
def drawn_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The keys by which an ensemble is asked, outside and inside of compiled programs."""
    keys: list[Any] = []
    expectation = Ensemble.expectation

    def recorded(ensemble: Any, function: Any, arguments: Any, *, key: Any, samples: int) -> Any:
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return expectation(ensemble, function, arguments, key=key, samples=samples)

    monkeypatch.setattr(Ensemble, "expectation", recorded)
    jax.clear_caches()
    yield keys
    jax.clear_caches()


@pytest.mark.parametrize(
    ("attack", "times"),
    [
        ("triplets", 2),
        pytest.param("distort", 1, marks=pytest.mark.slow),
        pytest.param("impostor", 1, marks=pytest.mark.slow),
    ],
)
def test_no_step_sees_the_draws_that_judge(
    ensemble: Ensemble, triplets: Any, drawn_by: list[Any], attack: str, times: int
) -> None:
    """Of triplets they judge what was before and what is after."""
    options: dict[str, Any] = {"key": KEY, "randomness": RANDOMNESS}
    if attack == "triplets":
        attack_triplets(ensemble, *triplets, attack=ATTACK, **options)
    elif attack == "distort":
        distort(ensemble, triplets[0], epsilon=EPSILON, steps=4, **options)
    else:
        impostor(ensemble, triplets[0], bound=0.01, steps=4, **options)
    jax.effects_barrier()
    assert drawn_by.count(tuple(np.asarray(jax.random.key_data(judge_key(KEY))).tolist())) == times
    # Each step has draws of its own.
    assert len(set(drawn_by)) >= 5


@pytest.mark.slow
def test_what_was_reached_is_measured_under_the_judges_key(ensemble: Ensemble, triplets: Any) -> None:
    result = attack_triplets(ensemble, *triplets, attack=ATTACK, key=KEY, randomness=RANDOMNESS)
    judged = functools.partial(rl.distance, metric=ensemble, key=judge_key(KEY), samples=3)
    np.testing.assert_allclose(result.before.closer, judged(triplets[0], triplets[1]), rtol=1e-4)
    np.testing.assert_allclose(result.after.closer, judged(triplets[0], result.closer), rtol=1e-4)
    np.testing.assert_allclose(result.after.farther, judged(triplets[0], triplets[2]), rtol=1e-4)
    assert np.all(result.linf <= EPSILON + 1e-6)
    # Whoever knows the draws gets farther on them.
    known = attack_triplets(
        ensemble, *triplets, attack=ATTACK, key=KEY, randomness=Randomness(draws=2, samples=3, fixed=True)
    )
    np.testing.assert_array_equal(known.before.closer, result.before.closer)
    assert np.mean(known.after.margin) > np.mean(result.after.margin)


@pytest.mark.slow
def test_known_draws_are_no_longer_random(ensemble: Ensemble, triplets: Any) -> None:
    objective = expected_ranking(ensemble, *triplets, samples=3, key=KEY)
    images = jnp.asarray(triplets[1])
    d0, d1 = (rl.distance(triplets[0], each, ensemble, key=KEY, samples=3) for each in triplets[1:])
    np.testing.assert_allclose(objective(images), d0 - d1, rtol=1e-3, atol=1e-6)
    result = pgd(objective, images, key=jax.random.key(1), epsilon=EPSILON, steps=4)
    np.testing.assert_allclose(result.after, objective(result.adversarial), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.success), np.asarray(result.after) > 0)


@pytest.mark.slow
def test_a_transferred_attack_is_that_on_the_surrogate(plain: Lpips, ensemble: Ensemble, triplets: Any) -> None:
    own = attack_triplets(plain, *triplets, attack=ATTACK, key=KEY)
    transferred = attack_triplets(ensemble, *triplets, attack=ATTACK, key=KEY, surrogate=plain, randomness=RANDOMNESS)
    np.testing.assert_array_equal(transferred.closer, own.closer)
    judged = rl.distance(triplets[0], own.closer, ensemble, key=judge_key(KEY), samples=3)
    np.testing.assert_allclose(transferred.after.closer, judged, rtol=1e-4)


@pytest.mark.slow
def test_one_image_is_driven_away_and_judged_by_other_draws(ensemble: Ensemble, triplets: Any) -> None:
    randomness = Randomness(draws=4, samples=16)
    result = distort(ensemble, triplets[0], key=KEY, epsilon=EPSILON, steps=12, randomness=randomness)
    judged = functools.partial(rl.distance, metric=ensemble, key=judge_key(KEY), samples=16)
    np.testing.assert_allclose(result.after, judged(result.adversarial, triplets[0]), rtol=1e-4)
    noise = jax.random.uniform(KEY, triplets[0].shape, minval=-EPSILON, maxval=EPSILON)
    assert np.mean(result.after) > np.mean(judged(jnp.clip(triplets[0] + noise, 0, 1), triplets[0]))


@pytest.mark.slow
def test_impostors_are_held_to_the_bound_by_draws_that_no_step_has_seen_and_judged_by_others(
    ensemble: Ensemble, triplets: Any
) -> None:
    randomness = Randomness(draws=4, samples=16)
    measured = functools.partial(rl.distance, triplets[0], metric=ensemble, samples=16)
    usual = measured(triplets[1], key=KEY)
    result = impostor(ensemble, triplets[0], key=KEY, bound=usual, steps=300, randomness=randomness)
    np.testing.assert_allclose(result.distance, measured(result.adversarial, key=judge_key(KEY)), rtol=1e-4)
    held = measured(result.adversarial, key=choice_key(KEY, randomness))
    assert np.all(held <= usual * (1 + 1e-5))
    noise = np.linalg.norm((triplets[1] - triplets[0]).reshape(4, -1), axis=1)
    assert np.mean(result.l2) > np.mean(noise)
    # Nor is a shift of brightness farther, whose gradient is faint.
    for shift in (-0.2, -0.1, 0.1, 0.2):
        shifted = jnp.clip(triplets[0] + shift, 0, 1)
        within = measured(shifted, key=choice_key(KEY, randomness)) <= usual
        length = np.linalg.norm((shifted - triplets[0]).reshape(4, -1), axis=1)
        assert np.all(result.l2[within] >= length[within] - 1e-4)


def noisy_height(target: Any, images: Any, key: Any) -> Any:
    """Highest at the target, plus luck that outweighs it."""
    height = -jnp.mean(jnp.abs(images - target), axis=(1, 2, 3))
    return height + 100 * jax.random.normal(key, images.shape[:1])


@pytest.mark.parametrize("attack", [pgd, apgd, square])
def test_luck_wins_nothing(attack: Any) -> None:
    """The best of many lucky draws would be any iterate; compared under the same draws it is the highest one."""
    images = jnp.full((3, 6, 6, 3), 0.5)
    target = images + 0.1 * jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], images.shape), jnp.float32)
    options: dict[str, Any] = {"key": KEY, "epsilon": 0.1, "steps": 40}
    sure = attack(Partial(lambda images: -jnp.mean(jnp.abs(images - target), axis=(1, 2, 3))), images, **options)
    lucky = attack(randomised(Partial(noisy_height, target), 1), images, **options)
    reached = -np.mean(np.abs(lucky.adversarial - target), axis=(1, 2, 3))
    np.testing.assert_allclose(reached, sure.after, atol=2e-3)


def test_no_draw_derives_from_another() -> None:
    """A randomised function may split its key: none of the keys made of it is given to another draw."""
    calls: list[tuple[Any, ...]] = []

    def recorded(images: Any, key: Any) -> Any:
        family = jax.random.key_data(jnp.stack([key, *jax.random.split(key, 4)]))
        jax.debug.callback(lambda data: calls.append(tuple(map(tuple, np.asarray(data).tolist()))), family)
        return images.mean((1, 2, 3)) + jax.random.normal(key, images.shape[:1])

    pgd(randomised(recorded, 2), jnp.full((2, 4, 4, 3), 0.5), key=KEY, epsilon=0.1, steps=2)
    jax.effects_barrier()
    given = {family[0] for family in calls}
    assert len(given) == 8
    assert not given & {own for family in calls for own in family[1:]}


def test_a_distance_has_no_goal_and_an_order_has(ensemble: Ensemble, triplets: Any) -> None:
    assert expected_distance_from(ensemble, triplets[0]).goal is None
    assert expected_distance_from(ensemble, triplets[0], key=KEY).goal is None
    for side in ATTACKED:
        assert expected_ranking(ensemble, *triplets, attacked=side).goal == 0
        assert expected_ranking(ensemble, *triplets, attacked=side, key=KEY).goal == 0


@pytest.mark.parametrize("options", [{"draws": 0}, {"samples": -1}])
def test_counts_are_whole_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(EnsembleError, match=f"{next(iter(options))} must be a whole number"):
        Randomness(**options)

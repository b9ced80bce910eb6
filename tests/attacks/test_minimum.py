"""`minimum` and `first_reversal`: radii of planes, whose distance is known, and promises that no radius may break."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import rlpips_jax as rl
from rlpips_jax.attacks import classification, first_reversal, minimum, noise, pgd, search, worst_case, worst_of
from rlpips_jax.attacks.balls import BALLS
from rlpips_jax.errors import AttackError

KEY = jax.random.key(0)


def plane(weights: Any, offsets: Any, images: Any) -> Any:
    """Logits of which the second is larger beyond a plane."""
    margins = jnp.sum(weights * images, axis=(1, 2, 3)) - offsets
    return jnp.stack([jnp.zeros_like(margins), margins], axis=1)


@pytest.fixture(scope="module")
def planes() -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """An objective, images in the middle of the range, the planes' normals, and what is missing to them."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.4, 0.6, (4, 4, 5, 3)).astype(np.float32)
    normals = rng.normal(size=images.shape).astype(np.float32)
    missing = np.array([0.3, 1.0, 3.0, -0.5], np.float32)
    offsets = (normals * images).sum(axis=(1, 2, 3)) + missing
    objective = classification(Partial(plane, jnp.asarray(normals), jnp.asarray(offsets)), np.zeros(4, int))
    return objective, images, normals, missing


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_distance_of_a_plane(planes: Any, norm: str) -> None:
    objective, images, normals, missing = planes
    dual = {"linf": np.abs(normals).sum((1, 2, 3)), "l2": np.sqrt(np.square(normals).sum((1, 2, 3)))}[norm]
    expected = np.maximum(missing, 0) / dual
    result = minimum(objective, images, key=KEY, norm=norm, steps=40)
    np.testing.assert_allclose(result.radius, expected, rtol=0.01)
    # It is an upper bound of the distance, by an image that is beyond the plane.
    assert np.all(result.radius >= expected * (1 - 1e-5))
    assert np.all(result.success)
    assert np.all(objective(result.adversarial) > 0)
    np.testing.assert_allclose(BALLS[norm].length(result.adversarial - images), result.radius, rtol=1e-6)
    np.testing.assert_array_equal(result.adversarial[3], images[3])
    np.testing.assert_array_equal(result.after, -result.radius)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_within_a_radius(planes: Any, norm: str) -> None:
    objective, images, _, missing = planes
    lengths = np.asarray(minimum(objective, images, key=KEY, norm=norm, steps=40).radius)
    assert list(np.argsort(lengths)) == list(np.argsort(missing))
    # The first and the last plane are within it, and one is a little beyond.
    epsilon = float(0.9 * lengths[1])
    bounded = functools.partial(minimum, norm=norm, epsilon=epsilon, steps=40)
    result = bounded(objective, images, key=KEY)
    assert np.asarray(result.success).tolist() == [True, False, False, True]
    np.testing.assert_allclose(result.radius, np.where(result.success, lengths, np.inf), rtol=0.01)
    assert np.all(BALLS[norm].length(result.adversarial - images) <= epsilon * (1 + 1e-5))
    # Beside other attacks its images count by the objective.
    nearest = objective(result.adversarial)
    alone = worst_case(objective, images, key=KEY, attacks=[bounded])
    np.testing.assert_allclose(alone.after, nearest, atol=1e-5)
    together = functools.partial(worst_case, objective, images, key=KEY)
    parts = [functools.partial(noise, norm=norm, epsilon=epsilon, steps=2), bounded]
    drawn, worst = together(attacks=parts[:1]), together(attacks=parts)
    np.testing.assert_allclose(worst.after, np.maximum(drawn.after, nearest), atol=1e-5)
    np.testing.assert_array_equal(worst.success, result.success)
    assert np.all(BALLS[norm].length(worst.adversarial - images) <= epsilon * (1 + 1e-5))
    with pytest.raises(AttackError, match="is a length, and of the others the objective; use worst_case"):
        worst_of([drawn, result])


def peak(images: Any) -> Any:
    """Logits whose margin is largest, and below 0, very near a grey of .5."""
    margins = -1 - jnp.square(300 * jnp.mean(images - 0.50001, axis=(1, 2, 3)))
    return jnp.stack([jnp.zeros_like(margins), margins], axis=1)


def test_in_the_worst_case_the_image_stays_where_all_steps_lead_down() -> None:
    images = np.full((1, 4, 5, 3), 0.5, np.float32)
    bounded = functools.partial(minimum, epsilon=0.1, steps=4)
    result = worst_case(classification(Partial(peak), np.zeros(1, int)), images, key=KEY, attacks=[bounded])
    np.testing.assert_array_equal(result.adversarial, images)
    np.testing.assert_array_equal(result.after, result.before)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_tie_is_reversed_by_a_change_that_rounding_keeps(norm: str) -> None:
    images, signs = np.full((4, 4, 5, 3), 0.5, np.float32), np.resize([1.0, 1.0, -1.0], (4, 4, 5, 3))
    normals = jnp.asarray(signs, jnp.float32)
    objective = classification(Partial(plane, normals, jnp.sum(normals / 2, axis=(1, 2, 3))), np.zeros(4, int))
    assert np.all(objective(jnp.asarray(images)) == 0)
    result = minimum(objective, images, key=KEY, norm=norm, steps=40)
    assert np.all(result.success)
    assert np.all((result.radius > 0) & (result.radius < 1.5e-4))


def test_what_cannot_be_reached_has_an_infinite_radius(planes: Any) -> None:
    objective, images, normals, _ = planes
    scaled = images * 2 - 1
    far = np.full(4, 1e4, np.float32)
    objective = classification(Partial(plane, jnp.asarray(normals), jnp.asarray(far)), np.zeros(4, int))
    result = minimum(objective, scaled, key=KEY, steps=40, value_range=(-1.0, 1.0))
    assert np.all(np.isinf(result.radius))
    assert not np.any(result.success)
    assert np.abs(result.adversarial).max() <= 1


def triplets(seed: int = 0) -> tuple[Any, Any]:
    """The ranking of drawn triplets by a small network, and the closer images."""
    rng = np.random.default_rng(seed)
    coarse = jnp.asarray(rng.uniform(0.2, 0.8, (3, 8, 8, 3)), jnp.float32)
    reference = jax.image.resize(coarse, (3, 32, 32, 3), "linear")
    noise = jnp.asarray(rng.normal(size=(2, *reference.shape)), jnp.float32)
    closer, farther = (jnp.clip(reference + amount * noise[i], 0, 1) for i, amount in enumerate((0.05, 0.08)))
    return rl.attacks.ranking(rl.load("lpips-tiny"), reference, closer, farther), closer


@pytest.mark.slow
def test_it_is_no_larger_than_where_pgd_succeeds() -> None:
    """And all batches are one program."""
    for seed in range(2):
        objective, closer = triplets(seed)
        result = minimum(objective, closer, key=KEY, steps=30)
        programs = cast(Any, search)._cache_size()
        assert np.all(result.success)
        np.testing.assert_allclose(result.linf, result.radius, rtol=1e-6)
        smaller = pgd(objective, closer, key=KEY, epsilon=0.8 * result.radius, steps=10)
        assert not np.any(smaller.success)
        minimum(objective, closer, key=KEY, steps=30)
        assert cast(Any, search)._cache_size() == programs + (seed == 0)


@pytest.mark.slow
def test_the_first_image_that_reverses_is_kept() -> None:
    objective, closer = triplets()
    epsilon, steps = 0.015, 10
    result = first_reversal(objective, closer, key=KEY, epsilon=epsilon, steps=steps)
    # The same by hand.
    gradient = jax.jit(jax.grad(lambda images: objective(images).sum()))
    here, count = closer, np.zeros(3, int)
    for _ in range(steps - 1):
        going = np.asarray(objective(here) <= 0)
        change = here + epsilon / steps * jnp.sign(gradient(here)) - closer
        ahead = jnp.clip(closer + jnp.clip(change, -epsilon, epsilon), 0, 1)
        here = jnp.where(going[:, None, None, None], ahead, here)
        count += going
    reached = np.asarray(objective(here) > 0)
    assert reached.any()
    np.testing.assert_array_equal(result.success, reached)
    np.testing.assert_allclose(result.adversarial[reached], here[reached], atol=1e-6)
    np.testing.assert_allclose(result.radius[reached], BALLS["l2"].length(here - closer)[reached], rtol=1e-5)
    assert np.all(np.isinf(result.radius[~reached]))
    assert np.all(np.asarray(result.linf)[reached] <= count[reached] * epsilon / steps + 1e-6)


@pytest.mark.parametrize("attack", [minimum, first_reversal])
@pytest.mark.usefixtures("wrong_types")
def test_objectives_need_a_goal(attack: Any) -> None:
    images = np.full((1, 4, 4, 3), 0.5, np.float32)
    options = {} if attack is minimum else {"epsilon": 0.1}
    with pytest.raises(AttackError, match="must have a goal, such as ranking"):
        attack(lambda x: x.mean((1, 2, 3)), images, key=KEY, steps=2, **options)
    with pytest.raises(AttackError, match="fix its draws"):
        attack(rl.attacks.randomised(lambda x, key: x.mean((1, 2, 3))), images, key=KEY, steps=2, **options)

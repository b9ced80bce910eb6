"""Attacks on the order of triplets, with the network that comes with the package."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.attacks import ATTACKED, attack_triplets, attacked_images, pgd, ranking
from rlpips_jax.errors import AttackError, ImageError

KEY = jax.random.key(0)
EPSILON = 16 / 255
ATTACK = functools.partial(pgd, epsilon=EPSILON, steps=10)


@pytest.fixture(scope="module")
def of_sides(tiny: Any, triplets: Any) -> dict[str, Any]:
    return {side: attack_triplets(tiny, *triplets, attack=ATTACK, key=KEY, attacked=side) for side in ATTACKED}


@pytest.mark.parametrize("side", ATTACKED)
def test_rankings_are_differences_of_distances(tiny: Any, triplets: Any, side: str) -> None:
    reference, closer, farther = triplets
    objective = ranking(tiny, reference, closer, farther, attacked=side)
    expected = rl.distance(reference, closer, tiny) - rl.distance(reference, farther, tiny)
    np.testing.assert_allclose(
        objective(jnp.asarray(attacked_images(reference, closer, farther, side))), expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("side", ATTACKED)
def test_every_side_reverses_the_order(tiny: Any, triplets: Any, of_sides: dict[str, Any], side: str) -> None:
    result = of_sides[side]
    assert np.all(result.before.margin < 0)
    assert np.all(result.after.margin > 0)
    assert np.all(result.reversed)
    assert np.all(result.side == ATTACKED.index(side))
    names = ("reference", "closer", "farther")
    moved = {"both": {"closer", "farther"}}.get(side, {side})
    for name, original in zip(names, triplets, strict=True):
        assert np.array_equal(getattr(result, name), original) == (name not in moved)
    assert np.all(result.linf <= EPSILON + 1e-6)
    changes = [np.abs(getattr(result, name) - original) for name, original in zip(names, triplets, strict=True)]
    np.testing.assert_allclose(result.linf, np.max(changes, axis=(0, 2, 3, 4)), rtol=1e-6)
    for name in ("closer", "farther"):
        now = rl.distance(result.reference, getattr(result, name), tiny)
        np.testing.assert_allclose(getattr(result.after, name), now, rtol=1e-5)


@pytest.mark.slow
def test_several_sides_are_the_worst_of_each(tiny: Any, triplets: Any, of_sides: dict[str, Any]) -> None:
    result = attack_triplets(tiny, *triplets, attack=ATTACK, key=KEY, attacked=ATTACKED)
    margins = np.stack([of_sides[side].after.margin for side in ATTACKED])
    np.testing.assert_allclose(result.after.margin, margins.max(axis=0), rtol=1e-4)
    assert np.array_equal(result.side, margins.argmax(axis=0))
    for example, side in enumerate(np.asarray(result.side)):
        for name in ("reference", "closer", "farther"):
            expected = getattr(of_sides[ATTACKED[side]], name)[example]
            np.testing.assert_array_equal(getattr(result, name)[example], expected)


def lost_at_the_reference(objective: Any, images: Any, **options: Any) -> Any:
    """An attack that ends at no number where it moves the reference."""
    result = ATTACK(objective, images, **options)
    lost = jnp.nan if objective.attacked == "reference" else 1
    return dataclasses.replace(result, adversarial=lost * result.adversarial)


@pytest.mark.slow
def test_a_side_that_is_not_finite_hides_none_that_is(tiny: Any, triplets: Any, of_sides: dict[str, Any]) -> None:
    sides = ("reference", "closer")
    result = attack_triplets(tiny, *triplets, attack=lost_at_the_reference, key=KEY, attacked=sides)
    assert np.all(result.reversed)
    assert np.all(result.side == ATTACKED.index("closer"))
    np.testing.assert_array_equal(result.closer, of_sides["closer"].closer)


@pytest.mark.slow
def test_bytes_and_jit(tiny: Any, triplets: Any) -> None:
    """Under an outer jit the metric is an argument, and bytes are what the floats of their values are."""
    quantised = [np.rint(np.asarray(images) * 255).astype(np.uint8) for images in triplets]

    @jax.jit
    def attacked(metric: Any, images: Any) -> Any:
        return attack_triplets(metric, *images, attack=ATTACK, key=KEY)

    result = attacked(tiny, quantised)
    reference, closer, farther = (images / np.float32(255) for images in quantised)
    plain = attack_triplets(tiny, reference, closer, farther, attack=ATTACK, key=KEY)
    np.testing.assert_allclose(result.before.margin, plain.before.margin, rtol=1e-3, atol=1e-5)
    # Signs of small gradients may differ.
    np.testing.assert_allclose(result.after.margin, plain.after.margin, rtol=0.1)
    assert np.all(result.reversed)


@pytest.mark.parametrize("attacked", ["nearer", (), ("closer", "closer"), ("closer", "nearer")])
def test_sides_that_are_none(tiny: Any, triplets: Any, attacked: Any) -> None:
    with pytest.raises(AttackError, match="attacked must be one or several of closer, farther, both, reference"):
        attack_triplets(tiny, *triplets, attack=ATTACK, key=KEY, attacked=attacked)
    if attacked == "nearer":
        with pytest.raises(AttackError, match="attacked must be one of closer, farther, both, reference, got 'nearer'"):
            ranking(tiny, *triplets, attacked=attacked)


def test_images_that_are_no_triplets(tiny: Any, triplets: Any) -> None:
    reference, closer, farther = triplets
    with pytest.raises(ImageError, match="leading axes differ"):
        attack_triplets(tiny, reference, closer[:2], farther, attack=ATTACK, key=KEY)
    with pytest.raises(ImageError, match="triplets are three batches"):
        attack_triplets(tiny, reference[0], closer[0], farther[0], attack=ATTACK, key=KEY)

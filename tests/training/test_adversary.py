"""The attack inside a step: the published one with its quirks, and the corrected one within its promises."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import attacks
from rlpips_jax.distances.lpips import Lpips
from training import adversary
from training.config import Lin

COUNT, SIZE = 4, 32


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def images() -> adversary.Images:
    """Bright, so that a perturbation can leave the range; near and far by noise of two strengths."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(0.2, 1, (COUNT, SIZE, SIZE, 3))
    p0, p1 = (np.clip(reference + rng.normal(0, sigma, reference.shape), -1, 1) for sigma in (0.12, 0.2))
    reference, p0, p1 = (jnp.asarray(image, jnp.float32) for image in (reference, p0, p1))
    return reference, p0, p1


JUDGMENT = jnp.asarray([0.0, 1.0, 0.3, 0.8])


def features(metric: Lpips, images: Any) -> list:
    return [metric.features(image, value_range=(-1, 1)) for image in images]


@pytest.fixture
def recorded(monkeypatch) -> list[dict[str, Any]]:
    """What the published attack is asked for; it adds 0.1 each time."""
    calls: list[dict[str, Any]] = []

    def add(config, metric, features, place, image, judgment, key):
        calls.append({"features": list(features), "place": place, "image": image})
        return jnp.full_like(image, 0.1)

    monkeypatch.setattr(adversary, "_published_perturbation", add)
    return calls


def perturbation(metric: Lpips, images: adversary.Images, **options: Any) -> np.ndarray:
    config = Lin(protocol="published", **options)

    @jax.jit
    def run(metric, images, judgment, key):
        found = features(metric, images)
        return adversary._published_perturbation(config, metric, found, 1, images[1], judgment, key)

    return np.asarray(run(metric, images, JUDGMENT, jax.random.key(1)))


@pytest.mark.slow
def test_published_perturbations_jump_to_corners_and_leave_the_range(tiny, images) -> None:
    found = perturbation(tiny, images, attack_steps=3, epsilon="8/255")
    size, epsilon = np.abs(found), np.float32(8 / 255)
    # It can be 0 where there is no slope alone: no pixel has moved by something in between.
    assert set(np.unique(size)) <= {np.float32(0), epsilon}
    assert (size == epsilon).mean() > 0.99
    assert {-1, 1} <= set(np.unique(np.sign(found)))
    assert (np.asarray(images[1]) + found).max() > 1 + 4 / 255


def test_published_perturbations_in_l2_are_signs_shortened_to_the_radius(tiny, images) -> None:
    found = perturbation(tiny, images, norm="l2", attack_steps=1, dropout=0.0)
    assert Lin(protocol="published", norm="l2").recipe.radius == 3
    np.testing.assert_allclose(np.linalg.norm(found.reshape(COUNT, -1), axis=1), 3, rtol=1e-5)
    for one in found:
        moved = np.abs(one[one != 0])
        # Not the gradient itself, whose entries differ.
        np.testing.assert_allclose(moved, moved[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("attacked", "places"), [("closer", [1]), ("farther", [2]), ("both", [1, 2]), ("reference", [0])]
)
def test_the_published_attack_moves_images_by_their_place(attacked, places, tiny, images, recorded) -> None:
    # Nothing leaves the range, as it does under `jit` alone, so that every step can be looked at.
    images = tuple(0.8 * image for image in images)
    config = Lin(protocol="published", attacked=attacked)
    found = adversary._published(config, tiny, images, JUDGMENT, jax.random.key(0))
    assert [call["place"] for call in recorded] == places
    expected = features(tiny, [image + 0.1 * (place in places) for place, image in enumerate(images)])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), list(found), expected)
    if attacked == "both":
        # p1 is attacked against the p0 already moved.
        seen = recorded[1]["features"][1]
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), seen, expected[1])
        assert float(jnp.abs(seen[0] - recorded[0]["features"][1][0]).max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_corrected_attack_stays_in_ball_and_range_and_never_weakens(norm, tiny, images, monkeypatch) -> None:
    results = []

    def record(objective, moved, **options):
        results.append((moved, attacks_pgd(objective, moved, **options)))
        return results[-1][1]

    attacks_pgd = attacks.pgd
    monkeypatch.setitem(attacks.ATTACKS, "pgd", dataclasses.replace(attacks.ATTACKS["pgd"], function=record))
    config = Lin(norm=norm, epsilon="0.05" if norm == "linf" else "1.5", attack_steps=4)
    d0, d1 = adversary.attacked_distances(config, tiny, images=images, judgment=JUDGMENT, key=jax.random.key(2))
    ((moved, result),) = results
    swapped = np.asarray(JUDGMENT > 0.5)
    chosen = swapped[:, None, None, None]
    # The image that people find closer, whichever it is.
    np.testing.assert_array_equal(moved, jnp.where(chosen, images[2], images[1]))
    changes = np.asarray(result.adversarial - moved)
    assert np.abs(np.asarray(result.adversarial)).max() <= 1
    if norm == "linf":
        assert 0.045 < np.abs(changes).max() <= 0.05 + 1e-6
    else:
        lengths = np.linalg.norm(changes.reshape(COUNT, -1), axis=1)
        assert (lengths <= 1.5 * (1 + 1e-5)).all()
        assert (lengths > 1.0).all()
    natural = [np.asarray(rl.distance(images[0], other, tiny, value_range=(-1, 1))) for other in images[1:]]
    sign = np.where(swapped, -1, 1)
    before, after = sign * (natural[0] - natural[1]), sign * np.asarray(d0 - d1)
    assert (after >= before - 1e-6).all()
    assert after.mean() > before.mean() + 0.01
    # The other image is where it was.
    still = np.where(swapped, natural[0], natural[1])
    np.testing.assert_allclose(np.where(swapped, d0, d1), still, rtol=1e-5)
    # Which of the two is called p0 does not matter.
    exchanged = (images[0], images[2], images[1])
    d1_, d0_ = adversary.attacked_distances(
        config, tiny, images=exchanged, judgment=1 - JUDGMENT, key=jax.random.key(2)
    )
    np.testing.assert_allclose([d0, d1], [d0_, d1_], rtol=1e-5)


def draw_features(seed: int) -> tuple:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(2, 2, 3, channels)), jnp.float32) for channels in (5, 8))


def test_dropout_keeps_the_mean_and_has_the_variance_of_its_rate() -> None:
    rng = np.random.default_rng(9)
    heads = tuple(jnp.asarray(rng.uniform(0, 1, channels), jnp.float32) for channels in (5, 8))
    # Heads alone are asked for.
    metric: Any = type("Heads", (), {"parameters": {"heads": heads}})()
    f, g = draw_features(0), draw_features(1)
    parts = [
        np.asarray(jnp.square(one - other) * head).reshape(2, -1) / 6
        for one, other, head in zip(f, g, heads, strict=True)
    ]
    terms = np.concatenate(parts, axis=1)
    count, rate = 1500, 0.2
    keys = jax.random.split(jax.random.key(0), count)
    drop = jax.jit(
        lambda keys: jax.lax.map(lambda key: adversary.dropped_distance(metric, f, g, key=key, rate=rate), keys)
    )
    drawn = np.asarray(drop(keys))
    # Every squared difference is dropped by itself.
    variance = rate / (1 - rate) * np.square(terms).sum(1)
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.15)
    assert (np.abs(drawn.mean(0) - terms.sum(1)) < 5 * np.sqrt(variance / count)).all()


def test_without_dropout_a_distance_is_the_metrics(tiny, images) -> None:
    f, g = features(tiny, images[:2])
    np.testing.assert_array_equal(
        adversary.dropped_distance(tiny, f, g, key=jax.random.key(0), rate=0.0), tiny.between(f, g)
    )
    # What is kept is scaled up, by nothing if nothing is dropped.
    np.testing.assert_allclose(
        adversary.dropped_distance(tiny, f, g, key=jax.random.key(0), rate=1e-7), tiny.between(f, g), rtol=1e-5
    )

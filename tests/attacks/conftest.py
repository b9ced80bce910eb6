"""The table of attacks: a line here, and an attack is held to what every attack promises."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rlpips_jax import attacks
from rlpips_jax.attacks import AttackResult


class Entry(NamedTuple):
    """An attack, with few steps.

    Attributes:
        name: of the tests.
        run: `objective, images, *, key, epsilon, value_range -> AttackResult`.
        bounded: which length of the result stays within epsilon: "linf", "l2", or None.
        options: arguments that it takes besides.
    """

    name: str
    run: Callable[..., AttackResult]
    bounded: str | None
    options: tuple[str, ...]


def of_norm(attack: Callable[..., AttackResult], norm: str, *options: str, steps: int) -> Entry:
    run = functools.partial(attack, norm=norm, steps=steps)
    return Entry(f"{attack.__name__}-{norm}", run, norm, ("steps", "norm", *options))


ATTACKS = [
    of_norm(attacks.pgd, "linf", "restarts", "random_start", steps=8),
    of_norm(attacks.pgd, "l2", "restarts", "random_start", steps=8),
    of_norm(attacks.apgd, "linf", "restarts", "random_start", steps=8),
    of_norm(attacks.apgd, "l2", "restarts", "random_start", steps=8),
    of_norm(attacks.square, "linf", "restarts", steps=12),
    of_norm(attacks.square, "l2", "restarts", steps=12),
    of_norm(attacks.noise, "linf", steps=4),
    of_norm(attacks.noise, "l2", steps=4),
    Entry("spatial", functools.partial(attacks.spatial, steps=8), None, ("steps", "restarts", "random_start")),
]


@pytest.fixture(scope="module", params=ATTACKS, ids=lambda entry: entry.name)
def attack(request: pytest.FixtureRequest) -> Entry:
    return request.param


TRACES: list[tuple[int, ...]] = []
"""The shapes for which `wavy` was traced."""


def wavy(frequency: Any, weights: Any, images: Any) -> Any:
    """Neither convex nor concave, and cheap. The pattern of weights is repeated over images of any shape."""
    TRACES.append(images.shape)
    weights = jnp.resize(weights, images.shape[1:])
    return jnp.sum(weights * jnp.sin(frequency * images), axis=tuple(range(1, images.ndim)))


def with_chance(frequency: Any, weights: Any, chance: Any, images: Any, key: Any) -> Any:
    """The same, and `chance` times a number drawn for each example."""
    return wavy(frequency, weights, images) + chance * jax.random.normal(key, images.shape[:1])


@pytest.fixture(scope="session")
def objective() -> Callable[..., Any]:
    """Makes a nonlinear objective of images in a range; one program for all that are made.

    `scale` is a factor, and with `chance` it is randomised.
    """
    pattern = jnp.asarray(np.random.default_rng(0).normal(size=251), jnp.float32)

    def make(value_range: tuple[float, float] = (0.0, 1.0), scale: float = 1, chance: float | None = None) -> Any:
        frequency = jnp.float32(5 / (value_range[1] - value_range[0]))
        weights = jnp.float32(scale) * pattern
        if chance is None:
            return Partial(wavy, frequency, weights)
        # The mean of two equal numbers is not rounded.
        return attacks.randomised(Partial(with_chance, frequency, weights, jnp.float32(chance)), 2)

    return make


@pytest.fixture(scope="session")
def traces() -> list[tuple[int, ...]]:
    """The shapes for which the objective was traced so far."""
    return TRACES


@pytest.fixture(scope="session")
def tiny() -> Any:
    import rlpips_jax as rl

    return rl.load("lpips-tiny")


@pytest.fixture(scope="session")
def triplets() -> tuple[Any, Any, Any]:
    """Four references, each with little noise (closer) and with other, stronger noise (farther)."""
    rng = np.random.default_rng(3)
    coarse = jnp.asarray(rng.uniform(0.2, 0.8, (4, 8, 8, 3)), jnp.float32)
    reference = jax.image.resize(coarse, (4, 32, 32, 3), "linear")

    def noisy(strength: float) -> Any:
        return jnp.clip(reference + strength * jnp.asarray(rng.normal(size=reference.shape), jnp.float32), 0, 1)

    return reference, noisy(0.08), noisy(0.11)

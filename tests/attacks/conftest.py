"""Every attack of the table with few steps, to be held to what every attack promises."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from rlpips_jax import attacks
from rlpips_jax.attacks import ATTACKS, AttackEntry, AttackResult, search

STEPS = 12
"""The same for all, as the worst of several attacks then is the programs of these."""


class Case(NamedTuple):
    """An attack of the table in one of its norms, with few steps.

    Attributes:
        name: of the tests.
        run: `objective, images, *, key, epsilon, value_range -> AttackResult`.
        bounded: the length of the result that stays within epsilon, "linf" or "l2"; or None.
        options: arguments that it takes besides.
        climbs: whether it must find something better than the images: noise need not.
        radius: one at which there is something to find, in the attack's unit for images in [0, 1].
    """

    name: str
    run: Callable[..., AttackResult]
    bounded: str | None
    options: tuple[str, ...]
    climbs: bool
    radius: float


def cases(table: Mapping[str, AttackEntry]) -> list[Case]:
    """What of a table is held to the promises: attacks on any objective."""
    found = []
    for name, entry in table.items():
        for norm in (entry.norms or (None,)) if entry.takes == "objective" else ():
            options = [option for option in ("restarts", "random_start") if getattr(entry, option)]
            run = functools.partial(entry.function, **entry.options(steps=STEPS, norm=norm))
            options += ["steps", *(["norm"] if len(entry.norms) > 1 else [])]
            title = f"{name}-{norm}" if norm else name
            radius = 2.0 if entry.unit == "pixels" else 0.1
            found.append(Case(title, run, norm, tuple(options), climbs=name != "noise", radius=radius))
    return found


def marked(case: Case) -> Any:
    """The union is made of attacks that are held to the promises themselves."""
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name == "union"))


@pytest.fixture(scope="module", params=map(marked, cases(ATTACKS)))
def attack(request: pytest.FixtureRequest) -> Case:
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


def pictures(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Bytes with edges and gradients."""
    drawn = np.random.default_rng(seed).uniform(-0.5, 0.5, (count, size, size, 3)).cumsum(axis=1).cumsum(axis=2)
    low, high = (extreme(drawn, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    return (255 * (drawn - low) / (high - low)).astype(np.uint8)


def programs() -> int:
    """How many `search` has been compiled to."""
    return cast(Any, search)._cache_size()


@pytest.fixture(scope="session")
def metric(tiny: Any) -> Any:
    return tiny


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch's threads wait for each other where other programs run."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)

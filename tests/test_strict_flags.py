"""Everything works under JAX's strict flags, which users set to find faults in their own programs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl

KEY = jax.random.key(0)


def attack(metric: Any, x: Any, y: Any) -> Any:
    return rl.attacks.pgd(lambda images: rl.distance(x, images, metric), y, key=KEY, epsilon=0.1, steps=2, norm="l2")


def ensemble(metric: Any, x: Any, y: Any) -> Any:
    return jax.grad(lambda x: rl.distance(x, y, rl.Ensemble(metric), key=KEY, samples=4).sum())(x)


OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "distance": lambda metric, x, y: rl.distance(x, y, metric),
    "distance of uint8": lambda metric, x, y: rl.distance(
        (255 * x).astype(jnp.uint8), (255 * y).astype(jnp.uint8), metric
    ),
    "distance in blocks": lambda metric, x, y: rl.distance(x, y, replace(metric, max_batch=1)),
    "gradient by images": lambda metric, x, y: jax.grad(lambda x: rl.distance(x, y, metric).sum())(x),
    "gradient by parameters": lambda metric, x, y: jax.grad(lambda metric: rl.distance(x, y, metric).sum())(metric),
    "layers": lambda metric, x, y: rl.layer_distances(x, y, metric),
    "map": lambda metric, x, y: rl.distance_map(x, y, metric),
    "pairwise": lambda metric, x, y: rl.pairwise(x, y, metric),
    "attack": attack,
    "ensemble": ensemble,
}


FLAGS = {"ranks": (jax.numpy_rank_promotion, "raise"), "types": (jax.numpy_dtype_promotion, "strict")}


@pytest.fixture(params=FLAGS)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    flag, value = FLAGS[request.param]
    with flag(value):
        yield


@pytest.fixture(scope="module")
def arguments() -> tuple[Any, Any, Any]:
    x, y = np.random.default_rng(0).random((2, 2, 32, 32, 3), np.float32)
    return rl.load("lpips-tiny"), jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_promoted(operation: str, strict: None, arguments: tuple[Any, Any, Any]) -> None:
    jax.jit(OPERATIONS[operation]).trace(*arguments)


@pytest.mark.parametrize("operation", ["gradient by images", "pairwise", "attack"])
def test_nothing_is_transferred_inside_a_jitted_function(operation: str, arguments: tuple[Any, Any, Any]) -> None:
    compiled = jax.jit(OPERATIONS[operation])
    compiled(*arguments)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(compiled(*arguments))

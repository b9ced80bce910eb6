"""Photographs, metrics and calls for averages and paths."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import geometry

FIELDS = {field.name for field in dataclasses.fields(geometry.Descent)}


def descended(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls `average` or `geodesic` with the fields of `Descent` among its options."""
    chosen = {name: options.pop(name) for name in FIELDS & options.keys()}
    return function(*arguments, **options, descent=geometry.Descent(**chosen))


def mean_square(x: Any, y: Any, key: Any) -> Any:
    """A metric that pixels alone decide."""
    return jnp.mean(jnp.square(x - y), axis=(1, 2, 3))


@pytest.fixture(scope="session")
def metric() -> rl.Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """Three smooth pictures, 64x64, in [0, 1]."""
    rng = np.random.default_rng(0)
    drawn = rng.uniform(-0.5, 0.5, (3, 64, 64, 3)).cumsum(axis=1).cumsum(axis=2)
    low, high = drawn.min(axis=(1, 2, 3), keepdims=True), drawn.max(axis=(1, 2, 3), keepdims=True)
    return ((drawn - low) / (high - low)).astype(np.float32)

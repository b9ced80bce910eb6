"""Photographs and a metric for averages and paths."""

import numpy as np
import pytest

import rlpips_jax as rl


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

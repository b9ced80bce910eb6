"""APGD and Square beside AutoAttack's own, on the same triplets, network and budget."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones.tiny import TINY

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="needs pyautoattack 0.2.0"),
]


def tiny() -> Any:
    """The network of `lpips-tiny` in PyTorch."""
    from torch import nn

    from convert.reference import Variant

    modules: list[Any] = []
    for _, (kernel, _, inputs, outputs) in TINY.convolutions():
        if len(modules) in (2, 5):
            modules.append(nn.MaxPool2d(3, 2))
        stride, padding = (4, 2) if not modules else (1, kernel // 2)
        modules += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
    return Variant(nn.Sequential(*modules), (1, 4, 7, 9))


@pytest.fixture(scope="module")
def triplets() -> Any:
    from benchmarks.autoattack import Ranked

    rng = np.random.default_rng(3)
    coarse = jnp.asarray(rng.uniform(0.2, 0.8, (12, 8, 8, 3)), jnp.float32)
    reference = np.asarray(jax.image.resize(coarse, (12, 40, 40, 3), "linear"))
    noise = rng.normal(size=reference.shape)
    return Ranked(*(np.clip(reference + s * noise, 0, 1).astype(np.float32) for s in (0, 0.05, 0.08)))


def test_both_attack_the_same_objective(triplets: Any) -> None:
    from benchmarks.autoattack import as_batch, torch_margin

    metric = rl.load("lpips-tiny")
    margin = torch_margin(metric, tiny(), triplets)(as_batch(triplets.closer))
    np.testing.assert_allclose(rl.attacks.ranking(metric, *triplets)(jnp.asarray(triplets.closer)), margin, atol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [("apgd", 10), ("square", 60)])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.004), ("l2", 0.2)])
def test_ours_are_as_strong(triplets: Any, name: str, steps: int, norm: str, epsilon: float) -> None:
    from benchmarks.autoattack import compare

    metric = rl.load("lpips-tiny")
    ours, theirs = compare(metric, tiny(), triplets, name=name, norm=norm, epsilon=epsilon, steps=steps)
    before = np.asarray(rl.attacks.ranking(metric, *triplets)(jnp.asarray(triplets.closer)))
    rise, other = (np.mean(margins - before) for margins in (ours, theirs))
    assert other > 0
    # Random searches of a few queries differ by chance.
    assert rise >= (0.97 if name == "apgd" else 0.85) * other
    assert np.sum(ours > 0) >= np.sum(theirs > 0) - (name == "square")

"""The tables describe torchvision's networks."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from rlpips_jax.backbones import (
    ALEX,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    INPUT,
    SQUEEZE,
    STALEX,
    STVGG,
    TINY,
    VGG,
    VGG19,
    Computation,
    Sequential,
)

EVERY = [ALEX, VGG, VGG19, SQUEEZE, STALEX, STVGG, TINY, ELPIPS_VGG, ELPIPS_SQUEEZE]


def parameter_count(architecture: Sequential) -> int:
    """Weights and biases of all convolutions."""
    return sum(int(np.prod(shape)) + shape[-1] for _, shape in architecture.convolutions())


@pytest.mark.parametrize(
    ("architecture", "count"),
    # Published totals less the classifiers: AlexNet 61,100,840 - 58,631,144; VGG16 138,357,544 - 123,642,856;
    # SqueezeNet 1.1 1,235,496 - 513,000; VGG19 143,667,240 - 123,642,856.
    [(ALEX, 2_469_696), (VGG, 14_714_688), (SQUEEZE, 722_496), (VGG19, 20_024_384)],
)
def test_networks_have_the_published_number_of_parameters(architecture: Sequential, count: int) -> None:
    assert parameter_count(architecture) == count


def test_the_compact_network_stays_under_two_megabytes() -> None:
    assert 4 * (parameter_count(TINY) + sum(TINY.channels)) < 2e6


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [
        (ALEX, (64, 192, 384, 256, 256)),
        (VGG, (64, 128, 256, 512, 512)),
        (VGG19, (64, 128, 256, 512, 512)),
        (SQUEEZE, (64, 128, 256, 384, 384, 512, 512)),
        (STALEX, (64, 192, 384, 256, 256)),
        (STVGG, (64, 128, 256, 512, 512)),
        (ELPIPS_VGG, (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)),
        (ELPIPS_SQUEEZE, (3, 64, 128, 128, 256, 256, 384, 384, 512, 512)),
    ],
)
def test_taps_have_the_channels_of_the_published_heads(architecture: Sequential, channels: tuple[int, ...]) -> None:
    assert architecture.channels == channels


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.name}-{len(a.tapped)}")
def test_the_minimum_size_is_the_smallest(architecture: Sequential) -> None:
    assert architecture.smallest_activation(architecture.minimum_size - 1) < 1


@pytest.mark.slow
def test_a_tap_on_the_input_is_the_input(drawn: Callable[..., Any]) -> None:
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    outputs = ELPIPS_SQUEEZE.taps(drawn(SQUEEZE).parameters["backbone"], x, Computation())
    assert ELPIPS_SQUEEZE.tapped[0] == INPUT
    np.testing.assert_array_equal(outputs[0], x)

"""The tables say what torchvision's networks are, and pooling counts windows as PyTorch does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.backbones import (
    ALEX,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    INPUT,
    SQUEEZE,
    TINY,
    VGG,
    VGG19,
    Computation,
    Sequential,
)
from rlpips_jax.ops.pooling import Pooling, pool
from rlpips_jax.ops.resize import resize_bilinear
from rlpips_jax.weights.parameters import unflatten

EVERY = [ALEX, VGG, VGG19, SQUEEZE, TINY, ELPIPS_VGG, ELPIPS_SQUEEZE]


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
        (ELPIPS_VGG, (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)),
        (ELPIPS_SQUEEZE, (3, 64, 128, 128, 256, 256, 384, 384, 512, 512)),
    ],
)
def test_taps_have_the_channels_of_the_published_heads(architecture: Sequential, channels: tuple[int, ...]) -> None:
    assert architecture.channels == channels


@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: f"{a.name}-{len(a.tapped)}")
def test_the_minimum_size_is_the_smallest_that_works(architecture: Sequential) -> None:
    """Shapes are evaluated, so the claim is checked on the network itself, not on the table's arithmetic."""
    flat = {f"backbone.{name}": np.zeros(shape, np.float32) for name, shape in architecture.shapes.items()}
    parameters = unflatten(flat, architecture, "zeros")["backbone"]

    def taps(size: int) -> list[tuple[int, ...]]:
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        outputs = jax.eval_shape(lambda p, x: architecture.taps(p, x, Computation()), parameters, images)
        return [output.shape for output in outputs]

    smallest = architecture.minimum_size
    shapes = taps(smallest)
    assert all(min(shape) >= 1 for shape in shapes)
    assert [shape[-1] for shape in shapes] == list(architecture.channels)
    assert architecture.smallest_activation(smallest - 1) < 1


def test_a_tap_on_the_input_is_the_input(drawn: Callable[..., Any]) -> None:
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    outputs = ELPIPS_SQUEEZE.taps(drawn(SQUEEZE).parameters["backbone"], x, Computation())
    assert ELPIPS_SQUEEZE.tapped[0] == INPUT
    np.testing.assert_array_equal(outputs[0], x)


def pooled_by_hand(x: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Windows that start inside the image, cut off at its edge."""
    side, stride = pooling.window, pooling.stride
    starts = [
        [s for s in range(0, n, stride) if s + side <= n or (pooling.ceil and s + side - stride < n)]
        for n in x.shape[1:3]
    ]
    reduce = np.max if pooling.kind == "max" else np.mean
    rows = [
        np.stack([reduce(x[:, i : i + side, j : j + side], axis=(1, 2)) for j in starts[1]], axis=1) for i in starts[0]
    ]
    return np.stack(rows, axis=1)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(5, 8), (6, 7), (9, 3)])
def test_pooling_equals_windows_taken_by_hand(kind: str, ceil: bool, window: int, size: tuple[int, int]) -> None:
    x = np.random.RandomState(0).standard_normal((2, *size, 3)).astype(np.float32)
    pooling = Pooling(kind, window, 2, ceil)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(pool(jnp.asarray(x), pooling), pooled_by_hand(x, pooling), atol=1e-6)


def test_enlargement_is_linear_between_pixel_centres() -> None:
    x = jnp.array([[[0.0, 1.0]]])
    np.testing.assert_allclose(resize_bilinear(x, 1, 4)[0, 0], [0, 0.25, 0.75, 1], atol=1e-7)

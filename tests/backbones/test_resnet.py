"""Residual networks: published sizes, folded batch normalisation, and all that a metric asks of a backbone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import RESNET18, RESNET50, Backbone, Computation, StagedBackbone
from rlpips_jax.backbones.resnet import BASIC, ResNet
from rlpips_jax.errors import WeightsMismatch
from rlpips_jax.weights.parameters import from_pytorch, to_pytorch, with_heads

SMALL = ResNet("small", BASIC, (1, 1, 1, 1))


def drawn_checkpoint(backbone: Backbone) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in backbone.pytorch_shapes.items()}


@pytest.mark.parametrize(
    ("backbone", "count"),
    # Published totals less the classifiers: 11,689,512 - 513,000 and 25,557,032 - 2,049,000.
    [(RESNET18, 11_176_512), (RESNET50, 23_508_032)],
    ids=lambda value: getattr(value, "name", None),
)
def test_networks_have_the_published_number_of_parameters(backbone: ResNet, count: int) -> None:
    shapes = backbone.pytorch_shapes
    assert sum(math.prod(shape) for name, shape in shapes.items() if ".running_" not in name) == count
    assert isinstance(backbone, StagedBackbone)


def test_names_are_torchvision_s() -> None:
    some = {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.bias"}
    assert some <= RESNET18.pytorch_shapes.keys()
    downsampled = {name.split(".")[0] for name in RESNET18.pytorch_shapes if "downsample" in name}
    assert downsampled == {"layer2", "layer3", "layer4"}
    assert RESNET18.pytorch_shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert "layer1.0.downsample.1.running_mean" in RESNET50.pytorch_shapes


@pytest.mark.parametrize("backbone", [RESNET18, RESNET50], ids=lambda backbone: backbone.name)
@pytest.mark.parametrize(("size", "sizes"), [(1, (1, 1, 1, 1, 1)), (65, (33, 17, 9, 5, 3))])
def test_shapes_of_taps(backbone: ResNet, size: int, sizes: tuple[int, ...]) -> None:
    tensors = {name: np.zeros(shape, np.float32) for name, shape in backbone.pytorch_shapes.items()}
    parameters = from_pytorch(tensors, with_heads(backbone), "zeros")["backbone"]
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    taps = jax.eval_shape(lambda p, x: backbone.taps(p, x, Computation()), parameters, images)
    assert [tap.shape for tap in taps] == [(2, n, n, c) for n, c in zip(sizes, backbone.channels, strict=True)]


def test_batch_normalisation_is_folded() -> None:
    tensors = drawn_checkpoint(SMALL)
    folded = SMALL.from_pytorch(tensors)
    x = np.random.default_rng(1).uniform(size=(1, 6, 5, 64)).astype(np.float32)
    kernel = jnp.asarray(tensors["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    weight, bias, mean, variance = (
        tensors[f"layer2.0.bn1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    plain = Computation().convolve({"kernel": kernel, "bias": jnp.zeros(128)}, jnp.asarray(x), stride=2, padding=1)
    expected = (plain - mean) / np.sqrt(variance + 1e-5) * weight + bias
    parameters = {name: jnp.asarray(folded[f"layer2.0.conv1.{name}"]) for name in ("kernel", "bias")}
    found = Computation().convolve(parameters, jnp.asarray(x), stride=2, padding=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_folded_parameters_survive_the_way_to_pytorch_and_back() -> None:
    parameters = from_pytorch(drawn_checkpoint(SMALL), with_heads(SMALL), "drawn weights")
    again = from_pytorch(to_pytorch(parameters, SMALL), with_heads(SMALL), "drawn weights")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), parameters, again)


def test_names_of_the_robustness_library() -> None:
    tensors = drawn_checkpoint(SMALL)
    file = {f"module.model.{name}": tensor for name, tensor in tensors.items()}
    file |= {f"module.attacker.model.{name}": tensor for name, tensor in tensors.items()}
    file |= {
        name: np.ones((3, 1, 1), np.float32)
        for name in ("module.normalizer.new_mean", "module.attacker.normalize.new_std")
    }
    file["module.model.fc.weight"] = np.ones((10, 512), np.float32)
    expected = from_pytorch(tensors, with_heads(SMALL), "drawn weights")
    found = from_pytorch(file, with_heads(SMALL), "drawn weights")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_negative_variance_is_refused() -> None:
    tensors = drawn_checkpoint(SMALL)
    tensors["layer3.0.bn2.running_var"][3] = -0.5
    with pytest.raises(WeightsMismatch, match=r"layer3\.0\.bn2\.running_var is -0\.5, but variances are >= 0"):
        from_pytorch(tensors, with_heads(SMALL), "drawn weights")


@pytest.mark.slow
def test_gradients_are_finite_and_recomputation_changes_nothing(drawn: Callable[..., Any]) -> None:
    metric = drawn(SMALL)
    random = np.random.default_rng(0)
    x = random.uniform(size=(3, 33, 40, 3)).astype(np.float32)
    y = x.copy()
    y[1], y[2] = random.uniform(size=x[1].shape), 0

    def total(y: jax.Array, metric: Any) -> tuple[jax.Array, jax.Array]:
        distances = rl.distance(jnp.asarray(x), y, metric)
        return distances.sum(), distances

    gradient, distances = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(y), metric)
    assert distances[0] == 0
    assert (distances[1:] > 0).all()
    assert np.isfinite(gradient).all()
    again, _ = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(y), replace(metric, remat=True))
    np.testing.assert_allclose(again, gradient, rtol=1e-4, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.slow
def test_images_of_several_sizes_in_one_batch(drawn: Callable[..., Any]) -> None:
    metric = drawn(SMALL)
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(2, 2, 40, 48, 3)).astype(np.float32)
    sizes = np.array([[40, 48], [23, 34]])
    found = metric.padded_distance(x, y, sizes)
    expected = [rl.distance(x[i, :h, :w], y[i, :h, :w], metric) for i, (h, w) in enumerate(sizes)]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5)


@pytest.mark.slow
def test_an_ensemble_over_it(drawn: Callable[..., Any]) -> None:
    """Which transforms the images and drops inputs of every convolution."""
    ensemble = rl.Ensemble(drawn(SMALL))
    x = np.random.default_rng(0).uniform(size=(32, 32, 3)).astype(np.float32)
    y = np.clip(x + 0.05, 0, 1)
    distance = rl.distance(x, y, ensemble, key=jax.random.key(0), samples=2)
    assert np.isfinite(distance)
    assert distance > 0
    assert rl.distance(x, x, ensemble, key=jax.random.key(0), samples=2) == 0

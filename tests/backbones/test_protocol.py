"""Every network of the table keeps the protocol, and a new one needs nothing else."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import rlpips_jax as rl
from convert.program import main
from rlpips_jax.backbones import (
    BACKBONES,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    IMAGENET,
    SQUEEZE_FLOOR,
    Backbone,
    Computation,
    Scaling,
    StagedBackbone,
)
from rlpips_jax.backbones.convnext import ConvNeXt
from rlpips_jax.backbones.vit import ViT
from rlpips_jax.distances import lpips
from rlpips_jax.errors import MetricError
from rlpips_jax.files.official import Official
from rlpips_jax.weights import registry
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import write_checkpoint

EVERY = [*BACKBONES.values(), ELPIPS_VGG, ELPIPS_SQUEEZE, SQUEEZE_FLOOR]
each = pytest.mark.parametrize("backbone", EVERY, ids=lambda backbone: f"{backbone.name}-{len(backbone.tapped)}")


def checkpoint(backbone: Backbone) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in backbone.pytorch_shapes.items()}


def shrunk(backbone: Backbone) -> Backbone:
    """A network of the same kind, of less than hundreds of megabytes."""
    if isinstance(backbone, ViT):
        return replace(backbone, width=24, depth=2, heads=2, tapped=(0, 1))
    if isinstance(backbone, ConvNeXt):
        return replace(backbone, widths=(8, 12, 16, 20), depths=(1, 1, 2, 1))
    return backbone


@each
def test_facts(backbone: Backbone) -> None:
    assert isinstance(backbone, Backbone)
    assert BACKBONES[backbone.name].shapes == backbone.shapes
    assert len(backbone.tapped) == len(set(backbone.tapped)) == len(backbone.channels)
    assert tuple(json.loads(json.dumps(backbone.tapped))) == backbone.tapped
    assert f"backbone={backbone.name} " in backbone.signature
    assert f"taps={len(backbone.tapped)}" in backbone.signature
    assert all(0 < value < 1 for value in (*backbone.scaling.mean, *backbone.scaling.deviation))


def test_backbones_are_values() -> None:
    """So compiled programs are shared by those that are equal, and by those alone."""
    assert len({*EVERY, *pickle.loads(pickle.dumps(EVERY))}) == len(EVERY)
    assert len({backbone.signature for backbone in EVERY}) == len(EVERY)


@each
def test_taps_have_their_channels_at_the_minimum_size(backbone: Backbone) -> None:
    """Shapes are evaluated, so the claim is checked on the network itself."""
    backbone = shrunk(backbone)
    parameters = from_pytorch(checkpoint(backbone), with_heads(backbone), "drawn weights")["backbone"]
    images = jax.ShapeDtypeStruct((1, backbone.minimum_size, backbone.minimum_size, 3), jnp.float32)
    taps = jax.eval_shape(lambda p, x: backbone.taps(p, x, Computation(dtype="bfloat16")), parameters, images)
    assert tuple(tap.shape[-1] for tap in taps) == backbone.channels
    assert all(min(tap.shape) >= 1 and tap.dtype == jnp.bfloat16 for tap in taps)
    if isinstance(backbone, StagedBackbone):
        assert len(backbone.stages()) == len(taps)
        hash(backbone.stages())


@each
def test_pytorch_s_tensors_become_the_parameters_and_come_back(backbone: Backbone) -> None:
    backbone = shrunk(backbone)
    parameters = backbone.from_pytorch(checkpoint(backbone))
    assert {name: tensor.shape for name, tensor in parameters.items()} == backbone.shapes
    assert all(tensor.dtype == np.float32 for tensor in parameters.values())
    tensors = backbone.to_pytorch(parameters)
    assert {name: tensor.shape for name, tensor in tensors.items()} == backbone.pytorch_shapes
    again = backbone.from_pytorch(tensors)
    for name, tensor in parameters.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-6)


OFFICIAL = Official("two.pth", "https://example.org/two.pth", "0" * 64, 9, "MIT", "Nobody")


@dataclass(frozen=True)
class Two:
    """Two convolutions: a backbone of a user, which gives taps and facts and does not run in stages."""

    name: str = "two"
    tapped: tuple[str, ...] = ("first", "second")
    channels: tuple[int, ...] = (4, 6)
    minimum_size: int = 3
    scaling: Scaling = IMAGENET
    signature: str = "backbone=two taps=2"
    unused: str = r"fc\."
    official: Official | None = OFFICIAL

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"a.kernel": (3, 3, 3, 4), "a.bias": (4,), "b.kernel": (1, 1, 4, 6), "b.bias": (6,)}

    @property
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"a.weight": (4, 3, 3, 3), "a.bias": (4,), "b.weight": (6, 4, 1, 1), "b.bias": (6,)}

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            "a.kernel": tensors["a.weight"].transpose(2, 3, 1, 0),
            "a.bias": tensors["a.bias"],
            "b.kernel": tensors["b.weight"].transpose(2, 3, 1, 0),
            "b.bias": tensors["b.bias"],
        }

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def taps(self, parameters: Any, images: Array, computation: Computation) -> tuple[Array, ...]:
        first = nn.relu(computation.convolve(parameters["a"], images.astype(computation.dtype), stride=2))
        return first, nn.relu(computation.convolve(parameters["b"], first))


def test_a_new_backbone_is_converted_listed_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    monkeypatch.setitem(BACKBONES, "two", Two())
    monkeypatch.setitem(registry.BACKBONE_PARTS, "two", registry.backbone_part(Two()))
    for name, recipe in lpips.baselines(Two()).items():
        monkeypatch.setitem(lpips.RECIPES, name, recipe)
    tensors = checkpoint(Two())
    write_checkpoint(tmp_path / "a.pth", {**tensors, "fc.weight": np.ones((3, 6), np.float32)})
    assert main(["--weights", str(tmp_path / "a.pth"), "--out", str(tmp_path)]) == 0
    assert "rlpips_jax.load('baseline-two'" in capsys.readouterr().out
    metric = rl.load("baseline-two", weights_dir=tmp_path)
    images = np.random.default_rng(0).uniform(size=(2, 9, 8, 3)).astype(np.float32)
    distance, gradient = jax.value_and_grad(lambda x: rl.distance(x, images[1], metric))(jnp.asarray(images[0]))
    assert distance > 0
    assert np.isfinite(gradient).all()
    status, out, _ = command("weights", "list", "--weights-dir", tmp_path)
    assert status == 0
    assert "baseline-two" in out
    assert not metric.can_pad
    with pytest.raises(MetricError, match="compares images of one size"):
        metric.padded_distance(images, images, np.array([[9, 8], [8, 7]]))

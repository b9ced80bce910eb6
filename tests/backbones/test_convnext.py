"""ConvNeXt: published sizes, names of two programs, and PyTorch's numbers on drawn weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.backbones import CLIP, CONVNEXT_B, OPENCLIP_CONVNEXT_B, Computation, EmbeddingBackbone
from rlpips_jax.backbones.convnext import ConvNeXt
from rlpips_jax.weights.parameters import Layout, from_pytorch

SMALL = ConvNeXt("small", widths=(8, 12, 16, 20), depths=(1, 1, 2, 1), size=32)
TOWER = ConvNeXt("tower", widths=(8, 12, 16, 20), depths=(1, 1, 2, 1), dimension=10, size=32, scaling=CLIP)


def parameters_of(tensors: Any, backbone: Any) -> Any:
    """The parameters of a network, from a file with these tensors."""
    return jax.tree.map(jnp.asarray, from_pytorch(tensors, Layout(backbone), "a file")["backbone"])


def images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (2, size, size + 5, 3)).astype(np.float32)


def test_networks_have_the_published_number_of_parameters() -> None:
    """88,591,464 less the classifier's 1,025,000; and a map to 640 numbers."""
    count = 88_591_464 - 1_025_000
    for backbone, expected in ((CONVNEXT_B, count), (OPENCLIP_CONVNEXT_B, count + 1024 * 640)):
        assert sum(math.prod(shape) for shape in backbone.pytorch_shapes.values()) == expected
        assert isinstance(backbone, EmbeddingBackbone)
    assert OPENCLIP_CONVNEXT_B.pytorch_shapes["trunk.stages.2.blocks.26.conv_dw.weight"] == (512, 1, 7, 7)
    assert OPENCLIP_CONVNEXT_B.pytorch_shapes["head.proj.weight"] == (640, 1024)
    assert CONVNEXT_B.pytorch_shapes["stages.3.downsample.1.weight"] == (1024, 512, 2, 2)


@pytest.mark.torch
def test_agrees_with_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=SMALL.widths, depths=SMALL.depths, layer_norm_eps=1e-6)
    model = transformers.ConvNextModel(config).eval()
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        deviation = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.5
        parameter.data = torch.tensor(random.normal(0, deviation, parameter.shape), dtype=torch.float32)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    classifier = {"classifier.weight": np.zeros((9, 20), np.float32)}
    for prefix in ("", "convnext."):  # of the model, and in one with a classifier
        named = {prefix + name: tensor for name, tensor in state.items()} | classifier
        parameters = parameters_of(named, SMALL)
    x = images(37)
    with torch.no_grad():
        hidden = model(torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states[1:]
        pooled = model(torch.tensor(x[:, :32, :32]).permute(0, 3, 1, 2)).pooler_output
    taps = SMALL.taps(parameters, jnp.asarray(x), Computation())
    for tap, expected in zip(taps, hidden, strict=True):
        np.testing.assert_allclose(tap, expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    embedding = SMALL.embedding(parameters, jnp.asarray(x[:, :32, :32]), Computation())
    np.testing.assert_allclose(embedding, pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
def test_agrees_with_openclip_s_modules() -> None:
    """A tower put together of PyTorch's modules under timm's and OpenCLIP's names."""
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    def norm(module: Any, x: Any) -> Any:
        """Over the channels of (n, c, h, w)."""
        return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def named(**modules: Any) -> Any:
        module = nn.Module()
        for name, part in modules.items():
            module.add_module(name, part)
        return module

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.LayerNorm(width, eps=1e-6)
            self.mlp = named(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
            self.gamma = nn.Parameter(torch.ones(width))

        def forward(self, x: Any) -> Any:
            y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
            y = self.mlp.fc2(functional.gelu(self.mlp.fc1(y))) * self.gamma
            return x + y.permute(0, 3, 1, 2)

    def stage(inputs: int, width: int, depth: int) -> Any:
        cut = nn.Identity()
        if inputs != width:
            cut = nn.Sequential(nn.LayerNorm(inputs, eps=1e-6), nn.Conv2d(inputs, width, 2, 2))
        return named(downsample=cut, blocks=nn.Sequential(*(Block(width) for _ in range(depth))))

    widths = TOWER.widths
    trunk = named(
        stem=nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), nn.LayerNorm(widths[0], eps=1e-6)),
        stages=nn.Sequential(*map(stage, (widths[0], *widths[:-1]), widths, TOWER.depths)),
        head=named(norm=nn.LayerNorm(widths[-1], eps=1e-6)),
    )
    tower = named(trunk=trunk, head=named(proj=nn.Linear(widths[-1], 10, bias=False))).eval()
    random = np.random.default_rng(0)
    for parameter in tower.parameters():
        deviation = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.5
        parameter.data = torch.tensor(random.normal(0, deviation, parameter.shape), dtype=torch.float32)
    state = {name: tensor.numpy() for name, tensor in tower.state_dict().items()}
    parameters = parameters_of(state, TOWER)
    x = images()[:, :32, :32]
    with torch.no_grad():
        y = norm(trunk.stem[1], trunk.stem[0](torch.tensor(x).permute(0, 3, 1, 2)))
        for number, part in enumerate(trunk.stages):
            y = part.downsample[1](norm(part.downsample[0], y)) if number else y
            y = part.blocks(y)
        expected = tower.head.proj(trunk.head.norm(y.mean((2, 3))))
    found = TOWER.embedding(parameters, jnp.asarray(x), Computation())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

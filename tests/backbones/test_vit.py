"""CLIP's vision transformers: published sizes, names of two programs, and PyTorch's numbers on drawn weights."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlpips_jax.backbones import CLIP_VIT_B16, CLIP_VIT_B32, Computation, EmbeddingBackbone
from rlpips_jax.backbones.vit import ViT
from rlpips_jax.weights.parameters import Layout, from_pytorch

SMALL = ViT("small", patch=8, tapped=(0, 1), width=32, depth=2, heads=2, dimension=16, size=32, quick_gelu=True)


def drawn(backbone: Any) -> dict[str, np.ndarray]:
    """Weights of a size at which nothing is nearly linear, by PyTorch's names."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5, shape).astype(np.float32)
        for name, shape in backbone.pytorch_shapes.items()
    }


def parameters_of(tensors: Any, backbone: Any) -> Any:
    """The parameters of a network, from a file with these tensors."""
    return jax.tree.map(jnp.asarray, from_pytorch(tensors, Layout(backbone), "a file")["backbone"])


def images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (2, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("backbone", "count"),
    # OpenAI's image towers: 87,849,216 and 86,192,640.
    [(CLIP_VIT_B32, 87_849_216), (CLIP_VIT_B16, 86_192_640)],
    ids=lambda value: getattr(value, "name", None),
)
def test_networks_have_the_published_number_of_parameters(backbone: ViT, count: int) -> None:
    assert sum(math.prod(shape) for shape in backbone.pytorch_shapes.values()) == count
    assert isinstance(backbone, EmbeddingBackbone)
    assert backbone.pytorch_shapes["transformer.resblocks.11.attn.in_proj_weight"] == (2304, 768)
    assert backbone.pytorch_shapes["proj"] == (768, 512)


def test_images_of_another_size_are_resized() -> None:
    parameters = parameters_of(drawn(SMALL), SMALL)
    x = np.kron(images(32), np.ones((1, 2, 2, 1), np.float32))
    shapes = [tap.shape for tap in SMALL.taps(parameters, jnp.asarray(x), Computation())]
    assert shapes == [(2, 4, 4, 32), (2, 4, 4, 32)]
    embedding = SMALL.embedding(parameters, jnp.asarray(x), Computation())
    near = SMALL.embedding(parameters, jnp.asarray(images(32)), Computation())
    assert np.corrcoef(embedding[0], near[0])[0, 1] > 0.9


def test_a_file_of_both_towers() -> None:
    """OpenCLIP's names of the tower of texts are those of the tower of images, without `visual.`."""
    tensors = drawn(SMALL)
    texts: dict[str, Any] = {
        name: np.ones((3, 4), np.float32) for name in ("positional_embedding", "ln_final.weight", "logit_scale")
    }
    texts["transformer.resblocks.0.ln_1.weight"] = np.ones(9, np.float32)
    file = texts | {f"visual.{name}": tensor for name, tensor in tensors.items()}
    for both in (file, {f"module.{name}": tensor for name, tensor in file.items()}):
        found = parameters_of(both, SMALL)
        np.testing.assert_array_equal(found["proj"]["kernel"], tensors["proj"])


def test_names_of_dino_s_transformer() -> None:
    """As which DreamSim publishes a tower: a batch axis before tokens, and a bias of 0 in the first convolution."""
    tensors = drawn(SMALL)
    rules = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1.": "patch_embed.proj.",
        "ln_pre.": "pos_drop.",
        "ln_post.": "norm.",
        "transformer.resblocks.": "blocks.",
        ".ln_": ".norm",
        "in_proj_": "qkv.",
        "out_proj.": "proj.",
        "c_fc.": "fc1.",
        "c_proj.": "fc2.",
    }
    other: dict[str, Any] = {}
    for name, tensor in tensors.items():
        for old, new in rules.items():
            name = name.replace(old, new)
        other[name] = tensor[None] if name == "pos_embed" else tensor
    other["cls_token"] = other["cls_token"][None, None]
    other["patch_embed.proj.bias"] = np.zeros(32, np.float32)
    renamed = SMALL.renamed(other)
    assert renamed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(renamed[name], tensor)


@pytest.mark.torch
@pytest.mark.parametrize("quick", [True, False])
def test_agrees_with_transformers(quick: bool) -> None:
    """Names, taps and embedding, with QuickGELU and with GELU."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    backbone = replace(SMALL, quick_gelu=quick)
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu" if quick else "gelu",
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        deviation = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.5
        parameter.data = torch.tensor(random.normal(0, deviation, parameter.shape), dtype=torch.float32)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    parameters = parameters_of(state, backbone)
    x = images()
    with torch.no_grad():
        found = model(torch.tensor(x).permute(0, 3, 1, 2), output_hidden_states=True)
    taps = backbone.taps(parameters, jnp.asarray(x), Computation())
    for tap, hidden in zip(taps, found.hidden_states[1:], strict=True):
        np.testing.assert_allclose(tap, hidden[:, 1:].reshape(2, 4, 4, 32), rtol=1e-5, atol=1e-5)
    embedding = backbone.embedding(parameters, jnp.asarray(x), Computation())
    np.testing.assert_allclose(embedding, found.image_embeds, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
def test_agrees_with_openclip_s_modules() -> None:
    """A tower put together of PyTorch's modules under OpenCLIP's names."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.attn = nn.MultiheadAttention(32, 2, batch_first=True)
            self.mlp = nn.Sequential()
            for name, module in {"c_fc": nn.Linear(32, 128), "gelu": nn.GELU(), "c_proj": nn.Linear(128, 32)}.items():
                self.mlp.add_module(name, module)

        def forward(self, x: Any) -> Any:
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    tower = nn.Module()
    tower.conv1 = nn.Conv2d(3, 32, 8, 8, bias=False)
    tower.class_embedding = nn.Parameter(torch.zeros(32))
    tower.positional_embedding = nn.Parameter(torch.zeros(17, 32))
    tower.ln_pre, tower.ln_post = nn.LayerNorm(32), nn.LayerNorm(32)
    tower.transformer = nn.Module()
    tower.transformer.resblocks = nn.Sequential(Block(), Block())
    tower.proj = nn.Parameter(torch.zeros(32, 16))
    tower.eval()
    backbone = replace(SMALL, quick_gelu=False)
    tensors = drawn(backbone)
    tower.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    x = images()
    with torch.no_grad():
        tokens = tower.conv1(torch.tensor(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        tokens = torch.cat([tower.class_embedding.expand(2, 1, 32), tokens], dim=1) + tower.positional_embedding
        tokens = tower.transformer.resblocks(tower.ln_pre(tokens))
        expected = tower.ln_post(tokens[:, 0]) @ tower.proj
    parameters = parameters_of(tensors, backbone)
    found = backbone.embedding(parameters, jnp.asarray(x), Computation())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(("before", "after"), [(57, 32), (20, 33)])
def test_resizing_agrees_with_pytorch(before: int, after: int) -> None:
    torch = pytest.importorskip("torch")
    from rlpips_jax.ops.resize import resize_bicubic

    x = images(before)
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    expected = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), (after, after + 3), **options)
    found = jax.jit(resize_bicubic, static_argnums=(1, 2))(jnp.asarray(x), after, after + 3)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-5)

"""Networks whose embeddings are compared, from files of several programs to metrics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from convert.program import main
from rlpips_jax.backbones.vit import ViT
from rlpips_jax.distances import embedding
from rlpips_jax.errors import MetricError, WeightsNotFound
from rlpips_jax.weights import registry
from rlpips_jax.weights.parameters import Layout
from rlpips_jax.weights.pytorch import write_checkpoint

SMALL = ViT("small-vit", patch=8, tapped=(0, 1), width=32, depth=2, heads=2, dimension=16, size=32)
QUICK = replace(SMALL, name="small-quick", quick_gelu=True)
X, Y = np.random.default_rng(1).uniform(size=(2, 40, 48, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks, alike but for their activation, stand in the tables."""
    for backbone in (SMALL, QUICK):
        part = registry.backbone_part(backbone)
        monkeypatch.setitem(registry.BACKBONE_PARTS, part.name, part)
        recipe = registry.Recipe(part.name, Layout(backbone), (part,), {"centred": False})
        monkeypatch.setitem(embedding.RECIPES, part.name, recipe)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An OpenCLIP with both towers."""
    random = np.random.default_rng(0)
    tensors = {
        f"visual.{name}": random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in SMALL.pytorch_shapes.items()
    }
    texts = {
        "positional_embedding": (7, 9),
        "token_embedding.weight": (5, 9),
        "transformer.resblocks.0.ln_1.bias": (9,),
    }
    tensors |= {name: np.ones(shape, np.float32) for name, shape in texts.items()}
    write_checkpoint(tmp_path / "open_clip.pt", tensors)
    return tmp_path / "open_clip.pt"


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def test_a_file_becomes_a_metric(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for architecture in ("small-vit", "small-quick"):
        assert run("--architecture", architecture, "--checkpoint", file, "--out", tmp_path / "out") == 0
        assert f"rlpips_jax.load('{architecture}', weights_dir=" in capsys.readouterr().out
    metric = rl.load("small-vit", weights_dir=tmp_path / "out")
    distance = float(rl.distance(X, Y, metric))
    assert distance > 0
    assert float(rl.distance(X, Y, rl.load("small-quick", weights_dir=tmp_path / "out"))) != distance
    assert rl.distance(X, Y, rl.load(tmp_path / "out" / "small-vit.safetensors")) == distance
    assert run("--architecture", "small-vit", "--name", "mine", "--checkpoint", file, "--out", tmp_path / "out") == 0
    mine = rl.load(tmp_path / "out" / "mine.safetensors")
    assert rl.distance(X, Y, mine) == distance
    assert mine.name == "mine"
    rl.save(mine, tmp_path / "saved.safetensors")
    assert rl.distance(X, Y, rl.load(tmp_path / "saved.safetensors")) == distance


def test_what_a_file_does_not_say_is_asked_for(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--checkpoint", file, "--out", tmp_path / "out") == 2
    assert "resembles the network small-vit or small-quick: give --architecture" in capsys.readouterr().err
    arguments = ("--name", "small-vit", "--checkpoint", file, "--out", tmp_path / "out")
    assert run("--architecture", "small-quick", *arguments) == 2
    assert "small-vit has the network small-vit, but --architecture is small-quick" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_metrics_without_a_file_say_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="python -m convert --name dreamsim-openclip-vit-b32 --checkpoint FILE"):
        rl.load("dreamsim-openclip-vit-b32", weights_dir=tmp_path)


def test_there_are_no_heads(file: Path, tmp_path: Path) -> None:
    assert run("--architecture", "small-vit", "--checkpoint", file, "--out", tmp_path) == 0
    with pytest.raises(MetricError, match="small-vit compares embeddings and has no heads"):
        rl.load("small-vit", weights_dir=tmp_path, unweighted=True)

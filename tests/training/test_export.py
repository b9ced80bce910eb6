"""The trained metric as files: the library and the `lpips` package's format read back what was trained."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from convert.program import main as convert
from rlpips_jax.backbones import ELPIPS_SQUEEZE, SQUEEZE, TINY, TINY_WIDE
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TrainingError
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from training.export import export, has_official_backbone, path_of, rescaled
from training.step import with_parameters

CARD = {"trained": {"mode": "tune", "epsilon": "2/255"}, "data": ["6 of photographs"], "scores": {}}


def equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def squeeze(drawn) -> Lpips:
    return drawn(SQUEEZE)


@pytest.fixture(scope="module")
def tiny() -> Lpips:
    return rl.load("lpips-tiny")


@pytest.fixture(scope="module")
def written(squeeze, tmp_path_factory) -> SimpleNamespace:
    """Files of a metric whose backbone was trained."""
    path = path_of(squeeze, tmp_path_factory.mktemp("run"), robust=True)
    return SimpleNamespace(path=path, files=export(squeeze, path, with_backbone=True, card=CARD))


def test_both_files_hold_what_was_trained(written, squeeze) -> None:
    assert [file.name for file in written.files] == ["rlpips-squeeze.safetensors", "rlpips-squeeze.pth"]
    expected = jax.device_get(squeeze.parameters)
    equal(native.read(written.path, with_heads(SQUEEZE))[0], expected)
    equal(from_pytorch(read_checkpoint(written.files[1]), with_heads(SQUEEZE), "the checkpoint"), expected)
    loaded = rl.load(written.path)
    equal(jax.device_get(loaded.parameters), expected)
    assert loaded.name == "rlpips-squeeze"


def test_convert_reads_the_checkpoint_back(written, squeeze, tmp_path) -> None:
    assert convert(["--checkpoint", str(written.files[1]), "--name", "mine", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("mine*.safetensors")
    equal(native.read(path, with_heads(SQUEEZE))[0], jax.device_get(squeeze.parameters))


def test_the_card_is_in_the_file(written) -> None:
    metadata = native.read_metadata(written.path)
    assert json.loads(metadata["card"]) == CARD
    assert metadata["metric"] == "rlpips-squeeze"
    assert metadata["licence"] == "Apache-2.0"


def test_a_backbone_that_was_not_trained_stays_out(squeeze, tmp_path) -> None:
    path = path_of(squeeze, tmp_path, robust=False)
    assert path.name == "lpips-squeeze.safetensors"
    files = export(squeeze, path, with_backbone=False, card=CARD)
    found, _ = native.read(path, with_heads(SQUEEZE))
    assert found.keys() == {"heads"}
    equal(found["heads"], jax.device_get(squeeze.parameters["heads"]))
    names = set(read_checkpoint(files[1]))
    assert len(names) >= 7
    assert all(name.startswith("lin") for name in names)


def test_floors_cannot_be_said_in_a_checkpoint(squeeze, tmp_path) -> None:
    floors = tuple(np.float32(0.1 * index) for index in range(1, 8))
    path = path_of(squeeze, tmp_path, robust=True)
    assert export(with_parameters(squeeze, floors=floors), path, with_backbone=False, card=CARD) == [path]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    equal(native.read(path, with_heads(SQUEEZE))[0]["floors"], floors)


def test_a_network_that_nobody_publishes_travels_with_its_heads(tiny, tmp_path) -> None:
    path = path_of(tiny, tmp_path, robust=True)
    assert export(tiny, path, with_backbone=False, card=CARD) == [path]
    equal(native.read(path, with_heads(TINY))[0], jax.device_get(tiny.parameters))


@pytest.mark.parametrize("backbone", [TINY, TINY_WIDE], ids=lambda backbone: backbone.name)
def test_both_networks_of_a_name_are_read_back(drawn, tmp_path, backbone) -> None:
    metric = dataclasses.replace(drawn(backbone), name="lpips-tiny")
    path = path_of(metric, tmp_path, robust=True)
    assert path.name == "rlpips-tiny.safetensors"
    export(metric, path, with_backbone=True, card=CARD)
    loaded = rl.load(path)
    assert loaded.backbone == backbone
    equal(jax.device_get(loaded.parameters), jax.device_get(metric.parameters))


def test_what_an_ensemble_learnt_is_loaded_as_one(drawn, tmp_path) -> None:
    """Its SqueezeNet has other layers than LPIPS's, and checkpoints of the `lpips` package know those alone."""
    ensemble = rl.Ensemble(drawn(ELPIPS_SQUEEZE))
    path = path_of(ensemble, tmp_path, robust=False)
    assert path.name == "elpips-squeeze.safetensors"
    assert export(ensemble.metric, path, with_backbone=True, card=CARD) == [path]
    loaded = rl.load(path)
    assert isinstance(loaded, rl.Ensemble)
    equal(jax.device_get(loaded.metric.parameters), jax.device_get(ensemble.metric.parameters))


def test_another_version_has_no_name(squeeze, tmp_path) -> None:
    """Loaded by the name of the current version it would scale the channels, which it was not trained with."""
    with pytest.raises(TrainingError, match=r"version 0\.0"):
        path_of(dataclasses.replace(squeeze, version="0.0"), tmp_path, robust=True)


def test_a_backbone_is_official_by_its_values(squeeze, tmp_path) -> None:
    backbone = jax.device_get(squeeze.parameters["backbone"])
    native.write(tmp_path / "squeeze.safetensors", {"backbone": backbone}, with_heads(SQUEEZE))
    assert has_official_backbone(squeeze, tmp_path)
    other = jax.tree.map(lambda leaf: leaf * 1.001, backbone)
    assert not has_official_backbone(with_parameters(squeeze, backbone=other), tmp_path)
    # Nobody publishes one for this network.
    assert not has_official_backbone(rl.load("lpips-tiny"), tmp_path)


def test_a_metric_of_another_form_has_no_name(squeeze, tmp_path) -> None:
    other = dataclasses.replace(squeeze, backbone=dataclasses.replace(SQUEEZE, tapped=SQUEEZE.tapped[:3]))
    with pytest.raises(TrainingError, match=r"network squeeze, version 0\.1.*could not be loaded by any name"):
        path_of(other, tmp_path, robust=True)


def draw_triplets(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in ("reference", "p0", "p1")} for _ in range(count)
    ]


def test_distances_keep_their_scale(tiny) -> None:
    triplets = draw_triplets(3)
    # Identical images have no ratio.
    triplets.append(dict.fromkeys(("reference", "p0", "p1"), triplets[0]["reference"]))
    larger = with_parameters(tiny, heads=tuple(7 * head for head in tiny.parameters["heads"]))
    for found, expected in zip(
        rescaled(larger, tiny, triplets).parameters["heads"], tiny.parameters["heads"], strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_scale_is_that_of_the_median(tiny) -> None:
    heads = tiny.parameters["heads"]
    trained = with_parameters(tiny, heads=(3 * heads[0], *(head / 2 for head in heads[1:])))
    scaled, triplets = rescaled(trained, tiny, draw_triplets(4)), draw_triplets(4)
    pairs = [(one["reference"], one[side]) for one in triplets for side in ("p0", "p1")]
    references, others = (np.stack(column) for column in zip(*pairs, strict=True))
    ratios = np.asarray(rl.distance(references, others, scaled)) / np.asarray(rl.distance(references, others, tiny))
    assert np.median(1 / ratios) == pytest.approx(1, rel=1e-5)
    factor = np.asarray(scaled.parameters["heads"][0] / trained.parameters["heads"][0])
    np.testing.assert_allclose(factor[np.isfinite(factor)], np.nanmedian(factor), rtol=1e-5)


def test_nothing_to_go_by_changes_nothing(tiny) -> None:
    equal(rescaled(tiny, tiny, []).parameters, tiny.parameters)

"""The registry is consistent, and its facts about official files are true."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest

from rlpips_jax.backbones import ALEX, BACKBONES, SQUEEZE, SQUEEZE_FLOOR, VGG, EmbeddingBackbone
from rlpips_jax.distances import lpips
from rlpips_jax.ensemble import ensemble
from rlpips_jax.errors import UnknownMetric
from rlpips_jax.loading import FAMILIES, EmbeddingName, EnsembleName, LpipsPlusName, find, parts, recipes
from rlpips_jax.weights import registry, store
from rlpips_jax.weights.parameters import digest, from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint
from rlpips_jax.weights.registry import BACKBONE, BACKBONE_PARTS, Part

PARTS = parts()
OFFICIAL = [part for part in PARTS.values() if part.official]


def test_names_are_unique() -> None:
    every = [part for recipe in RECIPES.values() for part in recipe.parts]
    assert all(PARTS[part.name] == part for part in every)
    assert PARTS.keys() >= BACKBONE_PARTS.keys()
    for table in (BACKBONE_PARTS, RECIPES, *(family.recipes for family in FAMILIES.values())):
        assert all(item.name == name for name, item in table.items())
    assert len(RECIPES) == sum(len(family.recipes) for family in FAMILIES.values())
    digests = [part.official.sha256 for part in OFFICIAL if part.official]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("family", "names"), [("elpips", EnsembleName), ("embedding", EmbeddingName), ("lpips+", LpipsPlusName)]
)
def test_the_types_of_load_know_every_name(family: str, names: Any) -> None:
    assert set(get_args(names)) == FAMILIES[family].recipes.keys()


def test_names_can_name_files() -> None:
    for name in (*PARTS, *RECIPES):
        assert re.fullmatch(r"[a-z]+\+?(-?[a-z0-9]+)*(@[a-z0-9.]+)?", name)


@pytest.mark.parametrize("part", OFFICIAL, ids=lambda part: part.name)
def test_official_files_are_described_well(part: Part) -> None:
    official = part.official
    assert official is not None
    assert re.fullmatch(r"[0-9a-f]{64}", official.sha256)
    assert 1_000 < official.size < 2**30
    assert urlsplit(official.url).scheme == "https"
    assert official.url.endswith(f"/{official.file_name}")
    assert official.path.endswith(official.file_name)
    assert official.licence in ("BSD-2-Clause", "BSD-3-Clause", "MIT")
    assert len(official.citation) > 40
    # torchvision puts the first digits of the hash into the name.
    stated = re.search(r"-([0-9a-f]{8})\.pth$", official.file_name)
    assert stated or not official.url.startswith("https://download.pytorch.org")
    assert stated is None or official.sha256.startswith(stated[1])


RECIPES = recipes()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_recipes_fit_together(recipe: registry.Recipe) -> None:
    for part in recipe.parts:
        assert {path.partition(".")[0] for path in part.layout.shapes} >= set(part.holds)
        # Taps and pooling of a backbone alone may differ; the parameters may not.
        assert part.backbone.shapes == recipe.backbone.shapes
        assert part.backbone.name == recipe.backbone.name
        assert part.holds == BACKBONE or part.backbone == recipe.backbone
    # A metric without an official backbone ships with its own.
    assert any("backbone" in part.holds or part.shipped for part in recipe.parts)


def test_versions() -> None:
    for name, recipe in (lpips.RECIPES | ensemble.RECIPES).items():
        assert recipe.settings["version"] == ("0.0" if name.endswith("@0.0") else "0.1")
        # An ensemble without heads of its own has those of its metric.
        assert recipe.parts[0].name in (
            name,
            name.removeprefix("e"),
            name.removeprefix("baseline-").removesuffix("@0.0"),
        )


@pytest.mark.parametrize("part", [part for part in PARTS.values() if part.shipped], ids=lambda part: part.name)
def test_shipped_files_are_complete_and_described(part: registry.Part) -> None:
    parameters, metadata = store.obtain(part)
    assert metadata["metric"] == part.name
    assert metadata["parameters_sha256"] == part.parameters_sha256
    assert metadata["licence"] == "Apache-2.0"
    assert all((head >= 0).all() and head.any() for head in parameters["heads"])
    # The card of a metric that was trained under attack tells how.
    if part.name.startswith("rlpips-"):
        groups = {"heads"} if len(RECIPES[part.name].parts) > 1 else {"heads", "backbone"}
        assert parameters.keys() - {"floors"} == groups
        card = json.loads(metadata["card"])
        assert {"data", "scores", "start", "trained"} <= card.keys()
        assert "/" not in "".join(map(str, (card["trained"][name] for name in ("data", "validation", "metric"))))


def test_every_backbone_whose_file_others_published_has_a_baseline() -> None:
    published = (name for name, each in BACKBONES.items() if each.official or isinstance(each, EmbeddingBackbone))
    assert BACKBONE_PARTS.keys() == set(published)
    for name in BACKBONE_PARTS:
        baseline = RECIPES[f"baseline-{name}"]
        assert baseline.parts == (BACKBONE_PARTS[name],)
        assert baseline.backbone == BACKBONES[name]
        assert RECIPES[f"baseline-{name}@0.0"].settings["version"] == "0.0"


@pytest.mark.parametrize("name", ["alex", "vgg", "squeeze"])
def test_the_networks_of_lpips_have_every_metric(name: str) -> None:
    for expected in (f"lpips-{name}", f"lpips-{name}@0.0", f"rlpips-{name}"):
        assert RECIPES[expected].backbone == BACKBONES[name]


def test_pooling_of_e_lpips() -> None:
    assert SQUEEZE.pooling.ceil
    assert not SQUEEZE_FLOOR.pooling.ceil
    assert RECIPES["lpips-squeeze@elpips"].backbone == SQUEEZE_FLOOR
    assert RECIPES["lpips-vgg@elpips"].backbone == VGG
    assert [len(part.backbone.tapped) for part in ensemble.HEADS.values()] == [10, 14]
    for part, kind in zip(ensemble.HEADS.values(), ("max", "average"), strict=True):
        assert f" pooling={kind}-" in part.backbone.signature


def test_find() -> None:
    assert find("lpips-alex").backbone == ALEX
    assert find("lpips-alex@0.1") is find("lpips-alex")
    assert find("lpips-alex@0.0").settings["version"] == "0.0"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("lpips-alexnet", "did you mean lpips-alex "),
        ("LPIPS-VGG", "did you mean lpips-vgg "),
        ("lpips_squeeze", "lpips-squeeze or "),
        ("lpips-alex@0.2", "lpips-alex"),
        ("lpips-alex@0.0@0.1", "lpips-alex@0.0"),
        ("baseline-alx", "baseline-alex"),
        ("zzz", "there are lpips-alex, lpips-vgg, "),
        ("", "there are lpips-alex, lpips-vgg, "),
    ],
)
def test_unknown_names_get_advice(name: str, advice: str) -> None:
    with pytest.raises(UnknownMetric) as caught:
        find(name)
    message = str(caught.value)
    assert message.startswith(f"no metric is called {name!r}; ")
    assert advice in message
    assert re.search(r"[.?] A trained metric is loaded by its file's path$", message)


@pytest.mark.shared
@pytest.mark.parametrize("part", [part for part in OFFICIAL if part.holds == ("heads",)], ids=lambda part: part.name)
def test_official_heads_are_the_published_files(part: Part, shared: Path) -> None:
    official = part.official
    assert official is not None
    kind, _, file = official.path.partition("/")
    name = f"elpips_heads/{file}" if kind == "elpips" else f"lpips_heads/{kind}-{file}"
    content = (shared / "weights" / name).read_bytes()
    assert len(content) == official.size
    assert hashlib.sha256(content).hexdigest() == official.sha256
    parameters = from_pytorch(read_checkpoint(shared / "weights" / name), with_heads(part.backbone), name)
    assert parameters.keys() == {"heads"}
    assert digest(parameters) == part.parameters_sha256


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alex", "alexnet-features.pth"),
        ("vgg", "vgg16-features.pth"),
        ("squeeze", "squeezenet1_1-features.pth"),
        ("dists", "dists/weights.pt"),
        ("stlpips-alex", "stlpips/alex_shift_tolerant.pth"),
    ],
)
def test_the_digests_are_those_of_published_files(name: str, file: str, shared: Path) -> None:
    tensors = read_checkpoint(shared / "weights" / file)
    assert digest(from_pytorch(tensors, PARTS[name].layout, file)) == PARTS[name].parameters_sha256

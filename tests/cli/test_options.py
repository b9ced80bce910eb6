"""`--metric`: a user's own metric, and what is said of a place that holds none."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.cli.options import load_metric, memory_size
from rlpips_jax.cli.triplet_options import TripletOptions
from rlpips_jax.errors import MetricError

OWN = """
import jax
import jax.numpy as jnp

@jax.tree_util.register_static
class Colour:
    name, signature, minimum_size = "colour", "colour 1", 2

    def features(self, images, *, value_range=(0.0, 1.0)):
        return jnp.mean(images, axis=(-3, -2)) / (255 if images.dtype == "uint8" else 1)

    def between(self, features, others):
        return abs(features - others).sum(axis=-1)

def make(): return Colour()
def of(strength): return Colour()
class Sizeless: name, signature, features = "sizeless", "1", None
plain = type("Plain", (), dict(vars(Colour)))
metric = Colour()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    name = f"own_metrics_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / "broken_import.py").write_text("import absent_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/", *__import__("sys").path])
    return name


@pytest.mark.parametrize("name", ["make", "metric", "Colour"])
def test_a_metric_of_ones_own(module: str, name: str) -> None:
    assert load_metric(f"{module}:{name}").signature == "colour 1"


def test_commands_of_triplets_take_it_too(module: str) -> None:
    (metric,) = TripletOptions(data=(), metric=(f"{module}:make",)).metrics().values()
    assert metric.signature == "colour 1"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("absent_module:make", "no module absent_module"),
        ("{}.inside:make", "no module {}.inside"),
        ("{}:absent", "has no absent"),
        ("{}:of", "callable without arguments"),
        ("{}:Sizeless", "no minimum_size, between"),
        ("{}:plain", "not a pytree"),
        ("{}:", "PACKAGE.MODULE:NAME"),
        ("my module:make", "PACKAGE.MODULE:NAME"),
    ],
)
def test_what_is_wrong_with_a_place_is_said(module: str, place: str, words: str) -> None:
    with pytest.raises(MetricError) as caught:
        load_metric(place.format(module))
    assert words.format(module) in str(caught.value)


def test_an_error_inside_the_module_is_not_hidden(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="absent_module"):
        load_metric("broken_import:make")


def mean_colours(path: Path) -> np.ndarray:
    return rl.load_image(path).mean(axis=(0, 1)) / 255


def test_a_metric_of_ones_own_scores_images_of_every_size(
    module: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path, draw: Callable[..., Path]
) -> None:
    sizes = [(20, 30), (20, 31), (25, 20)] * 4
    files = [
        [draw(tmp_path / name / f"{at:02}.png", 2 * at + which, size) for which, name in enumerate(("refs", "images"))]
        for at, size in enumerate(sizes)
    ]
    status, out, err = command(
        "distance", "--dirs", tmp_path / "refs", tmp_path / "images", "--json", "--metric", f"{module}:make"
    )
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (document["metric"], document["signature"]) == ("colour", "colour 1")
    expected = [np.abs(mean_colours(one) - mean_colours(other)).sum() for one, other in files]
    found = [result["distance"] for result in document["results"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_metric_of_ones_own_compares_all_pairs(
    module: str, command: Callable[..., tuple[int, str, str]], tmp_path: Path, draw: Callable[..., Path]
) -> None:
    files = [draw(tmp_path / "set" / f"{at:02}.png", at) for at in range(9)]
    status, out, _ = command("distance", "--all-pairs", tmp_path / "set", "--json", "--metric", f"{module}:metric")
    assert status == 0
    results = json.loads(out)["results"]
    assert len(results) == 36
    colours = {str(path): mean_colours(path) for path in files}
    expected = [np.abs(colours[result["reference"]] - colours[result["image"]]).sum() for result in results]
    np.testing.assert_allclose([result["distance"] for result in results], expected, rtol=1e-5)


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("1.5kB", 1500), ("2GiB", 2 << 30), (None, None)])
def test_sizes_of_memory(text: str | None, size: int | None) -> None:
    assert memory_size("--max-memory", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "2 gigs", "-1MB", "2TB"])
def test_what_is_not_a_size_of_memory_is_refused(text: str) -> None:
    with pytest.raises(rl.MetricError, match=r"--max-memory must be a number of bytes, such as 500MiB or 2GiB, got"):
        memory_size("--max-memory", text)

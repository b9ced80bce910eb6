"""Accuracy of classifiers under attack: what the table says is what a classifier does, within the bounds stated."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rlpips_jax.errors import TrainingError
from training.classifier import Classifier, ResidualNetwork, save
from training.data.classes import read_classes
from training.evaluate_classifiers import ATTACKS, EvaluateClassifiers, evaluate_classifiers

SIZE, COUNT = 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images by class, and a classifier that judges by colour."""
    folder = tmp_path_factory.mktemp("classifiers")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        image = rng.integers(100, 140, (SIZE, SIZE, 3))
        image[..., number % 2] += 2 * number
        path = folder / "test" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)
    network = ResidualNetwork(2, (8,), 1)
    parameters = network.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    save(folder / "one" / "classifier.safetensors", Classifier(parameters, network, ("a", "b")), {})
    return folder


def options(folder: Path, out: Path, **changes: Any) -> EvaluateClassifiers:
    small = {"metric": "lpips-tiny", "robust_metric": "rlpips-tiny", "metric_size": 32, "steps": 5, "batch": 4}
    return EvaluateClassifiers(classifier=(folder / "one",), data=str(folder), out=out, **small | changes)


def documents(out: Path) -> dict[str, dict[str, Any]]:
    return {found["attack"]: found for found in (json.loads(path.read_text()) for path in out.glob("*.json"))}


def columns(out: Path, attack: str) -> np.ndarray:
    lines = (out / documents(out)[attack]["columns"]).read_text().splitlines()[1:]
    return np.concatenate([np.array(json.loads(line), float) for line in lines], axis=1)


@pytest.mark.slow
def test_results_are_what_the_classifier_does_within_the_bounds(folder: Path, tmp_path: Path) -> None:
    config = options(folder, tmp_path, attack=("none", "linf", "r-lpa"), scales=(1.0, 0.5))
    table = evaluate_classifiers(config)
    found = documents(tmp_path)
    data = read_classes(folder, "test")
    network = ResidualNetwork(2, (8,), 1)
    parameters = network.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    logits: Any = network.apply({"params": parameters}, data.images / np.float32(255))
    right = np.argmax(logits, axis=1) == data.labels
    assert found["none"]["accuracy"] == pytest.approx(right.mean())
    assert right.mean() > 0
    np.testing.assert_array_equal(columns(tmp_path, "none")[1:], 0)
    attacked = columns(tmp_path, "linf")
    assert np.all(attacked[1] <= 8 / 255 + 1e-6)
    assert found["linf"]["accuracy"] <= found["none"]["accuracy"]
    _, (_, bound) = found["r-lpa"]["bounds"]
    for name, scale in (("r-lpa", 1), ("r-lpa x 0.5", 0.5)):
        assert np.all(columns(tmp_path, name)[4] <= 1.01 * scale * bound)
    assert [line.split()[1] for line in table.splitlines() if line.startswith("one")] == [
        *("none", "linf", "r-lpa", "r-lpa", "union"),
    ]
    union = next(line for line in table.splitlines() if "union" in line)
    safe = np.all([columns(tmp_path, name)[0] for name in ("none", "linf", "r-lpa")], axis=0)
    assert len(safe) == right.sum(), "only what is right is attacked"
    assert f"{safe.sum() / COUNT:.3f} [" in union
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert evaluate_classifiers(config) == table
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_every_attack_of_the_table(folder: Path, tmp_path: Path) -> None:
    evaluate_classifiers(options(folder, tmp_path, steps=2, limit=4))
    assert documents(tmp_path).keys() == ATTACKS.keys()


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path) -> None:
    for changes, says in (
        ({"attack": ("pdg",)}, "no attack is called 'pdg'; there are none, linf"),
        ({"steps": 0}, "--steps must be 1 or more"),
        ({"scales": (1.0, 0.0)}, "--scales must be above 0"),
        ({"scales": (0.5,)}, "and 1 among them"),
    ):
        with pytest.raises(TrainingError, match=says):
            options(folder, tmp_path, **changes)
    (folder / "test" / "c").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(folder / "test" / "c" / "0.png")
    try:
        with pytest.raises(TrainingError, match="knows the classes"):
            evaluate_classifiers(options(folder, tmp_path))
    finally:
        (folder / "test" / "c" / "0.png").unlink()


def test_a_classifier_that_is_never_right_is_told(folder: Path, tmp_path: Path) -> None:
    network = ResidualNetwork(2, (8,), 1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    parameters = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    parameters["Dense_0"]["bias"] = jnp.array([0.0, 1.0])
    save(tmp_path / "b" / "classifier.safetensors", Classifier(parameters, network, ("a", "b")), {})
    config = dataclasses.replace(options(folder, tmp_path, limit=1), classifier=(tmp_path / "b",))
    with pytest.raises(TrainingError, match="b is wrong on all 1 images"):
        evaluate_classifiers(config)

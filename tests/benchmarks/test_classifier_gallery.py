"""Adversarial images at equal success, small."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import classifier_gallery
from benchmarks.bisection import bisected
from benchmarks.classifier_gallery import Gallery, attacked
from rlpips_jax.attacks import AttackResult
from training.classifier import Classifier, ResidualNetwork, load, save


def test_the_smallest_radius_that_succeeds() -> None:
    needed = np.array([0.3, 0.05, 2.0], np.float32)

    def attack(radii: np.ndarray, key: jax.Array) -> AttackResult:
        none = jnp.zeros(3)
        images = jnp.asarray(radii)[:, None, None, None] * jnp.ones((3, 1, 1, 3))
        return AttackResult(
            images, none, none, jnp.minimum(radii, needed), none, jnp.asarray(radii >= needed), none[None]
        )

    radii, images = bisected(attack, 3, largest=1.0, rounds=8)
    assert np.all((radii[:2] >= needed[:2]) & (radii[:2] <= needed[:2] + 1 / 128))
    assert np.isinf(radii[2])
    np.testing.assert_array_equal(images[:2, 0, 0, 0], radii[:2])
    # What it took counts: found at the first try.
    radii, _ = bisected(attack, 3, largest=1.0, rounds=1, took=lambda result: result.linf)
    np.testing.assert_array_equal(radii, [*needed[:2], np.inf])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn classifier of two classes, and images."""
    folder = tmp_path_factory.mktemp("gallery")
    rng = np.random.default_rng(0)
    for number in range(6):
        path = folder / "test" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rl.save_image(path, rng.integers(100, 140, (16, 16, 3), np.uint8))
    network = ResidualNetwork(2, (8,), 1)
    parameters = network.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))["params"]
    save(folder / "classifier.safetensors", Classifier(parameters, network, ("a", "b")), {})
    return folder


def test_what_is_attacked_was_right(folder: Path) -> None:
    config = Gallery(classifier=folder, data=str(folder), count=2)
    classifier = load(folder / "classifier.safetensors")
    data = attacked(config, classifier)
    assert 0 < len(data) <= 2
    logits = classifier(jnp.asarray(data.images / np.float32(255)))
    np.testing.assert_array_equal(np.argmax(logits, axis=1), data.labels)


@pytest.mark.slow
def test_a_picture_and_the_sizes_of_all_attacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small: Any = {"metric": "lpips-tiny", "robust_metric": "rlpips-tiny", "metric_size": 32, "count": 2, "shown": 1}
    config = Gallery(classifier=folder, out=folder / "gallery.png", steps=2, rounds=2, **small)
    classifier_gallery.main(config)
    printed = capsys.readouterr().out.splitlines()
    for name in ("l-inf", "l2", "spatial", "recolor", "PPGD", "R-PPGD", "LPA", "R-LPA"):
        assert sum(line.startswith(name) for line in printed) == 2, name
    assert np.ptp(rl.load_image(config.out)) > 200

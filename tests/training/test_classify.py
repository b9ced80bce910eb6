"""Classifiers: their data, a step under each defence, exact resumption, and their file."""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.distances.resized import Resized
from rlpips_jax.errors import TrainingError
from training import classify
from training.classifier import Classifier, ResidualNetwork, load, save
from training.classify import Batch, Classify, train_classifier
from training.data.classes import read_classes
from training.update import first_state

SIZE = 16
NETWORK = ResidualNetwork(2, (8,), 1)


def encoded(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and green images: train.zip and the folder test."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for number in range(40):
            image = rng.integers(0, 90, (SIZE, SIZE, 3))
            image[..., number % 2] += 120
            archive.writestr(f"{'ab'[number % 2]}/{number:02}.png", encoded(image.astype(np.uint8)))
    with zipfile.ZipFile(folder / "train.zip") as archive:
        archive.extractall(folder / "test")
    return folder


def config(data: Path, out: Path, **options: Any) -> Classify:
    small = {"widths": (8,), "batch": 8, "steps": 4, "evaluate_every": 4, "held_out": 8, "evaluation_steps": 1}
    return Classify(**{"data": str(data), "out": out, "checkpoint_every": 2, **small, **options})


def test_archives_and_folders_hold_the_same(data: Path) -> None:
    archive, folder = (read_classes(data, part) for part in ("train", "test"))
    assert archive.classes == folder.classes == ("a", "b")
    assert archive.images.shape == (40, SIZE, SIZE, 3)
    np.testing.assert_array_equal(np.argmax(archive.images.mean((1, 2)), axis=1), archive.labels)
    assert archive.identity == folder.identity
    assert read_classes(data / "train.zip", "test").identity == archive.identity


def test_what_cannot_be_read_is_told(data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sizes.zip", "w") as archive:
        for name, size in (("a/1.png", 8), ("b/2.png", 9)):
            archive.writestr(name, encoded(np.zeros((size, size, 3), np.uint8)))
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w") as archive:
        archive.writestr("a/1.png", b"nothing")
        archive.writestr("b/2.png", encoded(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "text.zip").write_text("nothing")
    for path, says in (
        (tmp_path / "sizes.zip", r"several sizes \(a/1\.png 8x8 and b/2\.png 9x9\)"),
        (tmp_path / "damaged.zip", r"a/1\.png cannot be read"),
        (tmp_path / "text.zip", "cannot be read as an archive"),
        (data / "test" / "a", "images of 0 classes"),
        (tmp_path / "absent", "has no images by class"),
    ):
        with pytest.raises(TrainingError, match=says):
            read_classes(path, "train")


def test_crops_and_flips_are_windows_of_the_image() -> None:
    ramp = np.broadcast_to(np.arange(40, 40 + SIZE, dtype=np.uint8)[:, None], (SIZE, SIZE))
    images = jnp.asarray(np.stack([ramp, ramp.T, ramp], axis=-1))[None].repeat(32, axis=0)
    found = np.asarray(classify.augmented(jax.random.key(0), images), int)
    rows, columns = found[..., 0], found[..., 1]
    # Shifts and flips move whole rows and columns by one step, but at the reflected border.
    assert np.all(rows == rows[:, :, :1])
    assert np.all(columns == columns[:, :1])
    assert np.all(np.abs(np.diff(rows, axis=1)) == 1)
    slopes = np.diff(columns[:, SIZE // 2, 5:-5], axis=1)
    assert {tuple(np.unique(one)) for one in slopes} == {(1,), (-1,)}, "some are flipped, some are not"
    assert len(np.unique(rows[:, SIZE // 2, 0])) > 4


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    variables = NETWORK.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 3)))
    return Classifier(variables["params"], NETWORK, ("a", "b"))


def test_a_classifier_comes_back_from_its_file(classifier: Classifier, tmp_path: Path) -> None:
    images = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    path = tmp_path / "classifier.safetensors"
    save(path, classifier, {"steps": 0})
    found = load(path)
    assert (found.network, found.classes) == (NETWORK, ("a", "b"))
    np.testing.assert_array_equal(found(images), classifier(images))
    for content in (b"", path.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(TrainingError, match="cannot be read as a classifier"):
            load(path)


def test_each_image_is_judged_by_itself(classifier: Classifier) -> None:
    images = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    np.testing.assert_allclose(classifier(images)[1], classifier(images[1:2])[0], atol=1e-5)


@pytest.mark.parametrize("defence", ["none", "pgd", pytest.param("pat", marks=pytest.mark.slow)])
def test_a_step_learns_from_images_within_the_threat(
    data: Path, tmp_path: Path, classifier: Classifier, defence: Any
) -> None:
    options = config(data, tmp_path, defence=defence, attack_steps=3)
    learnt = read_classes(data, "train").select(slice(0, 8))
    images = jnp.asarray(learnt.images) / jnp.float32(255)
    metric = Resized(rl.load("lpips-tiny"), 32, 32)
    bound = 0.3
    # Every other one is right.
    batch = Batch(images, (jnp.argmax(classifier(images), axis=1) + jnp.arange(8)) % 2)
    shown = classify._attacked(options, classifier, batch, (metric, jnp.float32(bound)), jax.random.key(0))
    moved = np.abs(np.asarray(shown) - np.asarray(images)).max(axis=(1, 2, 3))
    right = np.asarray(jnp.argmax(classifier(images), axis=1) == batch.labels)
    assert right.sum() == 4
    if defence == "none":
        assert np.all(moved == 0)
    elif defence == "pgd":
        assert np.all((moved > 0) & (moved < 8 / 255 + 1e-6))
    else:
        assert np.all((moved > 0) == right), "images that are wrong already are not attacked"
        assert np.all(np.sqrt(rl.distance(shown, images, metric)) < bound * 1.01)


def test_the_optimiser_takes_a_step_that_lowers_the_loss(data: Path, tmp_path: Path, classifier: Classifier) -> None:
    options = config(data, tmp_path)
    optimiser = optax.sgd(0.1)
    step = classify.make_step(options, NETWORK, optimiser)
    learnt = read_classes(data, "train")
    batch = Batch(jnp.asarray(learnt.images[:8]), jnp.asarray(learnt.labels[:8]))
    state, reports = first_state(classifier.parameters, optimiser, average=0), []
    for _ in range(12):
        state, report = step(state, (None, jnp.float32(0)), batch)
        reports.append(report)
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert bool(reports[-1].finite)


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_with_the_same_bytes(data: Path, tmp_path: Path) -> None:
    whole = train_classifier(config(data, tmp_path / "whole"))
    part = config(data, tmp_path / "part")
    halves = dataclasses.replace(part, steps=4)

    class Cut(Exception):
        pass

    made = classify.make_step

    def cut(*arguments: Any) -> Any:
        step, count = made(*arguments), 0

        def counted(*inner: Any) -> Any:
            nonlocal count
            if count == 3:
                raise Cut
            count += 1
            return step(*inner)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify, "make_step", cut)
        with pytest.raises(Cut):
            train_classifier(halves)
    assert train_classifier(halves).read_bytes() == whole.read_bytes()
    with pytest.raises(TrainingError, match="holds a run with defence"):
        train_classifier(dataclasses.replace(part, defence="pgd"))


def test_training_goes_on_from_a_classifier(data: Path, tmp_path: Path, classifier: Classifier) -> None:
    start = tmp_path / "start.safetensors"
    save(start, classifier, {"steps": 0})
    # At a rate of 0 what comes out is what went in.
    still = config(data, tmp_path / "still", start=start, rate=0.0, average=0.0, steps=1, widths=(16,))
    found = load(train_classifier(still))
    assert found.network == classifier.network
    jax.tree.map(np.testing.assert_array_equal, found.parameters, classifier.parameters)
    save(start, jax.tree.map(lambda leaf: leaf + 1, classifier), {"steps": 0})
    with pytest.raises(TrainingError, match="the classifier it starts from"):
        train_classifier(dataclasses.replace(still, steps=1))
    save(start, dataclasses.replace(classifier, classes=("a", "c")), {"steps": 0})
    with pytest.raises(TrainingError, match=r"is a classifier of a, c; .* has a, b"):
        train_classifier(dataclasses.replace(still, out=tmp_path / "other"))


def test_options_that_make_no_sense_are_refused(data: Path, tmp_path: Path) -> None:
    for options, says in (
        ({"widths": (12,)}, "multiples of 8"),
        ({"bound": 0.0}, "--bound must be above 0"),
        ({"epsilon": "x"}, "--epsilon must be a number"),
        ({"batch": 0}, "--batch must be 1 or more"),
        ({"rate": float("nan")}, "--rate must be a number, 0 or more"),
        ({"average": 1.0}, "--average must be 0 or more and below 1"),
        ({"metric_size": 0}, "--metric-size must be 1 or more"),
    ):
        with pytest.raises(TrainingError, match=says):
            config(data, tmp_path, **options)
    for options, says in (
        ({"held_out": 40}, "leaves nothing to learn from"),
        ({"batch": 64}, "fewer than a batch"),
    ):
        with pytest.raises(TrainingError, match=says):
            train_classifier(config(data, tmp_path, **options))
    assert not any(tmp_path.iterdir()), "a mistake claims no folder"

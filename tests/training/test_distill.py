"""Distillation: what it minimises, and that an interrupted run loses nothing."""

from pathlib import Path

import jax
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax.backbones import ALEX, TINY
from rlpips_jax.errors import Locked, TrainingError
from rlpips_jax.files.locks import locked
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import with_heads
from training import procedural
from training.distill import Distill, batch_of, distill, draw_student, follows, group_distances, loss


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    return procedural.images(6, size=32, workers=1).reshape(2, 3, 32, 32, 3)


@pytest.mark.slow
def test_group_distances_are_those_of_every_pair(groups, drawn) -> None:
    teacher = drawn(ALEX)
    found = group_distances(teacher, groups, 4)
    assert found.shape == (2, 3, 4)
    for pair, (first, second) in enumerate([(0, 1), (0, 2), (1, 2)]):
        layers = np.asarray(rl.layer_distances(groups[:, first], groups[:, second], teacher))
        expected = np.concatenate([layers[:, :3], layers[:, 3:].sum(1, keepdims=True)], axis=1)
        np.testing.assert_allclose(found[:, pair], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_loss_vanishes_for_the_teacher_itself_and_nowhere_near(groups, drawn) -> None:
    student = drawn(TINY)
    distances = group_distances(student, groups, 4)
    assert float(loss(student, groups, distances)) < 1e-10
    # Distances far above the floor, all twice too large, cost huber(log 2) = log(2)^2 / 2, by half again for the taps.
    assert float(loss(student, groups, 2 * distances)) == pytest.approx(0.75 * np.log(2) ** 2, rel=0.05)


def test_following_exactly(groups, drawn) -> None:
    distances = np.asarray(group_distances(drawn(TINY), groups, 4))
    assert follows(3 * distances, distances) == pytest.approx({"spearman": 1, "factor": 3, "spread": 1}, abs=1e-5)


def test_batches_depend_on_seed_and_step_alone() -> None:
    assert np.array_equal(batch_of(100, 8, 1, 2), batch_of(100, 8, 1, 2))
    assert not np.array_equal(batch_of(100, 8, 1, 2), batch_of(100, 8, 1, 3))


@pytest.fixture
def config(tmp_path: Path, drawn, monkeypatch: pytest.MonkeyPatch) -> Distill:
    """A run of seconds, whose teacher has drawn weights."""
    folder = tmp_path / "photographs"
    for number, image in enumerate(procedural.images(3, size=72, workers=1)):
        rl.save_image(folder / f"{number}.png", image)
    monkeypatch.setattr(rl, "load", lambda *_, **__: drawn(TINY))
    return Distill(
        folder,
        folder,
        out=tmp_path / "run",
        patches=6,
        procedural=2,
        held_out=3,
        size=32,
        batch=2,
        steps=6,
        report_every=3,
        workers=1,
        seed=3,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Orbax's own
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(config, monkeypatch, tmp_path) -> None:
    whole = distill(config)
    straight = native.read(whole, with_heads(TINY))[0]
    start = draw_student(jax.random.key(config.seed)).parameters
    assert not np.array_equal(start["heads"][0], straight["heads"][0]), "nothing was learnt"
    assert all(np.min(head) >= 0 for head in straight["heads"])

    def cut_off(count: int, batch: int, seed: int, step: int) -> np.ndarray:
        if step == 5:
            raise KeyboardInterrupt
        return batch_of(count, batch, seed, step)

    again = Distill(**{**vars(config), "out": tmp_path / "again"})
    monkeypatch.setattr("training.distill.batch_of", cut_off)
    with pytest.raises(KeyboardInterrupt):
        distill(again)
    monkeypatch.setattr("training.distill.batch_of", batch_of)
    resumed = native.read(distill(again), with_heads(TINY))[0]
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)

    with pytest.raises(TrainingError, match=r"rate .*give another --out"):
        distill(Distill(**{**vars(again), "rate": 1e-4}))


def test_a_folder_has_one_run_at_a_time(config: Distill) -> None:
    config.out.mkdir(parents=True)
    with locked(config.out / "lock"), pytest.raises(Locked, match="lock"):
        distill(config)

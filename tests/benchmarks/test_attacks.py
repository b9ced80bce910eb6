"""The attacks that are timed do what they say, and nobody is timed who attacks something else."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import attacks
from benchmarks.attacks import (
    ANEW,
    CACHED,
    EPSILON,
    MARGIN,
    OURS,
    PLAIN,
    PUBLISHED,
    TRAINING,
    Attacks,
    Contestant,
    Plan,
    TripletImages,
    cached_attack,
    compare,
    difference,
    published_attack,
)
from benchmarks.images import Size
from rlpips_jax.backbones import TINY


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> TripletImages:
    return attacks.triplets(tmp_path_factory.mktemp("no photographs"), Size(3, 32))


def as_tensors(batch: TripletImages) -> TripletImages:
    import torch

    return TripletImages(*(torch.from_numpy(np.moveaxis(images, -1, 1).copy()) for images in batch))


def squared(x: Any, y: Any) -> Any:
    return ((x - y) ** 2).mean((1, 2, 3), keepdim=True)


def test_the_closer_image_is_closer(batch) -> None:
    near, far = (np.linalg.norm((images - batch.reference).reshape(3, -1), axis=1) for images in batch[1:])
    assert (1.5 * near < far).all()
    assert max(np.abs(images).max() for images in batch) <= MARGIN + 1e-6
    assert all(images.dtype == np.float32 for images in batch)


@pytest.mark.torch
def test_the_published_loop_takes_four_images_and_their_gradients_a_step(batch) -> None:
    import torch

    tensors, calls, heads = as_tensors(batch), [], []

    def distance(x: Any, y: Any) -> Any:
        calls.append((x, y))
        return squared(x, y)

    def ranking_loss() -> Any:
        heads.append(len(calls))
        return lambda moved, still, judgment: (moved * judgment - still * judgment).sum()

    plan = Plan(3, attacks.PUBLISHED_STEP, drawn_head=True)
    end = published_attack(distance, ranking_loss, tensors, torch.zeros(3, 1, 1, 1), plan)
    assert heads == [2, 4, 6]
    assert all(image.requires_grad for pair in calls for image in pair)
    for index, (x, y) in enumerate(calls):
        assert torch.equal(x, tensors.reference)
        if index % 2:
            assert torch.equal(y, tensors.farther)
    assert torch.equal(calls[0][1], tensors.closer)
    assert calls[1][1].grad is not None
    # The judgment is 0: the loss falls with the distance, so every value goes to the corner nearer to the reference.
    expected = tensors.closer - EPSILON * torch.sign(calls[4][1].detach() - tensors.reference)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-6)


@pytest.mark.torch
def test_the_cached_loop_differentiates_the_moving_images_alone(batch) -> None:
    import torch

    tensors, moving = as_tensors(batch), []

    def features(images: Any) -> Any:
        moving.append(images.requires_grad)
        return images

    end = cached_attack(features, squared, tensors, Plan(4, EPSILON / 2, random_start=True))
    assert moving == [False, False, True, True, True, True]
    assert not end.requires_grad
    assert float((end - tensors.closer).abs().max()) <= EPSILON + 1e-6
    assert float(end.abs().max()) <= 1
    before, after = (squared(tensors.reference, images).mean() for images in (tensors.closer, end))
    assert after > before
    assert not torch.equal(end, tensors.closer)


@pytest.mark.torch
def test_both_loops_ascend_the_same_objective(batch) -> None:
    import torch

    tensors, plan = as_tensors(batch), Plan(3, EPSILON / 4)
    published = published_attack(squared, lambda: difference, tensors, torch.zeros(3, 1, 1, 1), plan)
    cached = cached_attack(lambda images: images, squared, tensors, plan)
    torch.testing.assert_close(published, cached, rtol=0, atol=1e-6)
    moved = published - tensors.closer
    assert float(moved.abs().max()) == pytest.approx(0.75 * EPSILON, rel=1e-4)


@pytest.mark.slow
def test_jax_contestants_attack_the_same(batch, drawn, monkeypatch) -> None:
    monkeypatch.setattr(attacks, "load_ours", lambda setting: drawn(TINY))
    makers = (attacks.ours, attacks.plain, functools.partial(attacks.plain, cached=False))
    contestants = {name: make(None, batch) for name, make in zip((OURS, PLAIN, ANEW), makers, strict=True)}  # pyright: ignore
    score = attacks.scorer(None, batch)  # pyright: ignore
    checks = compare(contestants, score)
    assert list(checks) == [OURS, PLAIN, ANEW]
    assert checks[PLAIN].objective > 0
    end = contestants[OURS].attack(Plan(4, EPSILON / 2, random_start=True))
    assert np.abs(end - batch.closer).max() <= EPSILON + 1e-6
    assert (score(np.asarray(end)) > score(batch.closer)).all()
    near, far = (rl.distance(batch.reference, images, drawn(TINY), value_range=(-1, 1)) for images in batch[1:])
    np.testing.assert_allclose(score(batch.closer), near - far, rtol=0, atol=1e-6)


def fixed(values: float, gradient: float, moved: float) -> Contestant:
    shape = (2, 4, 4, 3)
    return Contestant(
        lambda plan: jnp.full(shape, moved), lambda: (np.full(2, values), np.full(shape, gradient)), np.asarray
    )


def mean(images: np.ndarray) -> np.ndarray:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("other", [(1.001, 1, 2), (1, 1.01, 2), (1, 1, 2.05), (np.nan, 1, 2), (1, 1, np.nan)])
def test_who_attacks_something_else_is_not_timed(other) -> None:
    with pytest.raises(ArithmeticError, match=f"{PUBLISHED} attacks something else than {OURS}"):
        compare({OURS: fixed(1, 1, 2), PUBLISHED: fixed(*other)}, mean)


def test_where_dropout_is_on_steps_are_not_compared() -> None:
    checks = compare({OURS: fixed(1, 1, 2), TRAINING: fixed(1, 1, 9)}, mean)
    assert checks[TRAINING].reached is None
    assert str(checks[TRAINING]).endswith("-")
    assert checks[OURS] == (0, 0, 0, 1)


@pytest.mark.slow
def test_measured_and_told(batch, drawn, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(attacks, "load_ours", lambda setting: drawn(TINY))
    absent: dict[str, str] = {}
    config = Attacks(steps=2, batch=2, size=32, repeats=1, shared=tmp_path)
    measured = attacks.measure(config, absent)
    # Without weights none of PyTorch's can take part, installed or not.
    assert list(absent) == [PUBLISHED, TRAINING, CACHED]
    assert list(measured["times"]) == [OURS, PLAIN, ANEW]
    assert measured["reached"][OURS] > measured["untouched"]
    assert measured["plans"][OURS] == Plan(2, 1.25 * EPSILON, random_start=True)._asdict()
    measured["times"] = {OURS: [0.5], PLAIN: [1.0], ANEW: [4.0]}
    text = attacks.document(config, measured, absent, others=0.5)
    assert "The machine was busy" in text
    assert f"| {OURS} | 4 | 500 ms |  |" in text
    assert f"| {ANEW} | 0.5 | 4 s | 8 (8 to 8) |" in text
    assert f"- {PUBLISHED}: " in text
    assert "busy" not in attacks.document(config, measured, absent, others=0.01)


def test_the_published_loop_is_timed_as_published() -> None:
    assert attacks.timed_plan(PUBLISHED, 50) == Plan(50, 1e4, random_start=False, drawn_head=True)
    assert attacks.timed_plan(TRAINING, 50) == attacks.timed_plan(PUBLISHED, 50)
    assert attacks.timed_plan(CACHED, 50) == attacks.timed_plan(OURS, 50)


@pytest.mark.parametrize("name", ["steps", "batch", "size", "repeats"])
def test_options_that_measure_nothing_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"--{name} must be 1 or more, got 0"):
        attacks.main(dataclasses.replace(Attacks(), **{name: 0}))

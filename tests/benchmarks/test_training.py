"""The training steps that are timed do what they say, and nobody is timed who learns something else."""

import dataclasses
import functools
import math
import os
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import training
from benchmarks.attacks import EPSILON, Plan, TripletImages
from benchmarks.contestants import Absent
from benchmarks.images import Size
from benchmarks.training import LIKE, OURS, PUBLISHED, RATE, Contestant, Ours, Published, Steps, Updated, recipe
from rlpips_jax.backbones import Convolution, Sequential
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ops.pooling import Pooling
from training.config import Lin
from training.step import Batch

CHANNELS = 8

ONE = Sequential("one", (Convolution(0, CHANNELS, 3, padding=1),), Pooling("max", 3, 2), tapped=(0,))
"""A network of one convolution."""


@pytest.fixture(scope="module")
def metric(drawn) -> Lpips:
    return drawn(ONE)


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    return training.judged(tmp_path_factory.mktemp("no photographs"), Size(3, 16))


@pytest.fixture
def config(metric, monkeypatch, tmp_path) -> Steps:
    """Of a measurement with `ONE` here, where there are no weights for PyTorch."""
    monkeypatch.setattr(training, "load_ours", lambda setting: metric)
    return Steps(steps=2, batch=2, size=16, repeats=2, batches=(2,), lasting=20, shared=tmp_path)


def in_pytorch(metric: Lpips, batch: Batch) -> Any:
    """`ONE` and triplets as `benchmarks.attacks.Pytorch` holds LPIPS."""
    import torch
    from torch import nn

    class Lpips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, CHANNELS, 3, padding=1).requires_grad_(False)
            self.lins = nn.ModuleList([nn.Sequential(nn.Dropout(), nn.Conv2d(CHANNELS, 1, 1, bias=False))])

        def features(self, images: Any) -> Any:
            shift, scale = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (SHIFT, SCALE))
            return nn.functional.normalize(self.net((images - shift) / scale).relu(), dim=1)

        def forward(self, x: Any, y: Any) -> Any:
            return self.lins[0]((self.features(x) - self.features(y)) ** 2).mean((2, 3), keepdim=True)

    module, layer = Lpips(), metric.parameters["backbone"]["features_0"]
    with torch.no_grad():
        module.net.weight.copy_(torch.from_numpy(np.array(layer["kernel"]).transpose(3, 2, 0, 1).copy()))
        assert module.net.bias is not None
        module.net.bias.copy_(torch.from_numpy(np.array(layer["bias"])))
        head: Any = training.convolutions(module.lins)[0]
        head.weight.copy_(torch.from_numpy(np.array(metric.parameters["heads"][0])).reshape(1, -1, 1, 1))
    images = (
        torch.from_numpy(np.moveaxis(np.asarray(each) / np.float32(127.5) - 1, -1, 1).copy()) for each in batch[:3]
    )
    judgment = torch.from_numpy(np.asarray(batch.judgment)).reshape(-1, 1, 1, 1)
    return SimpleNamespace(module=module, batch=TripletImages(*images), judgment=judgment, finish=lambda result: result)


SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def ranking_loss() -> Any:
    """LPIPS's ranking loss."""
    import torch
    from torch import nn

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Conv2d(5, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2)]
            self.net = nn.Sequential(*layers, nn.Conv2d(32, 1, 1), nn.Sigmoid())

        def forward(self, d0: Any, d1: Any, judgment: Any) -> Any:
            probability = self.net(torch.cat([d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1)], 1))
            return nn.functional.binary_cross_entropy(probability, (judgment + 1) / 2)

    return Loss()


def published(metric: Lpips, batch: Batch, start: list[np.ndarray]) -> Published:
    return Published(in_pytorch(metric, batch), ranking_loss, start, steps=2, tf32=False)


@pytest.fixture(scope="module")
def ours(metric, batch) -> Ours:
    return Ours(metric, batch, recipe("corrected", 2))


def test_triplets_are_bytes_whose_first_image_people_found_closer(batch) -> None:
    assert all(images.dtype == np.uint8 and images.shape == (3, 16, 16, 3) for images in batch[:3])
    reference, *others = (images.astype(float).reshape(3, -1) for images in batch[:3])
    near, far = (np.linalg.norm(images - reference, axis=1) for images in others)
    assert (near < far).all()
    assert (batch.judgment < 0.5).all()


def test_the_published_recipe_is_trained_from_the_same_heads() -> None:
    like = recipe("published", 50)
    assert like.document() == Lin(protocol="published", initial_heads="metric").document()
    assert (like.recipe.radius, like.recipe.rate, like.recipe.b1) == (EPSILON, training.RATE, training.B1)
    published = like.document()
    changed = {name: value for name, value in recipe("corrected", 50).document().items() if value != published[name]}
    for name in ("epochs", "decay_epochs", "batch"):
        del changed[name]
    assert changed == {"protocol": "corrected", "dropout": 0.0}


@pytest.mark.slow
def test_a_natural_step_moves_every_sort_of_weight_and_is_not_kept(ours) -> None:
    start = training.weights(ours.start.trained)
    found = ours.natural()
    assert [leaf.shape for leaf in found.weights] == [(8,), (5, 32), (32,), (32, 32), (32,), (32, 1), (1,)]
    for leaf, old in zip(found.weights, start, strict=True):
        assert 0.5 * RATE < np.abs(leaf - old).max() < 1.01 * RATE
    again = ours.natural()
    assert again.loss == found.loss
    assert int(ours.state.step) == 0
    assert math.isfinite(ours.step())
    assert int(ours.state.step) == 1


@pytest.mark.torch
def test_pytorch_learns_the_same_from_the_same_start(ours, metric, batch, monkeypatch) -> None:
    start = training.weights(ours.start.trained)[1:]
    other = published(metric, batch, start)
    contestants = {name: Contestant(one.step, one.natural) for name, one in ((OURS, ours), (PUBLISHED, other))}
    checks = training.compare(contestants)
    assert 0 < checks[PUBLISHED].weights < training.LIMIT
    # What was compared is neither where a step begins nor what it leaves.
    assert math.isfinite(other.step())
    assert training.compare(contestants) == checks
    monkeypatch.setattr(training, "RATE", 1.5 * RATE)
    with pytest.raises(ArithmeticError, match=f"{PUBLISHED} learns something else than {OURS}"):
        training.compare(contestants)
    monkeypatch.undo()
    elsewhere = published(metric, batch, [1.01 * leaf for leaf in start])
    with pytest.raises(ArithmeticError, match=f"{PUBLISHED} learns something else"):
        training.compare({OURS: contestants[OURS], PUBLISHED: Contestant(elsewhere.step, elsewhere.natural)})


@pytest.mark.torch
def test_the_published_step_learns_from_the_attacked_image(metric, batch) -> None:
    import torch

    pytorch = in_pytorch(metric, batch)
    calls, reached, drawn_heads = [], [], []
    (head,) = training.convolutions(pytorch.module.lins)

    def distance(x: Any, y: Any) -> Any:
        calls.append((x, y))
        return pytorch.module.eval()(x, y)

    def drawn() -> Any:
        drawn_heads.append(len(calls))
        return ranking_loss()

    class Optimiser:
        def zero_grad(self) -> None:
            # The attack has left gradients of the heads behind.
            reached.append(head.weight.grad.clone())
            head.weight.grad = None

        def step(self) -> None:
            reached.append(head.weight.grad.clone())
            with torch.no_grad():
                head.weight[:, ::2] = -1

    plan = Plan(3, training.PUBLISHED_STEP, drawn_head=True)
    weights = [head.weight]
    trained = ranking_loss()
    loss = training.published_step(
        distance, weights, trained, drawn, Optimiser(), pytorch.batch, pytorch.judgment, plan
    )
    assert drawn_heads == [2, 4, 6]
    assert len(calls) == 8
    (reference, closer), (_, farther) = calls[-2:]
    assert all(images.grad is not None for images in (reference, closer, farther))
    moved = (closer - pytorch.batch.closer).detach().abs()
    assert float(moved.max()) == pytest.approx(EPSILON, rel=1e-4)
    assert float((moved > 0.99 * EPSILON).float().mean()) > 0.9
    assert torch.equal(farther, pytorch.batch.farther)
    assert torch.equal(reference, pytorch.batch.reference)
    assert all(float(gradient.abs().sum()) > 0 for gradient in reached)
    assert len(reached) == 2
    assert float(head.weight.detach().min()) == 0
    assert float(head.weight.detach()[:, 1::2].min()) > 0
    assert not loss.requires_grad
    assert 0 < float(loss) < math.inf


def fixed(loss: float, weight: float) -> Contestant:
    return Contestant(lambda: loss, lambda: Updated(loss, [np.full(2, 1.0), np.full((2, 2), weight)]))


@pytest.mark.parametrize("other", [(1.001, 1), (1, 1.0001), (np.nan, 1), (1, np.nan)])
def test_who_learns_something_else_is_not_timed(other) -> None:
    with pytest.raises(ArithmeticError, match=f"{PUBLISHED} learns something else than {OURS}"):
        training.compare({OURS: fixed(1, 1), PUBLISHED: fixed(*other)})


@pytest.mark.slow
def test_steps_are_measured_and_told(config) -> None:
    absent: dict[str, str] = {}
    measured = training.side_by_side_steps(config, absent)
    # Without weights PyTorch cannot take part, installed or not.
    assert list(absent) == [PUBLISHED]
    assert [len(taken) for taken in measured["times"].values()] == [2, 2]
    assert measured["checks"][OURS] == {"loss": 0, "weights": 0}
    assert list(measured["checks"]) == [OURS, LIKE]
    # Dropout and a random head are on in one alone.
    assert measured["losses"][OURS] != measured["losses"][LIKE]
    measured["times"] = {OURS: [0.5], LIKE: [1.0], PUBLISHED: [4.0]}
    measured["checks"][PUBLISHED] = {"loss": 1e-7, "weights": 2e-7}
    text = training.document(config, {"step": measured}, absent, {"step": 0.5})
    assert "0.50 during step" in text
    assert f"| {OURS} | 500 ms |  | 0.5 (0.5 to 0.5) |" in text
    assert f"| {PUBLISHED} | 4 s | 8 (8 to 8) | 4 (4 to 4) | 1.0e-07, 2.0e-07 |" in text
    assert f"- {PUBLISHED}: " in text


def test_a_loss_that_is_not_finite_stops_it(config, monkeypatch) -> None:
    monkeypatch.setattr(training, "gather", lambda *_: {OURS: fixed(1, 1)._replace(step=lambda: math.nan)})
    with pytest.raises(ArithmeticError, match=f"not finite any more: {OURS}"):
        training.side_by_side_steps(config, {})


def test_steps_by_batch_are_measured_and_told(config, monkeypatch) -> None:
    config = dataclasses.replace(config, batches=(2, 9))

    def apart(function: Any, config: Steps, batch: Batch) -> Any:
        if len(batch.reference) == 9:
            raise BrokenProcessPool("terminated abruptly")
        return function(config, batch)

    monkeypatch.setattr(training, "apart", apart)
    absent: dict[str, str] = {}
    found = training.by_batch(config, absent)
    assert absent == {"a batch of 9": "terminated abruptly"}
    assert list(found) == [2]
    assert len(found[2]["seconds"]) == 2
    found[2] |= {"seconds": [0.5, 0.5], "first": 30.2, "later": 20.1, "device": None}
    assert "| 2 | 500 ms | 4 | 30 / 20 |" in training.document(config, {"batches": found}, absent, {})


def test_memory_is_read_ten_times_and_told(config, monkeypatch) -> None:
    seen: list[bytes] = []
    step = Ours.step

    def seen_step(self: Ours) -> float:
        seen.append(np.asarray(next(iter(self.groups.values())).p0).tobytes())
        return step(self)

    monkeypatch.setattr(Ours, "step", seen_step)
    read = training.watched(config)
    assert list(read) == list(range(2, 21, 2))
    assert len(set(seen)) == 20
    assert min(read.values()) > 1
    text = training.document(config, {"lasting": {10: 100.0, 20: 101.5}}, {}, {})
    assert "| 10 | 20 | added since the first |" in text
    assert "| 100.0 | 101.5 | +1.5 |" in text


def test_processes_are_others_and_may_die() -> None:
    assert training.apart(os.getpid) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        training.apart(functools.partial(os._exit, 1))


def test_pytorch_on_another_device_is_not_compared(config, batch, monkeypatch) -> None:
    elsewhere = "cpu" if jax.default_backend() == "gpu" else "cuda"
    monkeypatch.setattr(training, "Pytorch", lambda *_: SimpleNamespace(device=SimpleNamespace(type=elsewhere)))
    with pytest.raises(Absent, match=f"PyTorch would compute on {elsewhere}, JAX on {jax.default_backend()}"):
        training.published(config.setting, batch, [], 1)


@pytest.mark.parametrize("name", ["steps", "batch", "size", "repeats"])
def test_options_that_measure_nothing_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"--{name} must be 1 or more, got 0"):
        training.main(dataclasses.replace(Steps(), **{name: 0}))


def test_batches_and_readings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="--batches must be 1 or more, got 50 0"):
        training.main(Steps(batches=(50, 0)))
    with pytest.raises(ValueError, match="--lasting must be 2 or more, got 1"):
        training.main(Steps(lasting=1))

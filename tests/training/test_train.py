"""Whole runs: killed, stopped, and cut over devices and processes, they end as one left alone does.

Everything is one small run: lpips-tiny on patches of a few drawn pictures. Its attack is the smooth one, in l2 and of
two steps: steps by a gradient's sign turn rounding where the gradient is near 0 into whole steps, and other devices
round otherwise. `test_loop.py` has what a run survives that does not depend on what is trained.
"""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import StandardCheckpointer
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.backbones import TINY
from rlpips_jax.errors import TrainingError
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import with_heads
from training import evaluate
from training import train as program
from training.config import Lin, Natural
from training.logs import RECORDS, read
from training.sets import Sets
from training.step import losses, make_step
from training.train import Plan, train

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "rlpips-tiny.safetensors"
STEPS = 6

OPTIONS: dict[str, Any] = {
    "metric": "lpips-tiny",
    "teacher": "lpips-tiny",
    "triplets": 24,
    "validation_triplets": 9,  # No multiple of the devices.
    "size": 32,
    "batch": 16,
    "steps": STEPS,
    "norm": "l2",
    "epsilon": "0.5",
    "attack_steps": 2,
    "rate": 1e-2,
    "floor": 0.1,
    "precision": "highest",
    "evaluation_steps": 2,
    "evaluation_epsilons": ("0.5",),
    "evaluate_every": 3,
    "checkpoint_every": 2,
}

PROGRAM = """
import os, signal, sys, time
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from training import __main__, checkpoint, export, logs, train

if parts := int(sys.argv.pop(1)):
    mesh = jax.make_mesh((parts,), ("data",), devices=jax.devices()[:parts], axis_types=(AxisType.Auto,))
    train.over_all_devices = lambda: NamedSharding(mesh, PartitionSpec("data"))

def before(owner, name, reached, act):
    original = getattr(owner, name)
    def call(*arguments, **options):
        if reached(*arguments):
            act()
        return original(*arguments, **options)
    setattr(owner, name, call)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv.pop(1)
if moment == "step":
    before(logs.MetricLog, "write", lambda log, step, kind, _: (step, kind) == (3, "step"), die)
if moment == "checkpoint":
    # In the background, when its arrays are written and its checksums are not.
    before(checkpoint, "_sums", lambda _, step: step == 4, die)
if moment == "export":
    before(export.native, "write", lambda *_, **__: True, die)
if moment == "stop":
    # JAX looks for the signal once a second, and the others have to hear of it.
    feed = train.batches
    def slowly(*arguments, **options):
        for number, rows in enumerate(feed(*arguments, **options)):
            time.sleep(1.0 if number else 0)
            yield rows
    train.batches = slowly
    terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
    before(logs.MetricLog, "write", lambda log, step, kind, _: (step, kind) == (1, "step"), terminate)
if __name__ == "__main__":
    sys.exit(__main__.main())
"""
"""The program as it is, but for the number of devices, and for a signal that it sends itself at a moment."""

PARTS = 2
"""Devices of most runs: eight on two cores mostly wait for one another."""


def draw_photographs(folder: Path, seed: int) -> Path:
    """Patches of colour with grain."""
    folder.mkdir()
    for index in range(4):
        rng = np.random.default_rng(seed + index)
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        smooth = np.asarray(small.resize((160, 160), Image.Resampling.BICUBIC), np.float32)
        picture = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    return {name: draw_photographs(folder / name, seed) for name, seed in (("photographs", 0), ("validation", 100))}


def over(count: int) -> NamedSharding:
    """The first devices, over which batches are cut."""
    mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Runs of one configuration share their triplets and their compiled step, and use `PARTS` devices."""
    originals = program.load_sets, program.make_step
    found: dict[str, Any] = {}

    def cached(index: int, config: Lin, *arguments: Any) -> Any:
        key = f"{index} {json.dumps(config.document())}"
        return found[key] if key in found else found.setdefault(key, originals[index](config, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "load_sets", functools.partial(cached, 0))
        patch.setattr(program, "make_step", functools.partial(cached, 1))
        patch.setattr(program, "over_all_devices", lambda: over(PARTS))
        yield


@pytest.fixture(scope="module")
def configure(photographs) -> Callable[..., Lin]:
    return lambda out, **options: Lin(out=out, **{**photographs, **OPTIONS, **options})


@pytest.fixture(scope="module")
def whole(configure, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted."""
    assert jax.device_count() == 8
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(configure(out)) == out / WEIGHTS
    return out


@pytest.fixture(scope="module")
def start(photographs) -> Callable[..., subprocess.Popen]:
    """Starts the same run as a program of its own."""
    options = {**photographs, **OPTIONS}
    words = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)]))
    ]

    def run(out: Path, *more: object, moment: str = "never", together: bool = False) -> subprocess.Popen:
        # Each of several processes has one device.
        flags = re.sub(r"(device_count)=\d+", rf"\1={1 if together else 8}", os.environ["XLA_FLAGS"])
        parts = 0 if together else PARTS
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(parts), moment, "lin", "--out", str(out), *words, *map(str, more)],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return run


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status and what it printed."""
    try:
        out, err = process.communicate(timeout=1800)
    finally:
        process.kill()
    return process.returncode, out, err


def check_same_bits(out: Path, whole: Path) -> None:
    assert read(out / RECORDS) == read(whole / RECORDS)
    (found, metadata), (expected, of_whole) = (
        native.read(folder / WEIGHTS, with_heads(TINY)) for folder in (out, whole)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # The card too, which has the scores, and the sum of the parameters.
    assert metadata == of_whole


def check_close(out: Path, whole: Path) -> None:
    """The same but for what other devices round otherwise."""
    found, expected = read(out / RECORDS), read(whole / RECORDS)
    assert [(one["step"], one["kind"], one.keys()) for one in found] == [
        (one["step"], one["kind"], one.keys()) for one in expected
    ]
    for one, other in zip(found, expected, strict=True):
        numbers = [name for name in one if name != "kind"]
        np.testing.assert_allclose([one[name] for name in numbers], [other[name] for name in numbers], rtol=1e-5)
    (found, _), (expected, _) = (native.read(folder / WEIGHTS, with_heads(TINY)) for folder in (out, whole))
    for half in ("heads", "floors"):
        for one, other in zip(found[half], expected[half], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.max(other))


@pytest.mark.slow
def test_a_run_leaves_every_step_once_a_card_and_a_metric_that_changed(whole) -> None:
    records = read(whole / RECORDS)
    kinds = [(record["kind"], record["step"]) for record in records]
    assert sorted(kinds) == sorted(
        [("reference", 0)]
        + [("step", step) for step in range(1, STEPS + 1)]
        + [("evaluation", step) for step in (3, STEPS)]
    )
    steps = [record for record in records if record["kind"] == "step"]
    assert all({"loss", "natural", "attacked", "gradient"} <= record.keys() for record in steps)
    trained, metadata = native.read(whole / WEIGHTS, with_heads(TINY))
    assert trained.keys() == {"backbone", "heads", "floors"}
    # Heads and floors alone were trained.
    start = jax.device_get(rl.load("lpips-tiny").parameters)
    jax.tree.map(np.testing.assert_array_equal, trained["backbone"], start["backbone"])
    assert not any(map(np.array_equal, trained["heads"], start["heads"]))
    card = json.loads(metadata["card"])
    assert card["trained"]["mode"] == "lin"
    assert card["steps"] == STEPS
    assert [one["triplets"] for one in card["data"]] == ["24 of photographs ordinal", "24 of photographs crossed"]
    assert [(one["source"]["folder"], one["source"]["size"]) for one in card["data"]] == [("photographs", 32)] * 2
    assert card["scores"]["trained"].keys() == {"validation ordinal", "validation crossed"}
    assert card["scores"]["start"]["validation ordinal"].keys() == {"natural", "0.5"}
    assert card["scores"]["start"]["validation crossed"].keys() == {"natural", "sure"}
    # What is in the folder is known from its names.
    assert {path.name for path in whole.iterdir()} == {
        *(WEIGHTS, RECORDS, "checkpoints", "configuration.json", "tensorboard")
    }


@pytest.mark.slow
@pytest.mark.parametrize("moments", [("checkpoint",), ("step", "checkpoint", "export")])
def test_a_run_that_is_killed_ends_with_the_same_bits(moments, whole, start, configure, tmp_path) -> None:
    out = tmp_path / "run"
    for moment in moments:
        status, printed, errors = ended(start(out, moment=moment))
        assert status == -signal.SIGKILL, errors
        assert not (out / WEIGHTS).exists()
        assert "written" not in printed
    train(configure(out))
    check_same_bits(out, whole)


@pytest.mark.slow
def test_stopped_during_an_evaluation_it_is_made_again(whole, configure, tmp_path, monkeypatch, capsys) -> None:
    out, measurement = tmp_path / "run", evaluate.measurement
    natural, attacked, calls = measurement.natural_distances, measurement.attacked_distances, []

    def terminated(metric: Any, triplets: Any, **options: Any) -> Any:
        calls.append(triplets.name)
        if len(calls) == 4:  # The first set after step 3; the reference's two came before, one of them attacked too.
            # However long an evaluation takes, the step is safe.
            assert (out / "checkpoints" / "3").exists()
            signal.raise_signal(signal.SIGTERM)
        return natural(metric, triplets, **options)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append("attacked")
        return attacked(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(measurement, "natural_distances", terminated)
        patch.setattr(measurement, "attacked_distances", counted)
        with pytest.raises(SystemExit) as exit_:
            train(configure(out))
    ordinal, crossed = "validation ordinal", "validation crossed"
    # No batch came after the one at hand.
    assert [one.rpartition("/")[2] for one in calls] == [ordinal, "attacked", crossed, ordinal]
    assert exit_.value.code == 0
    printed = capsys.readouterr().err
    assert "stopped at step 3 of 6" in printed
    assert printed.count(f"evaluating on {ordinal}\n") == 2
    assert [record["step"] for record in read(out / RECORDS) if record["kind"] == "evaluation"] == []
    train(configure(out))
    check_same_bits(out, whole)


def nearness(config: Lin, metric: Any, *_: object, **__: object) -> evaluate.Scores:
    """In place of an evaluation: the less was learnt the better, so that the best is not the last."""
    start = rl.load(config.metric).parameters["heads"]
    moved = max(np.abs(one - other).max() for one, other in zip(metric.parameters["heads"], start, strict=True))
    return {"people": {"natural": float(1 / (1 + moved))}}


@pytest.fixture(scope="module")
def whole_best(configure, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted, and that exported its best checkpoint."""
    out = tmp_path_factory.mktemp("best") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "scores", nearness)
        train(configure(out, export="best"))
    return out


@pytest.mark.slow
def test_the_best_checkpoint_is_exported_with_its_own_scores(whole_best, configure, capsys) -> None:
    train(configure(whole_best, export="best"))
    printed = capsys.readouterr()
    assert "the best checkpoint is that of step 3" in printed.err
    exported, metadata = native.read(whole_best / WEIGHTS, with_heads(TINY))
    card, records = json.loads(metadata["card"]), read(whole_best / RECORDS)
    before, third, last = (record["people/natural"] for record in records if record["kind"] != "step")
    assert before == 1 > third > last + 0.005
    assert card["steps"] == 3
    assert card["scores"] == {
        name: {"people": {"natural": pytest.approx(value, abs=1e-6)}}
        for name, value in (("start", before), ("trained", third))
    }
    assert re.search(rf"people +100\.00 +{100 * third:.2f}\n", printed.out)
    # Heads are rescaled on the way, and what they were is in the checkpoints.
    exported = np.concatenate(exported["heads"])
    for step in (3, STEPS):
        arrays = StandardCheckpointer().restore(whole_best / "checkpoints" / str(step) / "state")
        heads = np.concatenate(arrays["trained"]["heads"])
        lengths = np.linalg.norm(exported), np.linalg.norm(heads)
        assert np.allclose(exported / lengths[0], heads / lengths[1], atol=1e-5) == (step == 3)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_while_data_are_loaded_it_leaves_nothing(configure, tmp_path, monkeypatch, capsys, name) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    monkeypatch.setattr(program, "load_sets", lambda _: signal.raise_signal(number))
    with pytest.raises(SystemExit) as exit_:
        train(configure(tmp_path / "run"))
    assert exit_.value.code == 0
    assert "stopped while data were being loaded; nothing is lost" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert not (tmp_path / "run").exists()


def test_the_rows_of_a_batch_are_named_by_group_and_column(configure, tmp_path) -> None:
    """As the file with a batch that is not finite has them."""
    config = configure(tmp_path)
    sets = program.load_sets(config)
    feed = program.feed(config, sets, {"ordinal": 8, "judged": 8}, 4)
    rows = next(feed)
    feed.close()
    assert rows["ordinal/reference"].shape == (8, 32, 32, 3)
    assert rows["ordinal/reference"].dtype == np.uint8
    assert rows["judged/judgment"].shape == (8,)
    again = program.feed(config, sets, {"ordinal": 8, "judged": 8}, 3)
    next(again)
    jax.tree.map(np.testing.assert_array_equal, next(again), rows)
    again.close()


def test_another_run_is_refused_by_what_differs(whole, configure) -> None:
    records = (whole / RECORDS).read_bytes()
    with pytest.raises(TrainingError, match=r"seed 0 \(now 7\); give another --out, or the same options"):
        train(configure(whole, seed=7))
    with pytest.raises(TrainingError, match=r"epsilon '0.5' \(now '1'\), rate 0.01 \(now 0.1\)"):
        train(configure(whole, rate=0.1, epsilon="1"))
    assert (whole / RECORDS).read_bytes() == records


@pytest.mark.slow
def test_a_finished_run_says_the_same_again(whole, configure, capsys) -> None:
    records, weights = (whole / RECORDS).read_bytes(), native.read(whole / WEIGHTS, with_heads(TINY))
    train(configure(whole, prefetch=0, keep=3))
    assert "validation ordinal" in capsys.readouterr().out
    assert (whole / RECORDS).read_bytes() == records
    again = native.read(whole / WEIGHTS, with_heads(TINY))
    jax.tree.map(np.testing.assert_array_equal, again[0], weights[0])
    assert again[1] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_the_number_of_devices_changes_rounding_alone(count, whole, configure, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(program, "over_all_devices", lambda: over(count))
    monkeypatch.setattr(program, "make_step", make_step)
    train(configure(tmp_path / "run"))
    check_close(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_go_on_come_to_what_one_does(whole, start, tmp_path) -> None:
    out = tmp_path / "run"

    def together(moments: tuple[str, str]) -> list[tuple[int, str, str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        joined = ("--coordinator", address, "--processes", 2, "--process")
        processes = [start(out, *joined, index, moment=moment, together=True) for index, moment in enumerate(moments)]
        return [ended(process) for process in processes]

    # One of them gets the signal, and both stop after the same step.
    for status, printed, errors in (stopped := together(("stop", "stop"))):
        assert status == 0, printed + errors
    first = re.search(r"stopped at step (\d) of 6; the same command goes on from there", stopped[0][2])
    assert first is not None, stopped[0]
    assert not (out / WEIGHTS).exists()
    for status, printed, errors in (finished := together(("never", "never"))):
        assert status == 0, printed + errors
    assert f"resumed at step {first[1]} of 6" in finished[0][2]
    # The first one speaks for both.
    assert "written" in finished[0][1]
    for said in ("stopped", "resumed", "written", "validation"):
        assert said not in "".join(stopped[1][1:] + finished[1][1:])
    check_close(out, whole)


@pytest.mark.slow
def test_a_batch_must_be_cut_evenly(configure, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"6 ordinal triplets of --batch 12 .* 8 device.*multiple of 8"):
        train(configure(tmp_path / "run", batch=12))
    with pytest.raises(TrainingError, match=r"--accumulate.*multiple of 16"):
        train(configure(tmp_path / "other", accumulate=2))
    # A mistake leaves nothing that the corrected command would be refused for.
    assert not list(tmp_path.iterdir())


def test_a_size_that_a_file_does_not_have_is_refused(tmp_path) -> None:
    arrays: dict[str, Any] = {name: np.zeros((2, 48, 48, 3), np.uint8) for name in ("ref", "p0", "p1")}
    np.savez(tmp_path / "triplets.npz", **arrays, judge=np.zeros(2, np.float32))
    with pytest.raises(TrainingError, match=r"--size is 64, but .* 48 pixels"):
        train(Lin(data=str(tmp_path / "triplets.npz"), size=64, metric="lpips-tiny", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_triplets_that_no_loss_looks_at_are_left_out() -> None:
    sets = Sets({"judged": (Length(45),), "ordinal": (Length(25),)}, {})  # pyright: ignore[reportArgumentType]
    config = Lin(natural_weight=0.0)
    used = sets.only([group for group in sets.sources if any(losses(config, sets.sources, group))])
    assert set(used.sources) == {"ordinal"}
    assert program.group_shares(config, used) == {"ordinal": 80}


@pytest.mark.parametrize("options", [{"coordinator": "localhost:1"}, {"processes": 2}, {"process": 0, "processes": 2}])
def test_half_of_the_options_for_processes_is_refused(options, configure, tmp_path) -> None:
    with pytest.raises(TrainingError, match="--coordinator, --processes and --process together"):
        train(configure(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


class Length:
    """A source that is asked for nothing but its length."""

    name = "length"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def planned(**options: Any) -> tuple[Plan, np.ndarray]:
    """The plan for 45 judged and 25 ordinal triplets at 10 a step each, and the rate's share at every step."""
    config, sources = Lin(**options), {"judged": (Length(45),), "ordinal": (Length(25),)}
    plan = Plan.of(config, Sets(sources, {}), {"judged": 10, "ordinal": 10})  # pyright: ignore[reportArgumentType]
    share = plan.rate_share(config)
    return plan, np.array([float(share(np.int32(step))) for step in range(plan.total)])


def test_the_rate_falls_linearly_over_the_last_epochs() -> None:
    plan, shares = planned(epochs=1, decay_epochs=2)
    # An epoch is one of the group that takes longest.
    assert plan == Plan(12, 8, 4)
    np.testing.assert_allclose(shares, [1, 1, 1, 1, *(1 - np.arange(8) / 8)], atol=1e-6)


def test_steps_take_the_place_of_epochs() -> None:
    plan, shares = planned(epochs=1, decay_epochs=3, steps=20)
    assert plan == Plan(20, 15, 4)
    np.testing.assert_allclose(shares, [*np.ones(5), *(1 - np.arange(15) / 15)], atol=1e-6)


def test_the_published_rate_falls_after_each_epoch() -> None:
    plan, shares = planned(protocol="published", epochs=1, decay_epochs=2)
    assert plan == Plan(12, 8, 4)
    np.testing.assert_allclose(shares, [*np.ones(8), *np.full(4, 0.5)], atol=1e-6)


def test_attacks_on_ensembles_are_not_trained_against(photographs, tmp_path) -> None:
    with pytest.raises(TrainingError, match="python -m training natural"):
        train(Lin(metric="elpips-tiny", out=tmp_path / "run", photographs=photographs["photographs"]))


@pytest.mark.slow
def test_an_ensemble_learns_and_is_loaded_as_one(photographs, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one device: a program for several takes long to compile."""
    monkeypatch.setattr(program, "over_all_devices", lambda: over(1))
    options = {"metric": "elpips-tiny", "teacher": "lpips-tiny", "triplets": 16, "size": 32, "batch": 16, "steps": 2}
    path = train(Natural(**options, photographs=photographs["photographs"], rate=1e-2, out=tmp_path / "run"))
    trained, start = rl.load(path), rl.load("elpips-tiny")
    assert path.name == "elpips-tiny.safetensors"
    assert isinstance(trained, rl.Ensemble)
    before, after = (ensemble.metric.parameters["heads"] for ensemble in (start, trained))
    assert not np.allclose(before[0], after[0])


def test_samples_are_for_ensembles(photographs, tmp_path) -> None:
    with pytest.raises(TrainingError, match="--samples is for ensembles"):
        train(Lin(metric="lpips-tiny", samples=2, out=tmp_path / "other", photographs=photographs["photographs"]))

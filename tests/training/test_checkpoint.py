"""Checkpoints: the same bits come back, damage never does, and neither a kill nor a full disk costs the run."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlpips_jax.errors import CheckpointError, CheckpointMismatch, CheckpointWarning
from training import checkpoint
from training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]


def random_bits(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Arrays of every bit pattern: NaNs with payloads, negative zeros, subnormal numbers."""
    content = np.random.default_rng(seed).bytes(int(np.prod(shape)) * jnp.dtype(dtype).itemsize)
    return jnp.asarray(np.frombuffer(content, dtype).reshape(shape))


def drawn(seed: int) -> dict[str, Any]:
    parameters = {"kernel": random_bits((7, 5), jnp.float32, seed), "heads": (random_bits((9,), jnp.bfloat16, seed),)}
    return {
        "parameters": parameters,
        "optimiser": optax.adam(1e-3).init(parameters),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "step": jnp.asarray(seed, jnp.int32),
        "words": random_bits((4,), jnp.uint32, seed),
        "seen": np.arange(5) + seed,
    }


def bits(state: Any) -> list[tuple[str, str, bytes]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    plain = [
        (path, jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for path, leaf in leaves
    ]
    return [(jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes()) for path, leaf in plain]


def written(folder: Path, steps: Any, **options: Any) -> Path:
    with Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, drawn(step), extra={"epoch": step})
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A folder with whole checkpoints of steps 1, 2 and 3, to be copied."""
    return written(tmp_path_factory.mktemp("three") / "checkpoints", [1, 2, 3], keep=3)


@pytest.fixture
def folder(three, tmp_path) -> Path:
    return shutil.copytree(three, tmp_path / "checkpoints")


def test_orbax_does_not_ask_whether_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX answers one count of questions, and that is the loop's."""

    def asked(step: int) -> bool:
        raise AssertionError(f"asked at step {step}")

    monkeypatch.setattr(ocp.utils, "reached_preemption", asked)
    written(tmp_path / "checkpoints", [1])


def files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_new_folder_holds_nothing(tmp_path) -> None:
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.restore(drawn(0)) is None
        assert (checkpoints.steps, checkpoints.last, checkpoints.best) == ((), None, None)


@pytest.mark.parametrize("abstract", [False, True])
def test_every_bit_comes_back(folder, abstract) -> None:
    template = drawn(0)
    if abstract:
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(template)
    assert restored is not None
    assert (restored.step, restored.extra) == (3, {"epoch": 3})
    assert bits(restored.state) == bits(drawn(3))
    assert jax.tree.structure(restored.state) == jax.tree.structure(drawn(3))
    # Keys are drawn from as before.
    for name in ("key", "keys"):
        assert restored.state[name].dtype == drawn(3)[name].dtype
    assert isinstance(restored.state["seen"], np.ndarray)


def test_a_state_that_is_donated_at_once_is_saved_as_it_was(tmp_path) -> None:
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf + 1, state)

    with Checkpoints(tmp_path, keep=6) as checkpoints:
        state = step({str(i): jnp.zeros((512, 512)) for i in range(4)})
        for number in range(6):
            checkpoints.save(number, state)
            for _ in range(4):
                state = step(state)
        checkpoints.wait()
        # One step before the first save, four between two.
        for number in range(6):
            arrays = ocp.StandardCheckpointer().restore(tmp_path / str(number) / "state")
            assert {float(value) for leaf in arrays.values() for value in np.unique(leaf)} == {1 + 4 * number}


def test_shardings_are_those_of_the_template(tmp_path) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
    apart, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    state = {"w": random_bits((8, 3), jnp.float32, 0), "keys": jax.random.split(jax.random.key(0), 4)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state, apart))
        for sharding in (apart, everywhere, state["w"].sharding):
            restored = checkpoints.restore(jax.device_put(state, sharding))
            assert restored is not None
            assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in restored.state.values())
            assert bits(restored.state) == bits(state)


def test_the_last_ones_and_the_best_are_kept(tmp_path) -> None:
    scores = [None, 0.5, 0.9, 0.2, float("nan"), 0.9, 0.1, None, 0.3]
    # The later of equals is the better one.
    best = [0, 1, 2, 2, 2, 5, 5, 5, 5]
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in enumerate(scores):
            checkpoints.save(step, {"w": jnp.full(3, step)})
            if score is not None:
                checkpoints.rate(step, score)
            checkpoints.wait()
            assert (checkpoints.last, checkpoints.best) == (step, best[step])
            assert set(checkpoints.steps) == {max(step - 1, 0), step, best[step]}
            assert {path.name for path in tmp_path.iterdir()} == {"lock", *map(str, checkpoints.steps)}
        known = checkpoints.scores
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert (checkpoints.steps, checkpoints.best) == ((5, 7, 8), 8)
        checkpoints.scores = known
        assert (checkpoints.steps, checkpoints.best) == ((5, 7, 8), 5)
        restored = checkpoints.restore({"w": jnp.zeros(3, int)}, best=True)
        assert restored is not None
        assert (restored.step, restored.state["w"].tolist()) == (5, [5, 5, 5])


def test_a_score_may_come_in_another_run_and_again(folder) -> None:
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.best == 3
        checkpoints.rate(2, 0.5)
        assert checkpoints.best == 2
        checkpoints.rate(3, 0.7)
        assert checkpoints.best == 3
        checkpoints.rate(3, 0.4)
        assert checkpoints.best == 2
        with pytest.raises(CheckpointError, match=r"has no step 4 to rate; it has \[1, 2, 3\]"):
            checkpoints.rate(4, 0.1)
        # One that was begun counts as there.
        checkpoints.save(4, drawn(4))
        checkpoints.rate(4, 0.1)
        assert (checkpoints.best, checkpoints.steps) == (2, (2, 3, 4))
        known = checkpoints.scores
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.scores = known
        assert checkpoints.best == 2
        checkpoints.rate(4, 0.6)
        assert (checkpoints.best, checkpoints.steps) == (4, (4,))


def test_checkpoints_of_an_earlier_version_are_refused_and_kept(folder) -> None:
    (folder / "3" / "checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"3/checkpoint\.json was written by an earlier version"):
        Checkpoints(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_the_next_best_takes_the_place_of_a_damaged_best(tmp_path) -> None:
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step, score in enumerate([0.5, 0.9, 0.7, 0.1]):
            checkpoints.save(step, {"w": jnp.full(3, step)})
            checkpoints.rate(step, score)
        flip(tmp_path / "1" / "record" / "metadata", 3)
        with pytest.warns(CheckpointWarning, match=r"1 is damaged .*record/metadata is not what was written"):
            restored = checkpoints.restore({"w": jnp.zeros(3, int)}, best=True)
        assert restored is not None
        assert (restored.step, checkpoints.best, checkpoints.last) == (2, 2, 3)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_found(folder) -> None:
    count = 0
    for index, name in enumerate(path.relative_to(folder / "3") for path in files(folder / "3")):
        spare = shutil.copytree(folder, folder.parent / f"copy-{index}")
        flip(spare / "3" / name, bit=1000003 * index + 5)
        if str(name) in checkpoint.UNCHECKED:
            with Checkpoints(spare) as checkpoints:
                restored = checkpoints.restore(drawn(0))
            assert restored is not None
            assert (restored.step, bits(restored.state)) == (3, bits(drawn(3)))
            continue
        with pytest.warns(CheckpointWarning, match=r"copy-\d+/3 is damaged .*moved to .*damaged/3"):
            checkpoints = Checkpoints(spare)
        with checkpoints:
            restored = checkpoints.restore(drawn(0))
            assert restored is not None
            assert bits(restored.state) == bits(drawn(2))
            # The step that was lost can be taken again.
            checkpoints.save(3, drawn(30))
            again = checkpoints.restore(drawn(0))
            assert again is not None
            assert (again.step, bits(again.state)) == (3, bits(drawn(30)))
        assert (spare / "damaged" / "3" / name).exists()
        count += 1
    assert count >= 12


def test_no_bit_of_the_small_files_can_be_flipped(folder) -> None:
    for name in ("record/metadata", "SHA256SUMS"):
        path = folder / "3" / name
        content = path.read_bytes()
        for bit in range(0, 8 * len(content), 61):
            flip(path, bit)
            assert checkpoint._damage(folder / "3") is not None
            path.write_bytes(content)
        assert checkpoint._damage(folder / "3") is None


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def block(path: Path) -> None:
    """A folder where a file was cannot be read by anybody, whatever their rights."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [delete, cut, empty, lengthen, block])
@pytest.mark.parametrize("name", ["SHA256SUMS", "record/metadata", "state/manifest.ocdbt", "state/d"])
def test_what_is_damaged_is_named_and_passed_over(folder, name, damage) -> None:
    path = folder / "3" / name
    path = next(path.iterdir()) if path.is_dir() else path
    damage(path)
    with pytest.warns(CheckpointWarning, match=f"{folder / '3'} is damaged") as warned, Checkpoints(folder) as c:
        restored = c.restore(drawn(0))
    assert str(path) in str(warned[0].message) or name == "SHA256SUMS"
    assert restored is not None
    assert (restored.step, bits(restored.state)) == (2, bits(drawn(2)))


def test_a_file_that_nobody_wrote_is_damage(folder) -> None:
    (folder / "3" / "state" / "more").write_text("")
    with pytest.warns(CheckpointWarning, match="state/more is not what was written"), Checkpoints(folder) as c:
        assert c.last == 2


def test_a_checkpoint_under_another_name_is_damage(folder) -> None:
    (folder / "3").rename(folder / "4")
    with pytest.warns(CheckpointWarning, match="4 is damaged .*SUMS names .*checkpoints/3/"), Checkpoints(folder) as c:
        assert c.last == 2


def test_damage_while_the_run_goes_on_is_found_too(folder) -> None:
    with Checkpoints(folder) as checkpoints:
        flip(folder / "3" / "state" / "manifest.ocdbt", 77)
        with pytest.warns(CheckpointWarning, match="manifest.ocdbt is not what was written"):
            restored = checkpoints.restore(drawn(0))
        assert restored is not None
        assert restored.step == 2
        assert checkpoints.steps == (1, 2)


def test_if_all_are_damaged_the_run_does_not_begin_anew(folder) -> None:
    for step in "123":
        (folder / step / "record" / "metadata").unlink()
    with pytest.warns(CheckpointWarning, match="is damaged") as warned:
        checkpoints = Checkpoints(folder)
    assert len(warned) == 3
    every = r"damaged/1 \(.*damaged/2 \(.*damaged/3 \(.*SUMS names .*3/record/metadata, and there is no such file"
    with checkpoints, pytest.raises(CheckpointError, match=every):
        checkpoints.restore(drawn(0))
    # Not at the second attempt either, when nothing is left that could be warned of.
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        checkpoints.restore(drawn(0))


def test_a_template_of_another_state_is_refused_and_nothing_is_lost(folder) -> None:
    wrong = drawn(0)
    wrong["parameters"]["kernel"] = jnp.zeros((7, 6))
    wrong["words"] = wrong["words"].astype(jnp.int32)
    wrong["key"] = jax.random.key(0, impl="rbg")
    wrong["more"] = wrong.pop("step")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointMismatch) as refused:
            checkpoints.restore(wrong)
        for part in (
            "5 differences",
            "its parameters/kernel is float32[7,5], but should be float32[7,6]",
            "its words is uint32[4], but should be int32[4]",
            "its key is key<fry>[], but should be key<rbg>[]",
            "it has no more",
            "its step has no place here",
        ):
            assert part in str(refused.value)
        assert checkpoints.steps == (1, 2, 3)
        assert checkpoints.restore(drawn(0)) is not None


def test_what_cannot_be_saved_is_refused(folder) -> None:
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(CheckpointError, match="holds step 3 already; step 3 is not later"):
            checkpoints.save(3, drawn(3))
        with pytest.raises(CheckpointMismatch, match=r"rate is 0\.1, but a state holds arrays"):
            checkpoints.save(4, {"rate": 0.1})
        with pytest.raises(CheckpointMismatch, match="two arrays of the state are called a/b"):
            checkpoints.save(4, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(4, drawn(4), extra={"path": folder})
        checkpoints.save(4, drawn(4))
    with pytest.raises(CheckpointError, match="at least 1"):
        Checkpoints(folder, keep=0)


def test_one_run_at_a_time(folder) -> None:
    with Checkpoints(folder), pytest.raises(CheckpointError, match=r"lock is held by process \d+"):
        Checkpoints(folder)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.last == 3


PROGRAM = """
import os, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from training.checkpoint import Checkpoints

def state(step):
    return {"w": jnp.full((256, 256), step, jnp.float32), "key": jax.random.key(step)}

with Checkpoints(Path(sys.argv[1])) as checkpoints:
    restored = checkpoints.restore(state(0))
    step = 0 if restored is None else restored.step
    if restored is not None:
        assert (np.asarray(restored.state["w"]) == step).all()
        assert (jax.random.key_data(restored.state["key"]) == jax.random.key_data(jax.random.key(step))).all()
    print("restored", step, flush=True)
    while True:
        step += 1
        checkpoints.save(step, state(step))
        checkpoints.rate(step, -step % 5)
        if checkpoints.last is not None:
            print("whole", checkpoints.last, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning", "XLA_FLAGS": ""}
    whole = 0
    for delay in (0.0, 0.03, 0.11, 0.35):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            restored, step = process.stdout.readline().split()
            assert restored == "restored"
            assert int(step) >= whole
            while whole < int(step) + 2:
                whole = int(process.stdout.readline().split()[1])
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            whole = max([whole, *(int(line.split()[1]) for line in process.stdout if line.endswith("\n"))])
        assert process.returncode == -signal.SIGKILL
    with Checkpoints(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore({"w": jnp.zeros((256, 256)), "key": jax.random.key(0)})
        assert restored is not None
        assert restored.step >= whole >= 8
        assert (np.asarray(restored.state["w"]) == restored.step).all()
    assert not list((tmp_path / "run").glob("*.*"))


def test_a_checkpoint_that_was_being_written_or_removed_is_cleared_away(folder) -> None:
    (folder / "removed").mkdir()
    (folder / "3").rename(folder / "removed" / "3")
    (folder / "4.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == (1, 2)
        checkpoints.save(5, drawn(5))
        checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["2", "5", "lock"]


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def train_to_a_division_by_zero(checkpoints: Checkpoints, state: Any) -> float:
    checkpoints.save(3, state)
    return 1 / len(checkpoints.steps[2:])


# Orbax closes its event loop at the first failure, and what else was being written may fail after that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_and_costs_no_checkpoint(tiny_disk) -> None:
    folder = tiny_disk / "checkpoints"
    large = {"w": random_bits((1000, 1000), jnp.float32, 0)}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, drawn(1))
        checkpoints.save(2, large)
        with pytest.raises(
            CheckpointError,
            match=rf"disk is full.* step 2 takes up to 4\.0 MB, and {folder} has [01]\.\d MB free; .*step 1, is intact",
        ):
            checkpoints.wait()
        assert sorted(path.name for path in folder.iterdir()) == ["1", "lock"]
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(drawn(0))
        assert restored is not None
        assert (restored.step, bits(restored.state)) == (1, bits(drawn(1)))
        checkpoints.save(2, drawn(2))
    # It is said too when nobody waits any more.
    with pytest.raises(CheckpointError, match="disk is full"), Checkpoints(folder) as checkpoints:
        checkpoints.save(3, large)
    # An error of the run's own comes first, and this one with it.
    with pytest.raises(ZeroDivisionError) as stopped, Checkpoints(folder) as checkpoints:
        train_to_a_division_by_zero(checkpoints, large)
    assert "disk is full" in stopped.value.__notes__[0]


def at_once(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def within_orbax(*_: object) -> None:
    raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']")


def over_quota(*_: object, **__: object) -> bytes:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def save_and_wait(checkpoints: Checkpoints) -> None:
    checkpoints.save(4, drawn(4))
    checkpoints.wait()


@pytest.mark.parametrize(
    ("place", "name", "failure"),
    [
        (ocp.CheckpointManager, "save", at_once),
        (ocp.CheckpointManager, "wait_until_finished", within_orbax),
        (checkpoint, "_sums", over_quota),
    ],
)
def test_a_full_disk_is_told_wherever_it_surfaces(folder, monkeypatch, place, name, failure) -> None:
    with Checkpoints(folder) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(place, name, failure)
            with pytest.raises(CheckpointError, match=r"disk is full: .*step 4 .*step 3, is intact"):
                save_and_wait(checkpoints)
        # With room again, the same run could go on.
        save_and_wait(checkpoints)
        assert checkpoints.last == 4


def test_another_failure_to_write_is_told_as_it_is(folder, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> bytes:
        raise OSError(errno.EIO, "the disk is gone")

    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr(checkpoint, "_sums", unreachable)
        checkpoints.save(4, drawn(4))
        with pytest.raises(CheckpointError, match=r"4 could not be written; .*step 3, is intact: .*is gone"):
            checkpoints.wait()
        monkeypatch.undo()

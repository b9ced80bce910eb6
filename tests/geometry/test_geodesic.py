"""Paths: their ends, their range, what they are where that is known, and that they can be interrupted."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from rlpips_jax import geometry
from rlpips_jax.geometry import snapshots
from tests.geometry.conftest import descended, mean_square

Ends = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def ends() -> Ends:
    coarse = np.random.default_rng(0).uniform(size=(2, 2, 2, 3))
    a, b = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    return a, b


def test_under_squared_pixel_differences_it_is_a_crossfade(ends: Ends) -> None:
    """In a flat space straight lines, walked evenly, are shortest; the start is far from one."""
    noise = np.random.default_rng(1).uniform(size=(5, 8, 8, 3)).astype(np.float32)
    result = descended(
        geometry.geodesic,
        ends[0],
        ends[1],
        5,
        mean_square,
        start=noise,
        exponent=1,
        steps=2000,
        begin=0,
        pace=5,
        coarsest=8,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(result.frames, geometry.crossfade(ends[0], ends[1], 5), atol=0.02)
    np.testing.assert_allclose(result.distances, result.distances.mean(), rtol=0.1)


def test_a_crossfade_is_a_straight_line_whatever_its_ends_are_in(ends: Ends, wrong_types: None) -> None:
    a, b = (np.rint(255 * end).astype(np.uint8) for end in ends)
    t = np.array([0, 0.25, 0.5, 0.75, 1])[:, None, None, None]
    line = ((1 - t) * a + t * b) / 255
    np.testing.assert_allclose(geometry.crossfade(a, b, 5), line, atol=1e-6)
    np.testing.assert_allclose(geometry.crossfade(a, b, 5, value_range=(-1, 1)), 2 * line - 1, atol=1e-6)
    np.testing.assert_allclose(geometry.crossfade(a, (b / 255).astype(np.float32), 5), line, atol=1e-6)
    in_bytes = geometry.crossfade(a.astype(np.float32), b.astype(np.float32), 5, value_range=(0, 255))
    np.testing.assert_allclose(in_bytes, 255 * line, atol=1e-4)
    held: list[Any] = [Held(a), Held(b)]
    np.testing.assert_allclose(geometry.crossfade(held[0], held[1], 5), line, atol=1e-6)
    np.testing.assert_array_equal(geometry.crossfade(ends[0], ends[1], 2), np.stack(ends))
    with pytest.raises(rl.ImageError, match="a and b must be two images"):
        geometry.crossfade(a, b[:4], 5)
    with pytest.raises(rl.ImageError, match="a and b must be two images"):
        geometry.crossfade(a[None], b[None], 5)
    with pytest.raises(rl.ImageError, match=r"outside value_range=\(0, 1\)"):
        geometry.crossfade(a.astype(np.float32), b.astype(np.float32), 5)
    counts: list[Any] = [1, 2.5]
    for frames in counts:
        with pytest.raises(rl.GeometryError, match="frames must be a whole number, 2 or more, got"):
            geometry.crossfade(a, b, frames)


@pytest.mark.slow
def test_ends_are_fixed_and_frames_in_range(metric: rl.Lpips, photographs: np.ndarray) -> None:
    a, b = 255 * photographs[:2]
    result = descended(geometry.geodesic, a, b, 4, metric, steps=20, value_range=(0, 255))
    assert result.frames.shape == (4, *a.shape)
    np.testing.assert_array_equal(result.frames[0], a)
    np.testing.assert_array_equal(result.frames[-1], b)
    assert 0 <= float(result.frames.min()) < float(result.frames.max()) <= 255
    again = rl.distance(result.frames[:-1], result.frames[1:], metric, value_range=(0, 255))
    np.testing.assert_allclose(result.distances, again, rtol=1e-3)
    fade = geometry.crossfade(a, b, 4, value_range=(0, 255))
    straight = rl.distance(fade[:-1], fade[1:], metric, value_range=(0, 255))
    assert float((again**2).sum()) < float((straight**2).sum())


class Held:
    """An image that is no array of NumPy or JAX but can be read as one, as PyTorch's tensors are."""

    dtype = "held"

    def __init__(self, image: np.ndarray) -> None:
        self.image = image

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.image


def test_ends_may_be_any_arrays(ends: Ends, wrong_types: None) -> None:
    bytes_ = [np.rint(255 * end).astype(np.uint8) for end in ends]
    options: dict[str, Any] = {"steps": 1, "key": jax.random.key(0)}
    known = descended(geometry.geodesic, bytes_[0], bytes_[1], 3, mean_square, **options)
    held: list[Any] = [Held(image) for image in bytes_]
    found = descended(geometry.geodesic, held[0], held[1], 3, mean_square, **options)
    np.testing.assert_array_equal(found.frames, known.frames)
    np.testing.assert_allclose(found.frames[0], bytes_[0] / 255, rtol=1e-6)


def late_change(t: Any) -> Any:
    """The published rate but for one step."""
    return jnp.where(t == 2050, 0.1, geometry.published_rate(t))


class Stop(Exception):
    """What `watch` raises."""


@pytest.mark.parametrize("after", [10, 20, 35])
def test_a_resumed_path_is_the_same_bit_for_bit(ends: Ends, tmp_path: Path, after: int) -> None:
    def noisy(x: Any, y: Any, key: Any) -> Any:
        return mean_square(x, y, key) * jax.random.uniform(key)

    options: dict[str, Any] = {
        "steps": (15, 25),
        "coarsest": 4,
        "key": jax.random.key(3),
        "exponent": 1,
        "name": "noisy",
    }
    seen: list[geometry.Progress] = []
    whole = descended(geometry.geodesic, ends[0], ends[1], 4, noisy, watch=seen.append, **options)
    assert [progress.step for progress in seen] == [10, 15, 25, 35, 40]
    assert [progress.size for progress in seen] == [(4, 4)] * 2 + [(8, 8)] * 3
    assert {progress.steps for progress in seen} == {40}

    def stop(progress: geometry.Progress) -> None:
        if progress.step >= after:
            raise Stop

    snapshot = tmp_path / "folder" / "state.npz"
    with pytest.raises(Stop):
        descended(geometry.geodesic, ends[0], ends[1], 4, noisy, watch=stop, snapshot=snapshot, **options)
    resumed: list[geometry.Progress] = []
    found = descended(geometry.geodesic, ends[0], ends[1], 4, noisy, watch=resumed.append, snapshot=snapshot, **options)
    assert resumed[0].step > after
    for name in ("frames", "distances", "objective"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    # And once more, when all is done.
    resumed.clear()
    found = descended(geometry.geodesic, ends[0], ends[1], 4, noisy, watch=resumed.append, snapshot=snapshot, **options)
    assert not resumed
    np.testing.assert_array_equal(found.frames, whole.frames)
    assert [path.name for path in snapshot.parent.iterdir()] == ["state.npz"]


def test_a_snapshot_of_another_run_is_refused(ends: Ends, tmp_path: Path) -> None:
    snapshot = tmp_path / "state.npz"
    options: dict[str, Any] = {"steps": 2, "key": jax.random.key(0), "snapshot": snapshot, "name": "mean square"}
    descended(geometry.geodesic, ends[0], ends[1], 3, mean_square, **options)
    before = snapshot.read_bytes()
    others: list[tuple[dict[str, Any], str]] = [
        ({"steps": 3}, r"steps is \[2\] there and \[3\] here"),
        ({"key": jax.random.key(1)}, "key is"),
        ({"exponent": 1}, "exponent is 2 there and 1 here"),
        ({"pace": 1}, "pace is 50.0 there and 1.0 here"),
        ({"name": "mean square 2"}, 'distance is "mean square" there'),
        ({"rate": late_change}, "the learning rate at step 1 is 0.0043640. there and 0.1 here"),
    ]
    for other, word in others:
        with pytest.raises(rl.SnapshotError, match=f"a snapshot of another run.*{word}.*remove the file"):
            descended(geometry.geodesic, ends[0], ends[1], 3, mean_square, **(options | other))
    with pytest.raises(rl.SnapshotError, match="images is"):
        descended(geometry.geodesic, ends[1], ends[0], 3, mean_square, **options)
    with pytest.raises(rl.SnapshotError, match='what is "geodesic" there and "average" here'):
        descended(geometry.average, np.stack(ends), mean_square, **options)
    assert snapshot.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "folder"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.npz"
    snapshots.write(path, {"what": "test"}, {"values": np.arange(1000)})
    found = snapshots.read(path, {"what": "test"})
    assert found is not None
    np.testing.assert_array_equal(found["values"], np.arange(1000))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("hello")
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(rl.SnapshotError, match="is not a complete snapshot"):
        snapshots.read(path, {"what": "test"})


def test_no_snapshot_is_none_and_an_unwritable_one_an_error(tmp_path: Path) -> None:
    assert snapshots.read(tmp_path / "absent.npz", {}) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(rl.SnapshotError, match="cannot be written"):
        snapshots.write(tmp_path / "file" / "state.npz", {}, {})


def test_errors_name_what_was_wrong(ends: Ends, metric: rl.Lpips, photographs: np.ndarray) -> None:
    key = jax.random.key(0)
    with pytest.raises(rl.GeometryError, match="frames must be a whole number, 3 or more, got 2"):
        descended(geometry.geodesic, ends[0], ends[1], 2, mean_square, key=key)
    with pytest.raises(rl.ImageError, match="a and b must be two images"):
        descended(geometry.geodesic, ends[0], ends[1][:4], 3, mean_square, key=key)
    with pytest.raises(rl.ImageError, match="outside value_range"):
        descended(geometry.geodesic, photographs[0] * 255, photographs[1] * 255, 3, metric)
    with pytest.raises(rl.GeometryError, match="start must be the frames"):
        descended(geometry.geodesic, ends[0], ends[1], 3, mean_square, start=np.stack(ends), key=key)
    with pytest.raises(rl.ImageError, match="batches"):
        geometry.distances(ends[0], ends[1], mean_square, key=key)


def test_distances_are_means_over_draws(ends: Ends) -> None:
    def drawn(x: Any, y: Any, key: Any) -> Any:
        return mean_square(x, y, key) * jax.random.uniform(key, maxval=2)

    both = np.stack(ends)
    found = geometry.distances(both[:1], both, drawn, key=jax.random.key(0))
    exact = mean_square(both[:1], both, None)
    assert found[0] == 0
    assert 0.5 * exact[1] < found[1] < 1.5 * exact[1]
    assert found[1] != exact[1]


def test_who_judges_has_draws_that_no_step_had(ends: Ends) -> None:
    """One key for both, as the commands have it: a step that had a judge's draw would make it biased."""
    seen: set[bytes] = set()

    def drawn(x: Any, y: Any, key: Any) -> Any:
        jax.debug.callback(lambda data: seen.add(np.asarray(data).tobytes()), jax.random.key_data(key))
        return mean_square(x, y, key)

    key = jax.random.key(0)
    options: dict[str, Any] = {"steps": 20, "exponent": 1, "key": key}
    result = descended(geometry.geodesic, ends[0], ends[1], 3, drawn, **options)
    jax.effects_barrier()
    of_all = set(seen)
    seen.clear()
    again = geometry.distances(result.frames[:-1], result.frames[1:], drawn, key=key)
    jax.effects_barrier()
    assert len(seen) == 16
    assert len(of_all - seen) == 20
    np.testing.assert_array_equal(again, result.distances)
    steps = {np.asarray(jax.random.key_data(jax.random.fold_in(key, step))).tobytes() for step in range(20)}
    assert steps == of_all - seen


def test_a_metric_is_known_by_its_signature_unless_the_caller_names_it(
    metric: rl.Lpips, photographs: np.ndarray, tmp_path: Path
) -> None:
    """A function has none, even where an attribute is missing for another reason; a name stands for the signature."""
    options: dict[str, Any] = {"steps": 1, "snapshot": tmp_path / "state.npz"}
    first = descended(geometry.geodesic, *photographs[:2], 3, metric, **options)
    again = descended(geometry.geodesic, *photographs[:2], 3, metric, **options)
    np.testing.assert_array_equal(first.frames, again.frames)
    with pytest.raises(rl.SnapshotError, match=r'another run: distance is "rlpips-jax.*there and "mine" here'):
        descended(geometry.geodesic, *photographs[:2], 3, metric, name="mine", **options)

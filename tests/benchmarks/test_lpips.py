"""The parts of the comparison that are not timing."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import lpips
from benchmarks.lpips import Lpips, Measured, Size, Table
from rlpips_jax.backbones import TINY


def test_sizes() -> None:
    assert Size.parse("16x256") == Size(16, 256)
    assert str(Size(16, 256)) == "16 of 256x256"


@pytest.mark.parametrize("text", ["", "16", "0x64", "16x", "16x-4", "16x64x3", "a x b"])
def test_what_is_no_size(text) -> None:
    with pytest.raises(ValueError, match="such as 16x256"):
        Size.parse(text)


def check_images(x: np.ndarray, y: np.ndarray, size: Size) -> None:
    assert x.shape == y.shape == (size.count, size.side, size.side, 3)
    assert x.dtype == y.dtype == np.float32
    assert max(np.abs(x).max(), np.abs(y).max()) <= 1
    assert (np.abs(x - y).mean((1, 2, 3)) > 0.01).all()
    assert (x.std((1, 2, 3)) > 0.01).all()
    assert len({image.tobytes() for image in x}) == size.count


def test_images_are_drawn_where_there_are_no_photographs(tmp_path) -> None:
    size = Size(3, 40)
    pair = lpips.images(tmp_path, size)
    check_images(*pair, size)
    np.testing.assert_array_equal(pair, lpips.images(tmp_path, size))


@pytest.mark.shared
def test_images_are_crops_of_photographs(shared) -> None:
    size = Size(30, 64)
    check_images(*lpips.images(shared, size), size)


def test_relative_differences() -> None:
    assert lpips.relative_difference(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert math.isnan(lpips.relative_difference(np.array([1.0, np.nan]), np.array([1.0, 2.0])))


def test_float64_is_near_float32_and_nearer_to_itself(drawn, tmp_path) -> None:
    metric = drawn(TINY)
    x, y = lpips.images(tmp_path, Size(2, 48))
    exact, slope = lpips.in_float64(metric, x, y)
    assert exact.dtype == slope.dtype == np.float64
    assert slope.shape == y.shape
    found = np.asarray(rl.distance(x, y, metric, value_range=(-1, 1)))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert (found != exact).any()


def test_cells_of_times() -> None:
    times = {"ours": [0.1, 0.2], "theirs": [0.2, 0.4]}
    assert lpips.times_cells(times, ["ours", "theirs", "absent"]) == ["150 ms", "300 ms, x 2 (2 to 2)", "-"]
    assert lpips.seconds(1.5) == "1.5 s"


@pytest.mark.parametrize(
    ("distance", "mode", "marked"),
    [(1e-6, "float32", False), (1e-3, "float32", True), (math.nan, "float32", True), (1e-3, "bfloat16", False)],
)
def test_other_numbers_are_marked(distance, mode, marked) -> None:
    check = {"distance": distance, "float64": 1e-6, "gradient": 1e-6}
    assert ("**other numbers**" in lpips.check_cell(check, "theirs", mode)) == marked
    assert lpips.check_cell(None, "theirs", mode) == "-"


@pytest.mark.parametrize(("busy", "told"), [(0.5, True), (0.01, False), (math.nan, False)])
def test_the_document_tells_what_was_not_measured_and_who_else_ran(busy, told) -> None:
    table = Table("Title", ["a", "b"], [["1", "2"]])
    text = lpips.document(Lpips(), {"speed": Measured([table], {})}, {"lpips, alex": "is not there"}, {"speed": busy})
    assert "### Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n" in text
    assert "- lpips, alex: is not there" in text
    assert ("The machine was busy" in text) == told


def test_the_attacks_raise_the_distance_and_stay_in_range(tmp_path) -> None:
    metric = rl.load("lpips-tiny")
    x, y = lpips.images(tmp_path, Size(1, 32))
    before = float(rl.distance(x, y, metric, value_range=(-1, 1))[0])
    for function in (lpips.attack_by_library, lpips.attack_cached, lpips.attack_anew):
        end = np.asarray(function(metric, jnp.asarray(x), jnp.asarray(y)))
        assert np.abs(end).max() <= 1
        assert float(rl.distance(x, end, metric, value_range=(-1, 1))[0]) > 2 * before
        # No pixel can go further than all steps together, and the first moves nearly every one.
        assert np.abs(end - y).max() <= lpips.STEPS * lpips.STEP + 1e-5
        assert np.mean(end != y) > 0.9


def test_a_failure_is_one_line() -> None:
    assert lpips.failure(ValueError("first\nsecond")) == "fails: ValueError: first"
    assert lpips.failure(ValueError()) == "fails: ValueError: "


def test_a_process_compiles_anew_unless_given_a_cache(monkeypatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/the/user")
    assert "JAX_COMPILATION_CACHE_DIR" not in lpips.environment()
    assert lpips.environment("/here")["JAX_COMPILATION_CACHE_DIR"] == "/here"

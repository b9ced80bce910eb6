"""The parts of the comparison that are not timing."""

import math

import numpy as np
import pytest

import rlpips_jax as rl
from benchmarks import lpips
from benchmarks.images import Size, images
from benchmarks.lpips import Lpips, Measured
from benchmarks.report import Table
from rlpips_jax.backbones import TINY


@pytest.mark.slow
def test_float64_is_near_float32_and_nearer_to_itself(drawn, tmp_path) -> None:
    metric = drawn(TINY)
    x, y = images(tmp_path, Size(2, 48))
    exact, slope = lpips.in_float64(metric, x, y)
    assert exact.dtype == slope.dtype == np.float64
    assert slope.shape == y.shape
    found = np.asarray(rl.distance(x, y, metric, value_range=(-1, 1)))
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    assert (found != exact).any()


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


def test_a_failure_is_one_line() -> None:
    assert lpips.failure(ValueError("first\nsecond")) == "fails: ValueError: first"
    assert lpips.failure(ValueError()) == "fails: ValueError: "


def test_a_process_compiles_anew_unless_given_a_cache(monkeypatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/of/the/user")
    assert "JAX_COMPILATION_CACHE_DIR" not in lpips.environment()
    assert lpips.environment("/here")["JAX_COMPILATION_CACHE_DIR"] == "/here"

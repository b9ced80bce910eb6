"""Charts that put points where they belong, and pages that show everything as what it is."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpips_jax.errors import ReportError
from rlpips_jax.reports.charts import WIDTH, Curve, Dots, curve_chart, dot_chart, ticks
from rlpips_jax.reports.page import Cell, Section, Shown, Table, Text, prose, render


def marks(svg: str) -> np.ndarray:
    return np.array(re.findall(r'class="mark[^>]*translate\(([\d.-]+) ([\d.-]+)\)', svg), float)


def test_points_of_curves_are_where_their_numbers_say() -> None:
    x, y = [0.0, 1.0, 3.0, 4.0], [1.0, 0.5, 0.25, 0.0]
    chart = curve_chart([Curve("a & b", 0, x, y)], title="t", x_label="x", y_label="y")
    places = marks(chart.svg)
    # Affine in the numbers: equal steps of x and y are equal steps on the page, upwards.
    steps = np.diff(places, axis=0) / np.diff(np.stack([x, y], 1), axis=0)
    assert np.ptp(steps, axis=0).max() < 0.5
    assert steps[0, 0] > 0 > steps[0, 1]
    assert places.min() >= 0
    assert places[:, 0].max() <= WIDTH
    assert "a &amp; b: 0.500 at 1" in chart.svg


def test_dots_are_in_their_rows_and_gaps_stay_empty() -> None:
    values = [(0.2, 0.1, 0.3), None, (0.9, 0.8, 1.0)]
    chart = dot_chart(["a", "b", "c"], [Dots("m", 1, values)], title="t", x_label="x")
    places = marks(chart.svg)
    assert len(places) == 2
    assert (np.diff(places, axis=0) > 0).all()


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within(low: float, length: float) -> None:
    high = low + length
    if high == low:
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-6 * length <= tick <= high + 1e-6 * length for tick in found)
    if len(found) > 2 and length > 1e-4 * abs(low):
        step = found[1] - found[0]
        lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(lead - factor) for factor in (1, 2, 5, 10)) < 1e-3


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(ReportError, match="a curve or more"):
        curve_chart([], title="t", x_label="x", y_label="y")
    with pytest.raises(ReportError, match="bad has a number that is not finite"):
        curve_chart([Curve("bad", 0, [0.0], [math.nan])], title="t", x_label="x", y_label="y")
    with pytest.raises(ReportError, match="2 values for 1 rows"):
        dot_chart(["a"], [Dots("m", 0, [None, None])], title="t", x_label="x")
    with pytest.raises(ReportError, match="2 cells for 1 columns"):
        Table(("a",), [("1", "2")])


def test_prose_marks_and_escapes() -> None:
    assert prose("`a<b` **and** [c](https://example.org/?d=1&e=2) <script>") == (
        '<code>a&lt;b</code> <strong>and</strong> <a href="https://example.org/?d=1&amp;e=2">c</a> &lt;script&gt;'
    )
    assert prose("[no](javascript:alert)") == "[no](javascript:alert)"


def test_names_are_escaped_everywhere() -> None:
    bad = '<img src=x onerror="y">'
    table = Table((bad, bad), [(bad, Cell(bad, bad))], bad)
    page = render(bad, bad, [Section(bad, [Text(bad), table])])
    assert "<img src=x" not in page


def test_columns_of_numbers_stand_to_the_right() -> None:
    table = Table(("metric", "score", "data"), [("a", Cell("0.5", "[0, 1]"), "kodak"), ("b", "-", "kodak")])
    assert table.numeric == [False, True, False]


def test_pictures_are_png_of_the_same_pixels() -> None:
    import base64
    import io

    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    shown = Shown(picture, "noise")
    assert shown.size == (7, 5)
    stored = base64.b64decode(shown.address.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), picture)

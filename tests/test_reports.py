"""Numbers that give themselves back, tables that align, colours and pictures that show what they should."""

import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rlpips_jax import reports
from rlpips_jax.errors import ImageError, MetricError

FLOATS = st.floats(0, width=32, allow_nan=False, allow_infinity=False)
PLAIN = re.compile(r"\d+\.\d+")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L*, by its definition, of sRGB colours."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


@given(FLOATS)
def test_decimals_give_back_the_float32(value: float) -> None:
    text = reports.decimal(np.float32(value))
    assert PLAIN.fullmatch(text)
    assert np.float32(text) == np.float32(value)


@pytest.mark.parametrize("value", [1e-30, 0.1, 2 / 3, 12345.678])
def test_decimals_of_float64_give_back_the_float64(value: float) -> None:
    assert float(reports.decimal(np.float64(value))) == value


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_has_no_digits(value: float) -> None:
    with pytest.raises(MetricError, match="finite"):
        reports.decimal(value)


def test_zero_differs_from_what_is_merely_small() -> None:
    assert reports.plain(0.0) == "0"
    assert reports.plain(1e-9) == "0.000000"
    assert reports.plain(0.72188) == "0.721880"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | FLOATS.map(np.float32),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=12,
    )
)
def test_json_is_what_json_reads(document: object) -> None:
    def expected(value: object) -> object:
        if isinstance(value, dict):
            return {key: expected(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expected(item) for item in value]
        return float(reports.decimal(value)) if isinstance(value, np.floating) else value

    assert json.loads(reports.json_text(document)) == expected(document)


def test_json_writes_no_exponent() -> None:
    text = reports.json_text({"results": [{"image": "a", "distance": np.float32(1.5e-7)}]})
    assert '{"image": "a", "distance": 0.00000015}' in text


def test_csv_keeps_names_and_digits() -> None:
    name, value = 'a, "b"\n.png', np.float32(1e-8)
    header, row = csv.reader(io.StringIO(reports.csv_text(("image", "distance"), [(name, value)])))
    assert header == ["image", "distance"]
    assert row[0] == name
    assert np.float32(row[1]) == value


def test_columns_of_a_table_align() -> None:
    lines = reports.table(("image", "distance"), [("a", "0"), ("longer name", "12.5")]).splitlines()
    assert lines == ["image        distance", "a                   0", "longer name      12.5"]


def test_few_says_how_many_are_left_out() -> None:
    assert reports.few(["a", "b"]) == "a, b"
    assert reports.few(list("abcde")) == "a, b, c and 2 more"


def test_heat_rises_in_lightness_by_even_steps() -> None:
    colours = reports.heat(np.linspace(0, 1, 256)[None], 1.0)[0]
    rising = lightness(colours)
    assert (np.diff(rising[::8]) > 0).all()
    assert rising[0] < 5
    assert rising[-1] > 90
    # No step stands out as an edge that is not in the values, as in a rainbow.
    steps = np.diff(rising[::16])
    assert steps.max() < 2 * np.median(steps)


def test_heat_ends_at_the_maximum() -> None:
    colours = reports.heat(np.array([[0.0, 2.0, 5.0]]), 2.0)
    assert (colours[0, 1] == colours[0, 2]).all()
    assert (colours[0, 0] != colours[0, 1]).any()


@pytest.mark.parametrize(("values", "maximum"), [([[-1.0]], 1.0), ([[np.nan]], 1.0), ([[1.0]], 0.0)])
def test_heat_refuses_what_has_no_colour(values: list[list[float]], maximum: float) -> None:
    with pytest.raises(ImageError, match="heat map"):
        reports.heat(np.array(values), maximum)


@pytest.mark.parametrize("shape", [(64, 64), (20, 700), (1100, 600)])
def test_heat_map_shows_both_pictures_and_the_map(shape: tuple[int, int]) -> None:
    reference, image = (np.full((*shape, 3), level, np.uint8) for level in (60, 190))
    values = np.zeros(shape)
    values[: shape[0] // 2] = 1
    sheet = reports.heat_map(reference, image, values, names=("r", "i"), title="t", notes=("distance 1", "signature"))
    hottest, coldest = reports.heat(np.array([[1.0, 0.0]]), 1.0)[0]
    # In reading order: reference, image, map, whose upper half is hot.
    left = []
    for colour in ((60,) * 3, (190,) * 3, hottest, coldest):
        there = np.argwhere((sheet == colour).all(axis=-1))
        assert len(there), colour
        left.append(there[:, 1].min())
    assert left[0] < left[1] < left[2] == left[3]
    assert sheet.shape[1] <= 3 * reports.LARGEST_PANEL + 100


def test_heat_map_keeps_its_scale() -> None:
    flat = np.zeros((64, 64, 3), np.uint8)
    low, high = (
        reports.heat_map(flat, flat, np.full((64, 64), level), names=("r", "i"), title="t", maximum=4.0)
        for level in (1.0, 2.0)
    )
    assert (low != high).any()


def test_heat_map_of_identical_images_is_cold() -> None:
    flat = picture(64, 64)
    sheet = reports.heat_map(flat, flat, np.zeros((64, 64)), names=("r", "i"), title="t")
    assert (sheet[100, -100] == reports.heat(np.zeros((1, 1)), 1.0)[0, 0]).all()


def test_heat_map_takes_images_of_16_bits() -> None:
    floats = picture(64, 64).astype(np.float32) / 255
    as_bytes = np.rint(floats * 255).astype(np.uint8)
    from_floats, from_bytes = (
        reports.heat_map(image, image, np.ones((64, 64)), names=("r", "i"), title="t") for image in (floats, as_bytes)
    )
    np.testing.assert_array_equal(from_floats, from_bytes)


def test_heat_map_refuses_sizes_that_differ(wrong_types) -> None:
    with pytest.raises(ImageError, match="one size"):
        reports.heat_map(picture(64, 64), picture(64, 65), np.zeros((64, 64)), names=("r", "i"), title="t")


def test_contact_sheet_shows_every_picture_where_it_belongs() -> None:
    grid = [[np.full((50, 80, 3), 20 + 40 * (3 * row + column), np.uint8) for column in range(3)] for row in range(2)]
    tiles = [[reports.Tile(tile, ("a caption", "0.5")) for tile in row] for row in grid]
    sheet = reports.contact_sheet(tiles, title="title", size=80)
    centres = np.array([[np.argwhere((sheet == tile[0, 0]).all(axis=-1)).mean(axis=0) for tile in row] for row in grid])
    assert (np.diff(centres[..., 1], axis=1) > 80).all()
    assert (np.diff(centres[..., 0], axis=0) > 80).all()
    # Every pixel of every picture is there, none is covered by a caption.
    assert all((sheet == tile[0, 0]).all(axis=-1).sum() >= 50 * 80 for row in grid for tile in row)


def test_captions_are_drawn_and_long_ones_stay_within() -> None:
    tile = picture(80, 80)
    without = reports.contact_sheet([[reports.Tile(tile)]], size=80)
    with_text = reports.contact_sheet([[reports.Tile(tile, ("x" * 200,))]], size=80)
    assert with_text.shape[0] > without.shape[0]
    # A glyph may begin a pixel before its place.
    below, margin = with_text[reports.MARGIN + 80 :], reports.MARGIN - 2
    assert (below[:, :margin] == 255).all()
    assert (below[:, -margin:] == 255).all()
    assert (below < 128).any()


def test_contact_sheet_needs_pictures() -> None:
    with pytest.raises(ImageError, match="picture"):
        reports.contact_sheet([])


def test_sheets_can_be_saved_by_pillow() -> None:
    assert Image.fromarray(reports.contact_sheet([[reports.Tile(picture(10, 20))]])).mode == "RGB"

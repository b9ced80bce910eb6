"""Charts as SVG, drawn here: their colours follow the page that they are in, so they are readable light and dark.

A chart is a string of SVG without scripts, styles or references; `page.css` beside the template has its classes.
All charts are 420 wide in their own units, so that text stays readable on a telephone.
"""

import html
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlpips_jax.errors import ReportError

Real = float | int
Ends = tuple[Real, Real]
Place = Callable[[Real, Real], tuple[float, float]]
"""Where numbers are in the drawing."""

WIDTH = 420
COLOURS = 8
"""Colours that the style sheet has; further ones repeat."""

FRAME = (46, 12, 14, 42)
"""Room for what stands around a chart of curves: left, top, right and bottom."""

ROW, DOT = 14, 9
"""Height of a row of dots without its dots, and of each dot."""


@dataclass(frozen=True)
class Curve:
    """A line through points, with a band around it.

    Attributes:
        label: in the legend.
        colour: 0 to 7, which also selects the shape of the marks.
        x: of the points, rising.
        y: of the points.
        band: lower and upper ends of the intervals of y; None for no band.
        marks: whether each point has a mark, with its numbers.
    """

    label: str
    colour: int
    x: Sequence[Real]
    y: Sequence[Real]
    band: tuple[Sequence[Real], Sequence[Real]] | None = None
    marks: bool = True


@dataclass(frozen=True)
class Dots:
    """A column of dots, one for each row of a chart, with intervals.

    Attributes:
        label: in the legend.
        colour: 0 to 7.
        values: mean, low and high of each row; None where a row has no value.
    """

    label: str
    colour: int
    values: Sequence[tuple[Real, Real, Real] | None]


@dataclass(frozen=True)
class Chart:
    """A chart, as it stands in a page.

    Attributes:
        svg: the drawing.
        legend: label and colour of each series.
        title: above the chart.
    """

    svg: str
    legend: tuple[tuple[str, int], ...]
    title: str = ""


def curve_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: Ends = (0.0, 1.0),
    level: Real | None = None,
    height: int = 280,
) -> Chart:
    """Curves in one frame.

    Args:
        curves: one or more.
        title: above the frame.
        x_label: what x is, and its unit.
        y_label: what y is.
        y_range: ends of the vertical axis.
        level: a y to mark by a dotted line, such as chance.
        height: of the chart; it is 420 wide.

    Raises:
        ReportError: there is no curve, or one has no points, or numbers that are not finite.
    """
    _check_curves(curves)
    left, top, right, bottom = FRAME
    low, high = min(min(curve.x) for curve in curves), max(max(curve.x) for curve in curves)
    spread, rise = (high - low) or 1.0, (y_range[1] - y_range[0]) or 1.0

    def place(x: Real, y: Real) -> tuple[float, float]:
        y = min(max(y, y_range[0]), y_range[1])
        across = left + (WIDTH - left - right) * (x - low) / spread
        return across, height - bottom - (height - top - bottom) * (y - y_range[0]) / rise

    parts = [_grid(place, (low, high), y_range, curves)]
    if level is not None:
        (x1, y), (x2, _) = place(low, level), place(high, level)
        parts.append(f'<path class="level" d="M{x1:.1f} {y:.1f}H{x2:.1f}"/>')
    for curve in curves:
        if curve.band is not None:
            there = [place(x, y) for x, y in zip(curve.x, curve.band[1], strict=True)]
            back = [place(x, y) for x, y in zip(curve.x, curve.band[0], strict=True)][::-1]
            parts.append(f'<path class="band c{curve.colour % COLOURS}" d="{_path(there + back)}Z"/>')
    for curve in curves:
        points = [place(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        parts.append(f'<path class="line c{curve.colour % COLOURS}" d="{_path(points)}"/>')
        if curve.marks:
            for (x, y), along, value in zip(points, curve.x, curve.y, strict=True):
                parts.append(_mark(x, y, curve.colour, f"{curve.label}: {value:.3f} at {along:.4g}"))
    middle = (top + height - bottom) / 2
    parts.append(_text(x_label, (left + WIDTH - right) / 2, height - 6, "axis middle"))
    parts.append(
        f'<text class="axis middle" transform="translate(12 {middle:.1f}) rotate(-90)">{html.escape(y_label)}</text>'
    )
    legend = tuple(dict.fromkeys((curve.label, curve.colour % COLOURS) for curve in curves))
    return Chart(_svg(parts, height, f"{title}: {y_label} over {x_label}"), legend, title)


def dot_chart(
    rows: Sequence[str],
    dots: Sequence[Dots],
    *,
    title: str,
    x_label: str,
    x_range: Ends = (0.0, 1.0),
    level: Real | None = None,
) -> Chart:
    """A row for each name, with a dot and its interval for each series.

    Args:
        rows: names.
        dots: one or more series, with a value for each row.
        title: above the rows.
        x_label: what the values are.
        x_range: ends of the axis.
        level: a value to mark by a dotted line, such as chance.

    Raises:
        ReportError: there is nothing to draw, or a series has another number of values than there are rows.
    """
    if not rows or not dots:
        raise ReportError("a chart of dots needs a row and a series or more")
    for series in dots:
        if len(series.values) != len(rows):
            raise ReportError(f"{series.label} has {len(series.values)} values for {len(rows)} rows")
    left = min(150.0, 14 + 6.6 * max(map(len, rows)))
    right, bottom = 14, 40
    each = ROW + DOT * len(dots)
    height = 6 + each * len(rows) + bottom
    scale = (WIDTH - left - right) / ((x_range[1] - x_range[0]) or 1.0)

    def place(value: Real) -> float:
        return left + scale * (min(max(value, x_range[0]), x_range[1]) - x_range[0])

    parts = []
    for tick in ticks(*x_range):
        parts.append(f'<path class="gridline" d="M{place(tick):.1f} 6V{height - bottom}"/>')
        parts.append(_text(f"{tick:g}", place(tick), height - bottom + 15, "tick middle"))
    if level is not None:
        parts.append(f'<path class="level" d="M{place(level):.1f} 6V{height - bottom}"/>')
    for number, name in enumerate(rows):
        top = 6 + each * number
        if number:
            parts.append(f'<path class="rule" d="M0 {top}H{WIDTH - right}"/>')
        parts.append(_text(_short(name, 21), left - 8, top + each / 2 + 4, "tick end"))
        for place_of, series in enumerate(dots):
            if (value := series.values[number]) is not None:
                y = top + ROW / 2 + DOT * (place_of + 0.5)
                mean, low, high = value
                colour = series.colour % COLOURS
                parts.append(f'<path class="whisker c{colour}" d="M{place(low):.1f} {y:.1f}H{place(high):.1f}"/>')
                said = f"{name}, {series.label}: {mean:.3f} [{low:.3f}, {high:.3f}]"
                parts.append(_mark(place(mean), y, series.colour, said))
    parts.append(_text(x_label, (left + WIDTH - right) / 2, height - 6, "axis middle"))
    legend = tuple((series.label, series.colour % COLOURS) for series in dots)
    return Chart(_svg(parts, height, f"{title}: {x_label}"), legend, title)


def ticks(low: Real, high: Real, most: int = 6) -> list[float]:
    """Round numbers within a range: 1, 2 or 5 times a power of ten apart, as many as fit into `most`."""
    if not high > low:
        return [float(low)]
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _check_curves(curves: Sequence[Curve]) -> None:
    if not curves:
        raise ReportError("a chart needs a curve or more")
    for curve in curves:
        if not len(curve.x) or len(curve.x) != len(curve.y):
            raise ReportError(f"{curve.label} has {len(curve.x)} x and {len(curve.y)} y; give as many of each")
        ends = () if curve.band is None else (*curve.band[0], *curve.band[1])
        if not all(map(math.isfinite, (*curve.x, *curve.y, *ends))):
            raise ReportError(f"{curve.label} has a number that is not finite, which has no place in a chart")


def _grid(place: Place, across: Ends, up: Ends, curves: Sequence[Curve]) -> str:
    parts = []
    for tick in ticks(*up):
        (x1, y), (x2, _) = place(across[0], tick), place(across[1], tick)
        parts.append(f'<path class="gridline" d="M{x1:.1f} {y:.1f}H{x2:.1f}"/>')
        parts.append(_text(f"{tick:g}", x1 - 7, y + 4, "tick end"))
    measured = sorted({x for curve in curves for x in curve.x})
    # Radii that were measured, unless they would not fit.
    for tick in measured if len(measured) <= 6 and _apart(measured) else ticks(*across):
        x, y = place(tick, up[0])
        parts.append(f'<path class="gridline" d="M{x:.1f} {y:.1f}v4"/>')
        parts.append(_text(f"{tick:.4g}", x, y + 17, "tick middle"))
    return "".join(parts)


def _apart(values: Sequence[Real]) -> bool:
    """Whether labels at these places do not touch."""
    spread = values[-1] - values[0]
    return all(after - before >= 0.09 * spread for before, after in itertools.pairwise(values))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _mark(x: Real, y: Real, colour: int, said: str) -> str:
    """A mark whose shape says the same as its colour."""
    shapes = (
        "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0Z",
        "M-3.2 -3.2H3.2V3.2H-3.2Z",
        "M0 -4.4L4.4 0L0 4.4L-4.4 0Z",
        "M0 -4L4 3.2H-4Z",
    )
    shape = shapes[colour % len(shapes)]
    return (
        f'<path class="mark c{colour % COLOURS}" transform="translate({x:.1f} {y:.1f})" d="{shape}">'
        f"<title>{html.escape(said)}</title></path>"
    )


def _text(text: str, x: Real, y: Real, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _svg(parts: Sequence[str], height: Real, said: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(said)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )

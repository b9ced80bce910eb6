"""`python -m benchmarks.convexity --images DIR`: how often a distance breaks convexity along straight lines of pixels.

For a photograph x, segments lead from one distorted version of it to another, y(t) = (1 - t) y0 + t y1. A distance
d(x, .) that orders images as a bowl would is convex along them, or at least quasi-convex: without a hill between two
points (Kettunen et al. 2019 claim nearly that of E-LPIPS). At points t_i in equal steps, a segment breaks

- convexity by max over i < j < k of f(t_j) - the chord from f(t_i) to f(t_k) at t_j,
- quasi-convexity by max over i < j < k of f(t_j) - max(f(t_i), f(t_k)),

where f(t) = d(x, y(t)) / max over t of d(x, y(t)). What is within the margin counts as rounding, not as a break: pixel
L2, which is convex, shows how much that is. A segment whose maximum is 0 or no number has no f: it is left out, and the
table says so. An ensemble sees all points of a segment under the same transformations and masks. Segments of one
photograph are alike, so intervals come from a bootstrap over photographs. Writes convexity.md and convexity.json, and a
plot with --plot.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float, Int, UInt8

import rlpips_jax as rl
from benchmarks.attack_gallery import middles
from benchmarks.report import Table, record
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import RlpipsError
from rlpips_jax.evaluation.distortions import apply, draw
from rlpips_jax.evaluation.scores import credit_interval
from rlpips_jax.loading import PREFIX

KINDS = ("blur", "noise", "jpeg", "contrast", "brightness", "color", "down", "warp", "quantize")

PIXELS = "pixel L2"

COLOURS = ("#71717a", "#c2410c", "#0f766e", "#4338ca", "#be185d", "#a16207", "#0369a1", "#4d7c0f")
FILL = {"o": "full", "s": "none"}
"""How markers are filled, by their shape."""

Measure = Callable[[Any, Any, int], Any]
"""`x, y, number -> (n,)`, the same draws in every call with one number."""

RESAMPLES = 10_000
"""Of a bootstrap."""


@dataclass(frozen=True)
class Convexity:
    """Measure how often distances break convexity between distorted photographs."""

    images: Path
    """Folder of photographs."""
    out: Path = Path("convexity")
    """Folder for the results."""
    plot: Path | None = None
    """Picture to draw the shares and an example in; PNG."""
    metrics: tuple[str, ...] = (
        "lpips-alex",
        "lpips-squeeze",
        "lpips-tiny",
        "rlpips-alex",
        "elpips-squeeze",
        "ensemble:rlpips-alex",
    )
    """Metrics beside pixel L2, ensembles too: names, or paths of weight files."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    size: int = 64
    """Height and width that the middle of each photograph is reduced to."""
    count: int = 24
    """Most photographs."""
    segments: int = 5
    """Segments of each photograph; each has two kinds of distortion."""
    points: int = 11
    """Points of a segment, with its ends."""
    margin: float = 1e-3
    """Share of the largest distance of a segment that counts as rounding."""
    samples: int = 64
    """Draws of an ensemble, the same for all points."""
    batch: int = 60
    """Pairs at once."""
    seed: int = 0
    """Of distortions and draws."""


class Segments(NamedTuple):
    """Straight lines between images.

    Attributes:
        references: photographs, one for each segment.
        starts: what it leads from.
        ends: what it leads to.
        photographs: `(n,)`, number of each reference.
    """

    references: UInt8[np.ndarray, "n h w 3"]
    starts: UInt8[np.ndarray, "n h w 3"]
    ends: UInt8[np.ndarray, "n h w 3"]
    photographs: Int[np.ndarray, " n"]


class Breaks(NamedTuple):
    """By how much each segment breaks a property, as a share of its largest distance; 0 where it does not.

    NaN where the largest distance is 0 or no number.

    Attributes:
        convexity: `(n,)`.
        quasi_convexity: `(n,)`.
    """

    convexity: Float[np.ndarray, " n"]
    quasi_convexity: Float[np.ndarray, " n"]


def main(config: Convexity) -> None:
    """Measures, prints the table, and writes it with the plot."""
    if config.points < 3:
        raise RlpipsError(f"--points must be 3 or more, or nothing lies between two others; got {config.points}")
    lines = segments(middles(config.images, config.count, config.size), config.segments, config.seed)
    values, found = {}, {}
    for name, measure in measures(config).items():
        values[name] = profiles(measure, lines, config.points, config.batch)
        found[name] = breaks(values[name])
        print(table({name: found[name]}, lines.photographs, config.margin).rows[0], flush=True)
    config.out.mkdir(parents=True, exist_ok=True)
    text = str(table(found, lines.photographs, config.margin))
    print(text)
    (config.out / "convexity.md").write_text(text, encoding="utf-8")
    document = {
        **record(config),
        "photographs": lines.photographs.tolist(),
        "distances": {name: numbers(each) for name, each in values.items()},
        "breaks": {name: [numbers(part) for part in each] for name, each in found.items()},
    }
    (config.out / "convexity.json").write_text(json.dumps(document, default=str), encoding="utf-8")
    if config.plot is not None:
        rl.save_image(config.plot, plot(found, values, lines.photographs, config.margin))


def numbers(array: Float[np.ndarray, "..."]) -> list[Any]:
    """An array as JSON can say it: null for what is no number."""
    return np.where(np.isfinite(array), array.astype(object), np.array(None)).tolist()


def measures(config: Convexity) -> dict[str, Measure]:
    """Every distance as a function of two batches that gives the same for the same."""
    found: dict[str, Measure] = {PIXELS: lambda x, y, number: pixel_l2(x, y)}
    for name in config.metrics:
        metric = rl.load(name, weights_dir=config.weights_dir)
        found[short(name)] = of_metric(metric, jax.random.key(config.seed), config.samples)
    return found


def short(name: str) -> str:
    """A metric's name; of a weight file its folder's too, as training gives all files one name."""
    path = Path(name.removeprefix(PREFIX))
    if path.suffix != ".safetensors":
        return name
    return (PREFIX if name.startswith(PREFIX) else "") + "/".join(path.with_suffix("").parts[-2:])


def of_metric(metric: Any, key: Any, samples: int) -> Measure:
    """The distance by a metric; by an ensemble with a key for each number, so that pair i always has the same draws."""
    distance: Any = rl.distance
    if isinstance(metric, Lpips):
        return lambda x, y, number: distance(x, y, metric)
    return lambda x, y, number: distance(x, y, metric, key=jax.random.fold_in(key, number), samples=samples)


@jax.jit
def pixel_l2(x: Float[jax.Array, "n h w 3"], y: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, " n"]:
    """Root mean square difference, in one pass that loses no digits to a sum of squares."""
    return jnp.sqrt(jnp.mean(jnp.square(x - y), axis=(1, 2, 3)))


def segments(photographs: UInt8[np.ndarray, "m h w 3"], count: int, seed: int) -> Segments:
    """Segments of each photograph between different kinds of distortion, strengths drawn from .05 to 1."""
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(KINDS, 2))
    rows = []
    for number, photograph in enumerate(photographs):
        for place in rng.permutation(len(pairs))[:count]:
            ends = [
                apply(photograph, kind, float(rng.uniform(0.05, 1)), draw(kind, photograph.shape, rng))
                for kind in pairs[place]
            ]
            rows.append((photograph, *ends, np.int64(number)))
    return Segments(*(np.stack(column) for column in zip(*rows, strict=True)))


def profiles(measure: Measure, lines: Segments, points: int, batch: int) -> Float[np.ndarray, "n points"]:
    """d(x, y(t)) for t from 0 to 1 in equal steps; points are one call each, so that draws are shared by all."""
    columns = []
    count = len(lines.references)
    for share in np.linspace(0, 1, points, dtype=np.float32):
        parts = []
        for at in range(0, count, batch):
            # The last batch is filled up: another size would be another program.
            rows = np.minimum(np.arange(at, at + batch), count - 1)
            x, a, b = (images[rows].astype(np.float32) / 255 for images in lines[:3])
            parts.append(np.asarray(measure(x, (1 - share) * a + share * b, at), np.float64))
        columns.append(np.concatenate(parts)[:count])
    return np.stack(columns, axis=1)


def breaks(values: Float[np.ndarray, "n points"]) -> Breaks:
    """By how much each segment's values break convexity and quasi-convexity, over all three points i < j < k."""
    largest = values.max(axis=1, keepdims=True)
    values = values / np.where(np.isfinite(largest) & (largest > 0), largest, np.nan)
    count = values.shape[1]
    # What is no number stays so, as in `maximum`.
    convexity, quasi_convexity = np.zeros(len(values)), np.zeros(len(values))
    for i, j, k in itertools.combinations(range(count), 3):
        left, middle, right = values[:, i], values[:, j], values[:, k]
        chord = left + (right - left) * ((j - i) / (k - i))
        convexity = np.maximum(convexity, middle - chord)
        quasi_convexity = np.maximum(quasi_convexity, middle - np.maximum(left, right))
    return Breaks(convexity, quasi_convexity)


def interval(broken: Bool[np.ndarray, " n"], photographs: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """95 % interval of the share of broken segments, by a bootstrap over photographs.

    Where none or all are broken, a bootstrap has nothing to show: there it is Wilson's interval of as many trials as
    there are photographs, as if all segments of one were one.
    """
    _, place = np.unique(photographs, return_inverse=True)
    counts, sums = np.bincount(place), np.bincount(place, broken)
    if (share := float(broken.mean())) in (0, 1):
        low, high = credit_interval(np.full(len(counts), share))
        return low, high
    drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


class Share(NamedTuple):
    """How many segments break a property.

    Attributes:
        share: of those that were measured.
        low: bound of its 95 % interval.
        high: the other bound.
        median: of how much they break it; NaN if none does.
    """

    share: float
    low: float
    high: float
    median: float


def share_of(part: Float[np.ndarray, " n"], photographs: Int[np.ndarray, " n"], margin: float) -> Share | None:
    """The share that breaks a property by more than a margin; None if no segment was measured."""
    measured = np.isfinite(part)
    if not measured.any():
        return None
    broken = part[measured] > margin
    median = float(np.median(part[measured][broken])) if broken.any() else float("nan")
    return Share(float(broken.mean()), *interval(broken, photographs[measured]), median)


def table(found: Mapping[str, Breaks], photographs: Int[np.ndarray, " n"], margin: float) -> Table:
    """Share of segments that break each property, with its interval, and by how much they break it."""
    header = ("metric", "segments", "convexity broken", "by (median)", "quasi-convexity broken", "by (median)")
    rows: list[Sequence[str]] = []
    for name, each in found.items():
        count, measured = len(photographs), int(np.isfinite(each.convexity).sum())
        cells = [str(count) if measured == count else f"{measured} of {count}"]
        for part in each:
            share = share_of(part, photographs, margin)
            cells.append("-" if share is None else f"{share.share:.3f} ({share.low:.3f} to {share.high:.3f})")
            cells.append("-" if share is None or np.isnan(share.median) else f"{share.median:.3f}")
        rows.append((name, *cells))
    title = f"Segments between distorted photographs that break convexity by more than {margin:g} of their maximum"
    return Table(title, header, rows)


def plot(
    found: Mapping[str, Breaks],
    values: Mapping[str, Float[np.ndarray, "n points"]],
    photographs: Int[np.ndarray, " n"],
    margin: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """The share of broken segments by metric, and every metric's profile of the segment that is broken most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.4 * len(found) + 2.6), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    shares, example = figure.subplots(1, 2)
    names = list(found)
    for offset, field, marker in ((-0.12, "convexity", "o"), (0.12, "quasi_convexity", "s")):
        for place, name in enumerate(names):
            share = share_of(getattr(found[name], field), photographs, margin)
            if share is None:
                continue
            ends = [[share.share - share.low], [share.high - share.share]]
            shares.errorbar(
                share.share,
                place + offset,
                xerr=np.maximum(ends, 0),
                color=COLOURS[place % len(COLOURS)],
                marker=marker,
                fillstyle=FILL[marker],
                capsize=3,
            )
        shares.plot(
            [], [], color="#18181b", linestyle="", marker=marker, label=field.replace("_", "-"), fillstyle=FILL[marker]
        )
    shares.set_yticks(range(len(names)), names)
    shares.invert_yaxis()
    shares.set(xlim=(-0.02, 1.02), title="segments that are broken, and 95 % intervals")
    shares.legend(frameon=False, loc="lower right")

    worst = int(np.argmax(sum(np.nan_to_num(each.convexity) for each in found.values())))
    for place, name in enumerate(names):
        profile = values[name][worst]
        if np.isnan(found[name].convexity[worst]):
            continue
        t = np.linspace(0, 1, len(profile))
        colour, style = COLOURS[place % len(COLOURS)], "-" if place < len(COLOURS) else "--"
        example.plot(t, profile / profile.max(), color=colour, linestyle=style, label=name)
    example.set(xlabel="t", ylim=(0, 1.05), title="d(x, y(t)) / largest, in the segment that is broken most")
    example.legend(frameon=False, fontsize="small")
    for axes in (shares, example):
        axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


if __name__ == "__main__":
    main(tyro.cli(Convexity, prog="python -m benchmarks.convexity"))

"""`python -m benchmarks.convexity --images DIR`: how often a distance breaks convexity along straight lines of pixels.

For a photograph x, segments lead from one distorted version of it to another, y(t) = (1 - t) y0 + t y1. A distance
d(x, .) that orders images as a bowl would is convex along them, or at least quasi-convex: without a hill between two
points (Kettunen et al. 2019 claim nearly that of E-LPIPS). At points t_i in equal steps, a segment breaks

- convexity by max over i < j < k of f(t_j) - the chord from f(t_i) to f(t_k) at t_j,
- quasi-convexity by max over i < j < k of f(t_j) - max(f(t_i), f(t_k)),

where f(t) = d(x, y(t)) / max over t of d(x, y(t)). What is within the margin counts as rounding, not as a break: pixel
L2, which is convex, shows how much that is. An ensemble sees all points of a segment under the same draws. Writes
convexity.md, convexity.png and convexity.json.
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
from jaxtyping import Float, UInt8

import rlpips_jax as rl
from benchmarks.attack_gallery import middles
from benchmarks.report import Table, record
from rlpips_jax.evaluation.distortions import apply, draw
from rlpips_jax.metric import Metric

KINDS = ("blur", "noise", "jpeg", "contrast", "brightness", "color", "down", "warp", "quantize")

PIXELS = "pixel L2"

COLOURS = ("#71717a", "#c2410c", "#0f766e", "#4338ca", "#be185d", "#a16207")

Measure = Callable[[Any, Any], Any]
"""`x, y -> (n,)`, the same draws in every call."""


@dataclass(frozen=True)
class Convexity:
    """Measure how often distances break convexity between distorted photographs."""

    images: Path
    """Folder of photographs."""
    out: Path = Path("convexity")
    """Folder for the results."""
    metrics: tuple[str, ...] = ("lpips-alex", "lpips-squeeze")
    """Metrics beside pixel L2: names, or paths of weight files."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    size: int = 64
    """Height and width that the middle of each photograph is reduced to."""
    count: int = 24
    """Most photographs."""
    segments: int = 10
    """Segments of each photograph; each has two kinds of distortion."""
    points: int = 13
    """Points of a segment, with its ends."""
    margin: float = 1e-3
    """Share of the largest distance of a segment that counts as rounding."""
    samples: int = 32
    """Draws of an ensemble, the same for all points."""
    batch: int = 60
    """Pairs at once."""
    seed: int = 0
    """Of distortions and draws."""


class Breaks(NamedTuple):
    """By how much each segment breaks a property, as a share of its largest distance; 0 where it does not.

    Attributes:
        convexity: `(n,)`.
        quasi_convexity: `(n,)`.
    """

    convexity: Float[np.ndarray, " n"]
    quasi_convexity: Float[np.ndarray, " n"]


def main(config: Convexity) -> None:
    """Measures, prints the table, and writes it with the plot."""
    references, starts, ends = segments(middles(config.images, config.count, config.size), config.segments, config.seed)
    found = {}
    for name, measure in measures(config).items():
        values = profiles(measure, references, starts, ends, config.points, config.batch)
        found[name] = breaks(values)
        print(table({name: found[name]}, config.margin).rows[0], flush=True)
    config.out.mkdir(parents=True, exist_ok=True)
    text = str(table(found, config.margin))
    print(text)
    (config.out / "convexity.md").write_text(text, encoding="utf-8")
    document = {**record(config), "breaks": {name: [part.tolist() for part in each] for name, each in found.items()}}
    (config.out / "convexity.json").write_text(json.dumps(document, default=str), encoding="utf-8")
    rl.save_image(config.out / "convexity.png", plot(found, config.margin))


def measures(config: Convexity) -> dict[str, Measure]:
    """Every distance as a function of two batches that gives the same for the same."""
    found: dict[str, Measure] = {PIXELS: pixel_l2}
    for name in config.metrics:
        metric = rl.load(name, weights_dir=config.weights_dir)
        found[short(name)] = of_metric(metric, jax.random.key(config.seed), config.samples)
    return found


def short(name: str) -> str:
    """A metric's name; of a weight file its folder's too, as training gives all files one name."""
    path = Path(name)
    return "/".join(path.with_suffix("").parts[-2:]) if path.suffix == ".safetensors" else name


def of_metric(metric: Any, key: Any, samples: int) -> Measure:
    """The distance by a metric; by an ensemble with this key, so that pair i of every batch has the same draws."""
    options: dict[str, Any] = {} if isinstance(metric, Metric) else {"key": key, "samples": samples}
    distance: Any = rl.distance
    return lambda x, y: distance(x, y, metric, **options)


@jax.jit
def pixel_l2(x: Float[jax.Array, "n h w 3"], y: Float[jax.Array, "n h w 3"]) -> Float[jax.Array, " n"]:
    """Root mean square difference, in one pass that loses no digits to a sum of squares."""
    return jnp.sqrt(jnp.mean(jnp.square(x - y), axis=(1, 2, 3)))


def segments(
    photographs: UInt8[np.ndarray, "m h w 3"], count: int, seed: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w 3"], UInt8[np.ndarray, "n h w 3"]]:
    """References and the two ends of each segment: different kinds of distortion, strengths drawn from .05 to 1."""
    rng = np.random.default_rng(seed)
    pairs = list(itertools.combinations(KINDS, 2))
    rows = []
    for photograph in photographs:
        for place in rng.permutation(len(pairs))[:count]:
            ends = [
                apply(photograph, kind, float(rng.uniform(0.05, 1)), draw(kind, photograph.shape, rng))
                for kind in pairs[place]
            ]
            rows.append((photograph, *ends))
    references, starts, ends = (np.stack(column) for column in zip(*rows, strict=True))
    return references, starts, ends


def profiles(
    measure: Measure,
    references: UInt8[np.ndarray, "n h w 3"],
    starts: UInt8[np.ndarray, "n h w 3"],
    ends: UInt8[np.ndarray, "n h w 3"],
    points: int,
    batch: int,
) -> Float[np.ndarray, "n points"]:
    """d(x, y(t)) for t from 0 to 1 in equal steps; points are one call each, so that draws are shared by all."""
    columns = []
    for share in np.linspace(0, 1, points, dtype=np.float32):
        parts = []
        for at in range(0, len(references), batch):
            # The last batch is filled up: another size would be another program, and other draws.
            rows = np.minimum(np.arange(at, at + batch), len(references) - 1)
            x, a, b = (images[rows].astype(np.float32) / 255 for images in (references, starts, ends))
            parts.append(np.asarray(measure(x, (1 - share) * a + share * b), np.float64))
        columns.append(np.concatenate(parts)[: len(references)])
    return np.stack(columns, axis=1)


def breaks(values: Float[np.ndarray, "n points"]) -> Breaks:
    """By how much each segment's values break convexity and quasi-convexity, over all three points i < j < k."""
    values = values / values.max(axis=1, keepdims=True)
    count = values.shape[1]
    convexity, quasi_convexity = np.zeros(len(values)), np.zeros(len(values))
    for i, j, k in itertools.combinations(range(count), 3):
        left, middle, right = values[:, i], values[:, j], values[:, k]
        chord = left + (right - left) * ((j - i) / (k - i))
        convexity = np.maximum(convexity, middle - chord)
        quasi_convexity = np.maximum(quasi_convexity, middle - np.maximum(left, right))
    return Breaks(convexity, quasi_convexity)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return float(centre - half), float(centre + half)


def table(found: Mapping[str, Breaks], margin: float) -> Table:
    """Share of segments that break each property, with its interval, and by how much they break it."""
    header = ("metric", "segments", "convexity broken", "by (median)", "quasi-convexity broken", "by (median)")
    rows: list[Sequence[str]] = []
    for name, each in found.items():
        cells = []
        for part in each:
            broken = part[part > margin]
            share = len(broken) / len(part)
            low, high = interval(share, len(part))
            cells += [f"{share:.3f} ({low:.3f} to {high:.3f})", f"{np.median(broken):.3f}" if len(broken) else "-"]
        rows.append((name, str(len(each.convexity)), *cells))
    title = f"Segments between distorted photographs that break convexity by more than {margin:g} of their maximum"
    return Table(title, header, rows)


def plot(found: Mapping[str, Breaks], margin: float) -> UInt8[np.ndarray, "H W 3"]:
    """The share of segments that break each property by more than a margin, for every margin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    margins = np.geomspace(1e-5, 1, 200)
    titles = ("convexity broken by more than", "quasi-convexity broken by more than")
    for axes, field, title in zip(figure.subplots(1, 2, sharey=True), Breaks._fields, titles, strict=True):
        for (name, each), colour in zip(found.items(), itertools.cycle(COLOURS), strict=False):
            part = getattr(each, field)
            axes.plot(margins, [(part > least).mean() for least in margins], color=colour, label=name)
        axes.axvline(margin, color="#a1a1aa", linewidth=1, linestyle=":")
        axes.set(xscale="log", xlim=(1e-5, 1), ylim=(-0.02, 1.02), title=title)
        axes.set_xlabel("share of the largest distance of the segment")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("segments")
    figure.axes[0].legend(frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


if __name__ == "__main__":
    main(tyro.cli(Convexity, prog="python -m benchmarks.convexity"))

"""`python -m benchmarks.loss_surface PICTURE`: how a ranking changes along an attack's gradient and a random direction.

An ordinal triplet: a photograph and one distortion of it at two strengths. The closer image y moves to
clip(y + a sign(g) + b r), where g is the gradient of its distance and r a random pattern of -1 and 1; the picture shows

    log(d(x, y moved) / d(x, farther image))

for a and b from -8/255 to 8/255; above 0 the order is reversed. Where gradients are hidden, the surface is flat or
jagged around y and rises elsewhere: an attack by gradients then fails though the metric is not robust. Smoothness is
the share of steps from y along the gradient that do not lower the surface.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import rlpips_jax as rl
from examples.photographs import SIZE, photographs
from rlpips_jax.errors import RlpipsError
from rlpips_jax.evaluation.distortions import apply, draw
from rlpips_jax.evaluation.patches import halve

EXTENT = 8 / 255
"""Largest change along each direction, images in [0, 1]."""

Surface = Float[np.ndarray, "n n"]


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """Draw the surface of an attack's loss for several metrics and photographs."""

    picture: Annotated[Path, tyro.conf.Positional]
    """PNG to write."""
    metrics: tuple[str, ...] = ("lpips-alex", "rlpips-alex", "rlpips-tiny")
    """Metrics, one per row."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    images: Path | None = None
    """Folder of photographs of your own; by default scikit-image's."""
    count: int = 3
    """Most photographs, one per column."""
    kinds: tuple[str, ...] = ("blur", "jpeg", "contrast", "color")
    """Distortions, in turns."""
    strengths: tuple[float, float] = (0.4, 0.6)
    """Of the closer image's distortion and of the farther one's."""
    points: int = 33
    """Along each direction, with 0; odd."""
    seed: int = 0
    """Of distortions and random directions."""


@functools.partial(jax.jit, static_argnames="points")
def surface(metric: Any, triplet: tuple[Array, Array, Array], direction: Array, points: int) -> Float[Array, "n n"]:
    """The logarithm of the ratio of distances, by rows along the gradient and columns along a random direction.

    Args:
        metric: of the distances.
        triplet: reference, closer and farther image, `(h, w, 3)` in [0, 1].
        direction: `(h, w, 3)`, each -1 or 1.
        points: of each axis.
    """
    reference, closer, farther = triplet

    def distance(images: Float[Array, "... h w 3"]) -> Float[Array, "..."]:
        return rl.distance(jnp.broadcast_to(reference, images.shape), images, metric, value_range=(0, 1))

    gradient = jnp.sign(jax.grad(distance)(closer))
    steps = jnp.linspace(-EXTENT, EXTENT, points)

    def row(along: Float[Array, ""]) -> Float[Array, " n"]:
        moved = closer + along * gradient + steps[:, None, None, None] * direction
        return jnp.log(distance(jnp.clip(moved, 0, 1)) / distance(farther))

    return jax.lax.map(row, steps)


def smoothness(values: Surface) -> float:
    """The share of steps from the centre along the gradient that do not lower the surface."""
    centre = len(values) // 2
    return float(np.mean(np.diff(values[centre:, centre]) >= 0))


def main(config: LossSurface) -> None:
    """Computes the surfaces and writes the picture."""
    if config.points % 2 == 0:
        raise RlpipsError(f"--points must be odd, or no point is the image as it is; got {config.points}")
    rng = np.random.default_rng(config.seed)
    named = dict(list(photographs(config.images).items())[: config.count])
    triplets = {}
    for number, (name, photograph) in enumerate(named.items()):
        kind, image = config.kinds[number % len(config.kinds)], halve(photograph)
        drawn = draw(kind, image.shape, rng)
        changed = [apply(image, kind, strength, drawn) for strength in config.strengths]
        triplets[f"{name}, {kind}"] = tuple(jnp.asarray(each / np.float32(255)) for each in (image, *changed))
    direction = jnp.asarray(2 * rng.integers(2, size=(SIZE // 2, SIZE // 2, 3)) - 1, jnp.float32)
    found: dict[str, dict[str, Surface]] = {}
    for name in config.metrics:
        metric = rl.load(name, weights_dir=config.weights_dir)
        found[name] = {
            label: np.asarray(surface(metric, triplet, direction, config.points)) for label, triplet in triplets.items()
        }
        for label, values in found[name].items():
            print(f"{name}, {label}: highest {values.max():.2f}, smoothness {smoothness(values):.2f}", flush=True)
    _draw(found, config.picture)


def _draw(found: Mapping[str, Mapping[str, Surface]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = list(next(iter(found.values())))
    figure = Figure(figsize=(3 * len(labels) + 1.2, 2.7 * len(found) + 0.6), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(found), len(labels), sharex=True, sharey=True, squeeze=False)
    largest = float(np.ceil(max(np.abs(values).max() for row in found.values() for values in row.values())))
    extent = 255 * EXTENT
    steps = np.linspace(-extent, extent, len(next(iter(found[next(iter(found))].values()))))
    levels = np.linspace(-largest, largest, 25)
    filled: Any = None
    for axes_row, (name, row) in zip(grid, found.items(), strict=True):
        for axes, (label, values) in zip(axes_row, row.items(), strict=True):
            filled = axes.contourf(steps, steps, values.T, levels, cmap="RdBu_r")
            if values.min() < 0 < values.max():
                axes.contour(steps, steps, values.T, [0], colors="black", linewidths=1.2)
            axes.plot(0, 0, "o", color="black", markersize=3)
            axes.set_title(f"{name}: {label}", fontsize=9)
            axes.set_aspect("equal")
    figure.supxlabel("along the sign of the gradient, of 255", fontsize=9)
    figure.supylabel("along a random pattern of -1 and 1, of 255", fontsize=9)
    ticks = np.linspace(-largest, largest, 5)
    figure.colorbar(filled, ax=grid, shrink=0.8, ticks=ticks, label="log(d of the moved image / d of the farther one)")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))


if __name__ == "__main__":
    main(tyro.cli(LossSurface, prog="python -m benchmarks.loss_surface"))

"""Compares the distances and gradients of the library with those of PyTorch, on the same images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import rlpips_jax as rl
from convert import reference
from rlpips_jax.distances.lpips import Lpips

LIMIT = 1e-4
"""Largest relative difference that passes."""

ROUNDED_GRADIENT = 5e-2
"""That which passes of a gradient in float32. Rounding, which differs between processors, decides on which side of 0 a
ReLU's input is (1.2e-2 in a drawn ResNet-50); the gradient in float64 is held to `LIMIT`."""

SIZES = ((64, 64), (80, 65))
"""Heights and widths of generated images; in the second size, pooling windows hang over the edge."""


class Pair(NamedTuple):
    """Two images (h, w, 3) in [-1, 1], float64."""

    x: np.ndarray
    y: np.ndarray


class Differences(NamedTuple):
    """Largest relative differences of distance, layers, and gradient (as a share of its largest entry)."""

    distance: float
    layers: float
    gradient: float | None

    def within(self, limit: float, of_gradient: float) -> bool:
        """Whether none is larger, nor NaN."""
        gradient = 0.0 if self.gradient is None else self.gradient
        return self.distance <= limit and self.layers <= limit and gradient <= of_gradient


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        what: was compared.
        differences: the largest over all images.
        rounded: whether in float32.
    """

    what: str
    differences: Differences
    rounded: bool = False


def generated(seed: int = 0) -> list[Pair]:
    """Colour gradients, bars and noise, each with a distorted version, and two unrelated images."""
    random = np.random.RandomState(seed)
    pairs = []
    for height, width in SIZES:
        rows, columns = np.mgrid[0:height, 0:width] / 48
        waves = [np.sin(3 * rows + phase) + np.cos(5 * columns - phase) for phase in random.uniform(0, 6, 3)]
        x = np.stack(waves, axis=-1) / 3 + random.normal(0, 0.15, (height, width, 3))
        x[height // 4 : height // 2, width // 3 :] *= -1
        y = 0.8 * x + random.normal(0, 0.1, x.shape)
        pairs.append(Pair(np.clip(x, -1, 1), np.clip(y, -1, 1)))
    pairs.append(Pair(pairs[0].x, np.clip(random.normal(0, 0.5, pairs[0].x.shape), -1, 1)))
    return pairs


def photographs(paths: Sequence[Path], seed: int = 0) -> Iterator[Pair]:
    """Each image with a noisy version of itself."""
    random = np.random.RandomState(seed)
    for path in paths:
        image = rl.load_image(path)
        x = image / (255.0 if image.dtype == np.uint8 else 1.0) * 2 - 1
        yield Pair(x, np.clip(x + random.normal(0, 0.1, x.shape), -1, 1))


def compare(
    metric: Lpips,
    expected: reference.Reference,
    package: reference.Package | None,
    pairs: Iterable[Pair],
) -> list[Row]:
    """How the library's numbers differ from PyTorch's float64 ones.

    Args:
        metric: the library's side, in float32.
        expected: PyTorch's side.
        package: a second one, of which only the values are compared.
        pairs: the images.

    Returns:
        A row for the library in float32, as it is used, one for it in float64, and one for the package.
    """
    found: dict[str, list[Differences]] = {}
    for pair in pairs:
        layers, gradient = expected.compare(*pair)
        for dtype in ("float32", "float64"):
            ours = _of_library(metric, pair, dtype)
            found.setdefault(f"library in {dtype}", []).append(_differences(*ours, layers, gradient))
        if package is not None:
            theirs = package.layers(*pair)
            found.setdefault("package lpips", []).append(_differences(theirs, None, layers, gradient))
    return [Row(what, _worst(differences), what.endswith("float32")) for what, differences in found.items()]


def table(rows: Sequence[Row]) -> str:
    """The rows as lines of text."""
    lines = [f"{'':<20}{'distance':>12}{'layers':>12}{'gradient':>12}"]
    for what, differences, _ in rows:
        cells = ["-" if difference is None else f"{difference:.1e}" for difference in differences]
        lines.append(f"{what:<20}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def passes(rows: Sequence[Row]) -> bool:
    """Whether every difference is within its limit."""
    return bool(rows) and all(row.differences.within(LIMIT, ROUNDED_GRADIENT if row.rounded else LIMIT) for row in rows)


def _distance_of_second(y: jax.Array, x: jax.Array, metric: Lpips) -> tuple[jax.Array, jax.Array]:
    layers = rl.layer_distances(x, y, metric, value_range=(-1, 1))
    return layers.sum(), layers


_gradient = jax.jit(jax.grad(_distance_of_second, has_aux=True))


def _of_library(metric: Lpips, pair: Pair, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Layers of the distance, and its gradient in the second image."""
    with jax.enable_x64(dtype == "float64"):
        x, y = (np.asarray(image, dtype) for image in pair)
        gradient, layers = _gradient(y, x, replace(metric, dtype=dtype))
        return np.asarray(layers, np.float64), np.asarray(gradient, np.float64)


def _differences(
    layers: np.ndarray, gradient: np.ndarray | None, expected: np.ndarray, slope: np.ndarray
) -> Differences:
    return Differences(
        _relative(layers.sum(), expected.sum(), abs(expected.sum())),
        _relative(layers, expected, np.abs(expected)),
        None if gradient is None else _relative(gradient, slope, np.abs(slope).max()),
    )


def _relative(found: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> float:
    """Largest difference as a share of the scale; equal numbers do not differ, whatever the scale."""
    difference = np.abs(found - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(difference == 0, 0.0, difference / scale)))


def _worst(differences: Sequence[Differences]) -> Differences:
    gradients = [difference.gradient for difference in differences if difference.gradient is not None]
    return Differences(
        float(np.max([difference.distance for difference in differences])),
        float(np.max([difference.layers for difference in differences])),
        float(np.max(gradients)) if gradients else None,
    )

"""Large images in tiles: a distance from the statistics of parts of the images, within a bound of memory.

Along each axis an image is cut into cores, each a multiple of the network's stride, and each core is computed from a
tile that surrounds it by a halo: as many pixels as the network's activations in the core can see
(`rlpips_jax.backbones.Locality`); none is needed where the image ends. Tiles begin at multiples of the stride, so that
they have the positions of the whole image; all are of one size, whose remainder by the stride is that of the image, so
that one compiled program serves all and the last tile ends where the image does. Every position of every tap lies in
exactly one core, and its activation there is what it is in the whole image: there is no seam, and nothing is
approximated. Positions in the halo, where the network sees zeros in place of pixels, are left out.

Gradients recompute one tile after the other, and are summed where tiles overlap.
"""

import functools
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlpips_jax.backbones import Locality
from rlpips_jax.distances.protocol import Metric, RandomMetric, TiledMetric
from rlpips_jax.errors import MetricError
from rlpips_jax.images import Images, ValueRange

COPIES = 3
"""Bytes that a gradient takes for each byte of one image's activations, roughly; a distance takes a third of that."""


Length = Hashable
"""Pixels along an axis: a number, or an expression in a program for images of any size."""


class Cuts(NamedTuple):
    """How an axis is cut.

    Attributes:
        size: pixels of a tile.
        starts: where the tiles begin.
        cores: where their cores begin; one ends where the next begins, and the last where the image does.
    """

    size: int
    starts: tuple[int, ...]
    cores: tuple[int, ...]


class Tiling(NamedTuple):
    """How an image is cut."""

    rows: Cuts
    columns: Cuts

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return self.rows.size * self.columns.size

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)


def bounded(metric: Metric | RandomMetric, max_memory: int | None) -> Any:
    """The metric with a bound on its memory; the metric itself where there is no bound.

    Raises:
        MetricError: the metric cannot be computed in parts.
    """
    if max_memory is None:
        return metric
    if not isinstance(metric, TiledMetric) or metric.locality is None:
        raise MetricError(
            f"{metric.name} cannot be computed in parts of an image, which max_memory needs: LPIPS, R-LPIPS, ST-LPIPS "
            "and DISTS over networks of convolutions can; max_batch bounds how many images are computed at once"
        )
    return replace(cast(Any, metric), max_memory=max_memory)


def tiling_of(metric: Metric, height: Length, width: Length) -> Tiling | None:
    """How the metric has to cut images of a size; None where it need not, or cannot.

    Raises:
        MetricError: its `max_memory` is less than the smallest tile takes; or the size is yet unknown.
    """
    if not isinstance(metric, TiledMetric) or metric.max_memory is None or metric.locality is None:
        return None
    height, width = _known(height, width)
    pixels = int(metric.max_memory / bytes_per_pixel(metric))
    if height * width <= pixels:
        return None
    tiling, smallest = _tiling(height, width, pixels, metric.minimum_size, metric.locality)
    if tiling is None:
        least = int(np.ceil(smallest * bytes_per_pixel(metric) / 2**20))
        raise MetricError(
            f"max_memory is {metric.max_memory} bytes, but {metric.name} needs {least} MiB for the smallest tile of an "
            f"image of {height}x{width}: {least << 20} or more"
        )
    return tiling


def _known(height: Length, width: Length) -> tuple[int, int]:
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    raise MetricError("max_memory is for images of a known size: give height and width, or leave it out")


def pairs_at_once(metric: Metric, height: Length, width: Length) -> int | None:
    """Most pairs of a size that the metric allows in the network together; None for any number."""
    limits = []
    if (most := getattr(metric, "max_batch", None)) is not None:
        limits.append(most)
    if isinstance(metric, TiledMetric) and metric.max_memory is not None:
        height, width = _known(height, width)
        limits.append(max(1, int(metric.max_memory / (bytes_per_pixel(metric) * height * width))))
    return min(limits, default=None)


def tiled_layers(
    metric: TiledMetric, x: Images, y: Images, tiling: Tiling, value_range: ValueRange
) -> Float[Array, "n layers"]:
    """The share of each layer in the distance of each pair, a tile of a pair at a time.

    Args:
        metric: how tiles are compared.
        x: `(n, h, w, 3)`, or one image for all of y.
        y: of the same size, likewise.
        tiling: of the size.
        value_range: black and white of floating-point images.
    """
    assert metric.locality is not None
    reaches = metric.locality.reaches
    pairs = max(len(x), len(y))
    x, y = jnp.asarray(x), jnp.asarray(y)
    rows, columns = (np.stack(_bounds(cuts), axis=1) for cuts in tiling)
    places = [np.repeat(rows, len(columns), axis=0), np.tile(columns, (len(rows), 1))]
    numbers, at = (each.ravel() for each in np.indices((pairs, tiling.tiles), np.int32))

    @jax.checkpoint  # or a gradient would keep the activations of every tile
    def tile(x: Array, y: Array, place: tuple[Array, Array, Array]) -> Any:
        number, row, column = place
        features = []
        for images in (x, y):
            start = jnp.stack([number if len(images) > 1 else 0 * number, row[0], column[0], 0 * number])
            part = jax.lax.dynamic_slice(images, start, (1, tiling.rows.size, tiling.columns.size, 3))
            features.append(metric.features(part, value_range=value_range))
        leaves = jax.tree.leaves(features[0])
        cores = [
            _inside(row, reach.stride, leaf.shape[-3])[:, None] & _inside(column, reach.stride, leaf.shape[-2])
            for leaf, reach in zip(leaves, reaches, strict=True)
        ]
        cores = [core.astype(leaf.dtype)[None] for core, leaf in zip(cores, leaves, strict=True)]
        found = metric.statistics_between(features[0], features[1], cores)
        return jax.tree.map(lambda leaf: leaf[0], found)

    found = jax.lax.map(lambda place: tile(x, y, place), (numbers, places[0][at], places[1][at]))
    statistics = jax.tree.map(lambda leaf: leaf.reshape(pairs, tiling.tiles, *leaf.shape[1:]), found)
    return jax.vmap(metric.layers_of)(statistics)


def _bounds(cuts: Cuts) -> tuple[Int[np.ndarray, " tiles"], ...]:
    """Start of each tile, start of its core, and end of its core, which has none at the end of the image."""
    ends = (*cuts.cores[1:], np.iinfo(np.int32).max)
    return tuple(np.array(each, np.int32) for each in (cuts.starts, cuts.cores, ends))


def _inside(place: Int[Array, "3"], stride: int, size: int) -> Any:
    """Which positions along an axis of a tap lie in the core of the tile."""
    start, begin, end = place[0], place[1], place[2]
    at = start // stride + jnp.arange(size)
    return (at >= begin // stride) & (at < end // stride)


def bytes_per_pixel(metric: TiledMetric) -> float:
    """What a pair of images takes for each of its pixels, roughly."""
    assert metric.locality is not None
    itemsize = 8 if getattr(metric, "dtype", "") == "float64" else 4
    return COPIES * itemsize * metric.locality.activations


@functools.lru_cache
def _tiling(height: int, width: int, pixels: int, minimum_size: int, locality: Locality) -> tuple[Tiling | None, int]:
    """The cut of an image that computes the fewest pixels, in tiles of at most so many; and the smallest tile's."""
    heights, widths = (all_cuts(length, minimum_size, locality) for length in (height, width))
    every = [Tiling(rows, columns) for rows in heights for columns in widths]
    fitting = (tiling for tiling in every if tiling.pixels <= pixels)
    fewest = min(fitting, key=lambda tiling: (tiling.pixels * tiling.tiles, tiling.tiles), default=None)
    return fewest, min(tiling.pixels for tiling in every)


def all_cuts(length: int, minimum_size: int, locality: Locality) -> list[Cuts]:
    """The cut of an axis into each number of tiles that makes sense, with the smallest tiles; the first has one."""
    stride = locality.reaches[-1].stride
    before = -(-max(reach.before for reach in locality.reaches) // stride) * stride
    after = max(0, *(reach.after + 1 - reach.stride for reach in locality.reaches))
    cuts = {1: Cuts(length, (0,), (0,))}
    # The remainder is the image's, so the last tile, which ends with the image, begins at a multiple of the stride too.
    least = max(before + stride + after, minimum_size)
    for size in range(least + (length - least) % stride, length, stride):
        starts, cores, at = [0], [0], (size - after) // stride * stride
        while starts[-1] + size < length:
            starts.append(min(at - before, length - size))
            cores.append(at)
            at += (size - before - after) // stride * stride
        cuts.setdefault(len(starts), Cuts(size, tuple(starts), tuple(cores)))
    return list(cuts.values())

"""Convolution with kernels of 3x3 by minimal filtering, F(2x2, 3x3), for CPU.

Four pixels of the output, 2x2 of them, take 16 multiplications per pair of channels instead of 36; what the images, the
kernel and the products go through before and after are sums (Lavin and Gray 2016, arXiv:1509.09308, section 4.1). The
work is done in parts that stay in the cache: their transforms are several times as large as the images.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PART = 2**21
"""Values of a part's transformed images: 8 MiB in float32 (measured beside a half, with 32 MiB of cache)."""


def winograd(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c d"],
    padding: Sequence[tuple[int, int]],
    precision: Any = None,
) -> Float[Array, "n h2 w2 d"]:
    """A convolution of stride 1.

    Args:
        x: channels last.
        kernel: height, width, channels in, channels out.
        padding: pixels of zeros before and after, for both axes.
        precision: of the products, as `jax.lax.Precision` names it.
    """
    n, height, width, channels = x.shape
    (top, bottom), (left, right) = padding
    rows, columns = height + top + bottom - 2, width + left + right - 2
    down, across = -(-rows // 2), -(-columns // 2)
    # Rows of blocks of a part: of several images, or of a part of one.
    most = max(1, PART // (16 * across * max(kernel.shape[2:])))
    images, lines = _evenly(n, max(1, most // down)), _evenly(down, most)
    parts = -(-n // images), -(-down // lines)
    # The left and right padding is done by part: XLA stores a padded part before its transforms read it.
    zero = jnp.zeros((), x.dtype)
    below = 2 * parts[1] * lines + 2 - height - top
    x = lax.pad(x, zero, [(0, parts[0] * images - n, 0), (top, below, 0), (0, 0, 0), (0, 0, 0)])
    beside = [(0, 0, 0), (0, 0, 0), (left, 2 * across + 2 - width - left, 0), (0, 0, 0)]
    transformed = [_weights(list(row)) for row in _weights(list(kernel))]

    def part(place: Array) -> Array:
        first, line = jnp.divmod(place, parts[1])
        seen = lax.dynamic_slice(x, (first * images, 2 * line * lines, 0, 0), (images, 2 * lines + 2, width, channels))
        return _blocks(lax.pad(seen, zero, beside), transformed, precision)

    y = lax.map(part, jnp.arange(parts[0] * parts[1]))
    return y.reshape(parts[0] * images, 2 * parts[1] * lines, 2 * across, -1)[:n, :rows, :columns]


def _evenly(count: int, most: int) -> int:
    """The length of each of the fewest equal parts of `count` that are no longer than `most`."""
    return -(-count // -(-count // most))


def _blocks(x: Array, kernel: Sequence[Sequence[Array]], precision: Any) -> Array:
    """The output of images that are already padded, of even height and width."""
    n, height, width, _ = x.shape
    products = [
        [
            lax.dot_general(seen, weights, (((3,), (0,)), ((), ())), precision=precision)
            for seen, weights in zip(_seen(_shifted(lines, 2)), row, strict=True)
        ]
        for lines, row in zip(_seen(_shifted(x, 1)), kernel, strict=True)
    ]
    summed = [_output(row) for row in products]
    pixels = [_output([row[column] for row in summed]) for column in range(2)]
    lines = [jnp.stack([pixels[column][row] for column in range(2)], axis=3) for row in range(2)]
    return jnp.stack(lines, axis=2).reshape(n, height - 2, width - 2, -1)


def _shifted(x: Array, axis: int) -> list[Array]:
    """Every second line, from each of the first four on."""
    return [lax.slice_in_dim(x, first, x.shape[axis] - 3 + first, 2, axis) for first in range(4)]


def _seen(image: Sequence[Array]) -> tuple[Array, ...]:
    """Four pixels of an image, transformed: the matrix B of the paper."""
    return image[0] - image[2], image[1] + image[2], image[2] - image[1], image[1] - image[3]


def _weights(kernel: Sequence[Array]) -> tuple[Array, ...]:
    """Three weights of a kernel, transformed: the matrix G."""
    ends = (kernel[0] + kernel[2]) / 2
    return kernel[0], ends + kernel[1] / 2, ends - kernel[1] / 2, kernel[2]


def _output(products: Sequence[Array]) -> tuple[Array, ...]:
    """Two pixels of the output, from four products: the matrix A."""
    return products[0] + products[1] + products[2], products[1] - products[2] - products[3]

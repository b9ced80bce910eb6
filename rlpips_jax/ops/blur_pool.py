"""Blur pooling (Zhang 2019): images smoothed by [1 2 1] x [1 2 1] / 16, of which every second pixel is kept.

The filter is separable, and along each axis it is a sum of strided slices: on CPU XLA takes 20 to 40 times as long for
the same as a depthwise convolution. The gradient that autodiff makes of slices is slow there too, and has its own rule.
"""

import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.inside import Size
from rlpips_jax.ops.reverse_only import reverse_only

FILTER = (0.25, 0.5, 0.25)
"""Along one axis."""

Edges = Literal["reflected", "zero"]
"""What surrounds an image: two pixels that mirror it without repeating its edge, or one pixel of zeros."""

AROUND: dict[Edges, int] = {"reflected": 2, "zero": 1}
"""Pixels on each side."""


def blurred_size(size: Size, edges: Edges = "reflected") -> Size:
    """Number of windows along an axis of `size` pixels; 0 where there are too few to reflect."""
    windows = (size + 2 * AROUND[edges] - len(FILTER)) // 2 + 1
    return windows if edges == "zero" else windows * (size > AROUND[edges])


@automatic_axes("x")
def blur_pool(
    x: Float[Array, "n h w c"],
    edges: Edges = "reflected",
    *,
    sizes: Int[Array, "n 2"] | None = None,
    forward_mode: bool = False,
) -> Float[Array, "n i j c"]:
    """Smooths each channel by [1 2 1] x [1 2 1] / 16 and keeps every second pixel.

    Args:
        x: activations, which can be reflected if they are at least 3 pixels high and wide.
        edges: what surrounds them.
        sizes: height and width of each image in a batch of several sizes, outside which it is 0: its own edges are
            reflected then, and what lies outside `blurred_size(sizes)` means nothing.
        forward_mode: use the derivative that `jax.jvp` can take, which is slower on CPU.
    """
    height, width = x.shape[1:3]
    if sizes is not None and edges == "reflected":
        x = _reflected(x, sizes)
    smooth = _plain(x, edges) if forward_mode else _smooth(reverse_only(x), edges, x.shape[1:3])
    return jnp.asarray(smooth)[:, : blurred_size(height, edges), : blurred_size(width, edges)]


def _plain(x: Array, edges: Edges) -> Array:
    return _along(_along(x, 1, edges=edges), 2, edges=edges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _smooth(x: Array, edges: Edges, size: tuple[int, int]) -> Array:
    return _plain(x, edges)


def _smooth_forward(x: Array, edges: Edges, size: tuple[int, int]) -> tuple[Array, None]:
    return _plain(x, edges), None


def _smooth_backward(edges: Edges, size: tuple[int, int], _: None, cotangent: Array) -> tuple[Array]:
    across = _transposed(cotangent, 2, size=size[1], edges=edges)
    return (_transposed(across, 1, size=size[0], edges=edges),)


_smooth.defvjp(_smooth_forward, _smooth_backward)


def _along(x: Array, axis: int, *, edges: Edges) -> Array:
    """The filter along one axis. Windows over the edge are computed apart, or each pixel would be asked where it is."""
    size, first = x.shape[axis], 2 - AROUND[edges]
    whole = max(0, (size - first - 1) // 2)
    slices = (lax.slice_in_dim(x, first + place, first + place + 2 * whole - 1, 2, axis) for place in range(3))
    inside = [sum(weight * part for weight, part in zip(FILTER, slices, strict=True))] if whole else []
    first_one, *last_one = (
        sum(weight * lax.slice_in_dim(x, pixel, pixel + 1, axis=axis) for pixel, weight in _pixels(window, size, edges))
        for window in (0, *range(whole + 1, blurred_size(size, edges)))
    )
    return lax.concatenate([first_one, *inside, *last_one], axis)


def _pixels(window: int, size: int, edges: Edges) -> Iterator[tuple[int, float]]:
    """The pixels along an axis that a window sees, and their weights."""
    for place, weight in enumerate(FILTER):
        pixel = 2 * window - AROUND[edges] + place
        if edges == "reflected":
            pixel = abs(pixel) if pixel < size else 2 * (size - 1) - pixel
        if 0 <= pixel < size:
            yield pixel, weight


def _transposed(cotangent: Array, axis: int, *, size: int, edges: Edges) -> Array:
    """The transpose of `_along`, by blocks of two pixels: the second of them only one window sees."""
    first, last = (lax.slice_in_dim(cotangent, place, place + 1, axis=axis) for place in (0, cotangent.shape[axis] - 1))
    nothing = jnp.zeros_like(first)
    if edges == "zero":
        here, before, cropped = [cotangent, nothing], [nothing, cotangent], 1
    else:
        # The first window sees what the second one does. So does the last with the one before it where the size is odd;
        # else its reflected pixel is the first of its block.
        whole = _added(lax.slice_in_dim(cotangent, 1, -1, axis=axis), first, place=0, axis=axis)
        folded = _added(whole, last, place=whole.shape[axis] - 1, axis=axis)
        here = [folded, nothing] if size % 2 else [whole, last]
        before, cropped = [nothing, folded], 0
    here, before = (jnp.expand_dims(lax.concatenate(parts, axis), axis + 1) for parts in (here, before))
    share = np.array([0.25, 0], cotangent.dtype).reshape([2 if each == axis + 1 else 1 for each in range(5)])
    blocks = share * before + (np.array(0.5, cotangent.dtype) - share) * here
    pixels = blocks.reshape(*cotangent.shape[:axis], -1, *cotangent.shape[axis + 1 :])
    return lax.slice_in_dim(pixels, cropped, cropped + size, axis=axis)


def _added(x: Array, part: Array, *, place: int, axis: int) -> Array:
    """The array with something added at one place along an axis."""
    before, here, after = jnp.split(x, [place, place + 1], axis)
    return lax.concatenate([before, here + part, after], axis)


def _reflected(x: Array, sizes: Array) -> Array:
    """Each image with its reflection in the two rows and columns beyond it, which are added to the array."""
    x = jnp.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))
    for axis in (1, 2):
        beyond = jnp.arange(x.shape[axis]) - sizes[:, axis - 1, None]
        beyond = jnp.expand_dims(beyond, [each for each in (1, 2, 3) if each != axis])
        for distance in (0, 1):
            x = jnp.where(beyond == distance, jnp.roll(x, 2 + 2 * distance, axis), x)
    return x

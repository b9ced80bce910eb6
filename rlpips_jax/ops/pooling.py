"""Pooling whose gradient is fast on CPU too, and its two ways of counting windows.

XLA's own operations are right everywhere and fast on GPU and TPU, where they are used. On CPU its maximum over windows
and the gradient of that are slow, and strided slices take their place.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rlpips_jax.errors import MetricError
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.blur_pool import blur_pool, blurred_size
from rlpips_jax.ops.inside import Size
from rlpips_jax.ops.reverse_only import reverse_only


@dataclass(frozen=True)
class Pooling:
    """A pooling of square windows, without padding but for "l2".

    Attributes:
        kind: "max", "average", or "l2": the root of the blurred square, sqrt(blur(x^2) + 1e-12), with the window of 3,
            the stride of 2 and the padding of one pixel that `blur_pool` has (DISTS).
        window: side of the window, in pixels.
        stride: step between windows, in pixels.
        ceil: whether a last window that hangs over the edge counts (PyTorch's `ceil_mode`).

    Raises:
        MetricError: "l2" with another window or stride, or with ceil.
    """

    kind: Literal["max", "average", "l2"]
    window: int
    stride: int
    ceil: bool = False

    def __post_init__(self) -> None:
        if self.kind == "l2" and (self.window, self.stride, self.ceil) != (3, 2, False):
            raise MetricError(f"l2 pooling has a window of 3 and a stride of 2, without ceil, got {self}")

    def __str__(self) -> str:
        return f"{self.kind}-{self.window}-{self.stride}-{'ceil' if self.ceil else 'floor'}"

    def size(self, size: Size) -> Size:
        """Number of windows along an axis of `size` pixels; 0 or less where none fits."""
        if self.kind == "l2":
            return blurred_size(size, "zero")
        if not self.ceil:
            return (size - self.window) // self.stride + 1
        # A window counts only if it starts inside the image, whatever its length.
        return -((-size + max(self.window, self.stride)) // self.stride) + 1

    def overhang(self, size: Size) -> Size:
        """How many pixels the last window reaches over the edge."""
        if not self.ceil:
            return cast(Size, 0)
        over = (self.size(size) - 1) * self.stride + self.window - size
        # A size that is yet unknown cannot be compared.
        return over if self.window >= self.stride else max(0, over)


@automatic_axes("x")
def pool(x: Float[Array, "n h w c"], pooling: Pooling, *, forward_mode: bool = False) -> Float[Array, "n i j c"]:
    """Pools each window; windows that hang over the edge see only the pixels inside.

    The gradient of a maximum goes to the first of equal pixels, in reading order.

    Args:
        x: activations.
        pooling: what to do.
        forward_mode: use the derivative that `jax.jvp` can take, which is slower on CPU.
    """
    if pooling.kind == "l2":
        square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        # The root has an infinite slope at 0.
        return jnp.sqrt(blur_pool(square, "zero", forward_mode=forward_mode) + 1e-12).astype(x.dtype)
    if pooling.kind == "average":
        window, strides, padding = _windows(x, pooling)
        return nn.avg_pool(x, window, strides, padding, count_include_pad=False)
    return _plain_maximum(x, pooling) if forward_mode else _maximum(reverse_only(x), pooling)


def _windows(x: Array, pooling: Pooling) -> tuple[tuple[int, int], tuple[int, int], Any]:
    padding = tuple((0, pooling.overhang(size)) for size in x.shape[1:3])
    return (pooling.window, pooling.window), (pooling.stride, pooling.stride), padding


def _plain_maximum(x: Array, pooling: Pooling) -> Array:
    return nn.max_pool(_overhung(x, pooling), (pooling.window,) * 2, (pooling.stride,) * 2)


def _overhung(x: Array, pooling: Pooling) -> Array:
    """With the pixels that windows see over the edge, which no maximum is."""
    around = [(0, 0, 0), *((0, pooling.overhang(size), 0) for size in x.shape[1:3]), (0, 0, 0)]
    return lax.pad(x, jnp.array(-np.inf, x.dtype), around)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _maximum(x: Array, pooling: Pooling) -> Array:
    return lax.platform_dependent(
        x,
        cpu=lambda x: _winners(x, pooling)[0],
        default=functools.partial(_plain_maximum, pooling=pooling),
    )


def _maximum_forward(x: Array, pooling: Pooling) -> tuple[Array, Array]:
    return _maximum(x, pooling), x


def _maximum_backward(pooling: Pooling, x: Array, cotangent: Array) -> tuple[Array]:
    def plain(x: Array, cotangent: Array) -> Array:
        return jax.vjp(functools.partial(_plain_maximum, pooling=pooling), x)[1](cotangent)[0]

    def fast(x: Array, cotangent: Array) -> Array:
        return _to_winners(_winners(x, pooling)[1], cotangent, pooling, x.shape[1:3])

    return (lax.platform_dependent(x, cotangent, cpu=fast, default=plain),)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _winners(x: Array, pooling: Pooling) -> tuple[Array, Array]:
    """The maximum of each window, and the place in the window, in reading order, where it first occurs.

    Strided slices, one for each place, are compared one after the other, which on CPU is faster than a window that
    moves.
    """
    rows, columns = (pooling.size(size) for size in x.shape[1:3])
    x = _overhung(x, pooling)
    step = pooling.stride
    largest = x[:, : (rows - 1) * step + 1 : step, : (columns - 1) * step + 1 : step]
    winner = jnp.zeros(largest.shape, np.min_scalar_type(-(pooling.window**2)))
    for place in range(1, pooling.window**2):
        i, j = divmod(place, pooling.window)
        value = x[:, i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * step + 1 : step]
        better = (value > largest) | (value != value)  # A NaN stays, as in any maximum.
        largest = jnp.where(better, value, largest)
        winner = jnp.where(better, jnp.array(place, winner.dtype), winner)
    return largest, winner


def _to_winners(winner: Array, cotangent: Array, pooling: Pooling, size: tuple[Any, ...]) -> Array:
    """Each window's cotangent at the pixel that won it, and 0 elsewhere.

    The image is cut into blocks as large as the stride. A pixel then belongs to the window that starts in its own
    block and to those of the blocks before it that reach so far: it asks each of them whether it won. Every step is
    a broadcast over whole blocks, where scattering would move single pixels.
    """
    n, rows, columns, channels = winner.shape
    step, window = pooling.stride, pooling.window
    reach = -(-window // step) - 1
    edges = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    winner, cotangent = jnp.pad(winner, edges, constant_values=-1), jnp.pad(cotangent, edges)
    total = jnp.zeros((), cotangent.dtype)
    for back in range(reach + 1):
        for aside in range(reach + 1):
            i, j = np.arange(step)[:, None] + back * step, np.arange(step)[None, :] + aside * step
            place = np.where((i < window) & (j < window), i * window + j, -2).astype(winner.dtype)
            part = (
                slice(None),
                slice(reach - back, 2 * reach - back + rows),
                None,
                slice(reach - aside, 2 * reach - aside + columns),
                None,
            )
            total += jnp.where(winner[part] == place[None, None, :, None, :, None], cotangent[part], 0)
    blocks = total.reshape(n, (rows + reach) * step, (columns + reach) * step, channels)
    crop = [(0, length - there, 0) for length, there in zip(size, blocks.shape[1:3], strict=True)]
    return lax.pad(blocks, jnp.zeros((), blocks.dtype), [(0, 0, 0), *crop, (0, 0, 0)])

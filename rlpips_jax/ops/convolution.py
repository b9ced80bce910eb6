"""Convolution and pooling whose gradients are fast on CPU too, and pooling's two ways of counting windows.

XLA's own operations and derivatives are right everywhere and fast on GPU and TPU, and there they stay. On CPU some miss
the fast path: an input gradient inside a loop (its reversed kernel keeps a layout that the fast convolution does not
take), the input gradient of a strided convolution, max pooling and its gradient, and convolutions of images so small
that many of their multiplications are by the zeros around them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Bool, Float, Int

Size = TypeVar("Size", int, Array)
"""A number of pixels, or an array of them."""

Padding = tuple[tuple[int, int], ...]
"""Pixels of zeros above and below, left and right; negative ones crop."""


LARGELY_INSIDE = 0.85
"""Where more than the rest of a convolution's multiplications would be by zeros around a small image, they are left out
on CPU (measured: 1.5 to 2 times as fast at 3x3 and 4x4 pixels, as fast at 8x8)."""

ENOUGH_CHANNELS = 128
"""With fewer to sum over, those products are too thin to be worth while."""


@dataclass(frozen=True)
class Pooling:
    """A pooling of square windows, without padding.

    Attributes:
        kind: "max" or "average".
        window: side of the window, in pixels.
        stride: step between windows, in pixels.
        ceil: whether a last window that hangs over the edge counts (PyTorch's `ceil_mode`).
    """

    kind: Literal["max", "average"]
    window: int
    stride: int
    ceil: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.window}-{self.stride}-{'ceil' if self.ceil else 'floor'}"

    def size(self, size: Size) -> Size:
        """Number of windows along an axis of `size` pixels; 0 or less where none fits."""
        if not self.ceil:
            return (size - self.window) // self.stride + 1
        # A window counts only if it starts inside the image, whatever its length.
        return -((max(self.window, self.stride) - size) // self.stride) + 1

    def overhang(self, size: int) -> int:
        """How many pixels the last window reaches over the edge."""
        return max(0, (self.size(size) - 1) * self.stride + self.window - size)


@dataclass(frozen=True)
class _Geometry:
    """What of a convolution is known before any value is.

    Attributes:
        size: height and width of the input.
        window: height and width of the kernel.
        stride: along both axes.
        padding: of the input.
        precision: as `jax.lax.Precision` names it.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    precision: Any

    @property
    def output(self) -> tuple[int, ...]:
        """Height and width of the output."""
        return tuple(
            (size + before + after - window) // stride + 1
            for size, window, stride, (before, after) in zip(
                self.size, self.window, self.stride, self.padding, strict=True
            )
        )

    @property
    def wasteful(self) -> bool:
        """Whether many of its multiplications would be by the zeros around a small image."""
        if self.stride != (1, 1):
            return False
        shares = []
        for size, window, length, (before, _) in zip(self.size, self.window, self.output, self.padding, strict=True):
            seen = [sum(0 <= place - before + step < size for step in range(window)) for place in range(length)]
            shares.append(sum(seen) / (window * length))
        return shares[0] * shares[1] <= LARGELY_INSIDE


def convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    precision: Any = None,
    **_constants: Any,
) -> Float[Array, "n h2 w2 d"]:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it, with an input gradient that is fast on CPU.

    Args:
        x: channels last.
        kernel: height, width, channels in, channels out.
        strides: along both axes.
        padding: pixels of zeros before and after, for both axes.
        precision: as `jax.lax.Precision` names it.
        _constants: what Flax says besides and a plain two-dimensional convolution has no use for.
    """
    geometry = _Geometry(
        x.shape[1:3], kernel.shape[:2], tuple(strides), tuple((before, after) for before, after in padding), precision
    )
    return _convolution(*_alike(x, kernel), geometry)


def _alike(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both varying over the same devices, where `shard_map` keeps account of it.

    The derivative of this step sums the gradient of what was replicated, which a rule of our own cannot do.
    """
    of_x, of_kernel = (cast(Any, jax.typeof(array)).mat.varying for array in (x, kernel))
    if of_x == of_kernel:
        return x, kernel
    return (
        lax.pcast(x, tuple(of_kernel - of_x), to="varying"),
        lax.pcast(kernel, tuple(of_x - of_kernel), to="varying"),
    )


def _plain(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=geometry.precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    plain = functools.partial(_plain, geometry=geometry)
    if not geometry.wasteful or kernel.shape[2] < ENOUGH_CHANNELS:
        return plain(x, kernel)
    fast = functools.partial(_sum_of_products, geometry=geometry, transposed=False)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain)


class _Residuals(NamedTuple):
    """What the backward rule needs.

    JAX remembers one structure of residuals for all uses of a traced convolution, whichever of its arguments is
    differentiated by in each. So there are always three arrays, and what is not needed has no values.

    Attributes:
        kernel: as it is.
        x: the input where the kernel's gradient is asked for, else `NOTHING`.
        asked: `(0,)` where the input's gradient is asked for, else `NOTHING`.
    """

    kernel: Array
    x: Array
    asked: Array


NOTHING = (0, 0)
"""Shape of an array that only says, by its shape, that something is not there."""


def _forward(x: CustomVJPPrimal, kernel: CustomVJPPrimal, geometry: _Geometry) -> tuple[Array, _Residuals]:
    nothing = jnp.zeros(NOTHING, x.value.dtype)
    # Without the barrier, JAX would pass the input on by its position, which placeholders have none of.
    saved = lax.optimization_barrier(x.value) if kernel.perturbed else nothing
    asked = jnp.zeros((0,), x.value.dtype) if x.perturbed else nothing
    return _convolution(x.value, kernel.value, geometry), _Residuals(kernel.value, saved, asked)


def _backward(
    geometry: _Geometry, residuals: _Residuals, cotangent: Array | SymbolicZero
) -> tuple[Array | None, Array | None]:
    if isinstance(cotangent, SymbolicZero):
        return None, None
    kernel, x, asked = residuals
    return (
        _input_gradient(kernel, cotangent, geometry) if asked.shape != NOTHING else None,
        _kernel_gradient(x, kernel, cotangent, geometry) if x.shape != NOTHING else None,
    )


_convolution.defvjp(_forward, _backward, symbolic_zeros=True)


def _input_gradient(kernel: Array, cotangent: Array, geometry: _Geometry) -> Array:
    """The transpose of `_plain` in its input: as XLA would have it, or on CPU without dilation and reversed layout."""

    def plain(kernel: Array, cotangent: Array) -> Array:
        padding = [
            (window - 1 - before, size + before - stride * (length - 1) - 1)
            for size, window, stride, (before, _), length in zip(
                geometry.size,
                geometry.window,
                geometry.stride,
                geometry.padding,
                cotangent.shape[1:3],
                strict=True,
            )
        ]
        return lax.conv_general_dilated(
            cotangent,
            kernel[::-1, ::-1],
            (1, 1),
            padding,
            lhs_dilation=geometry.stride,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
            precision=geometry.precision,
        )

    by_products = geometry.wasteful and kernel.shape[3] >= ENOUGH_CHANNELS

    def fast(kernel: Array, cotangent: Array) -> Array:
        if by_products:
            return _sum_of_products(cotangent, kernel, geometry, transposed=True)
        return _transposed(kernel, cotangent, geometry)

    return lax.platform_dependent(kernel, cotangent, cpu=fast, default=plain)


def _sum_of_products(x: Array, kernel: Array, geometry: _Geometry, *, transposed: bool) -> Array:
    """A convolution of stride 1, or its transpose, as a sum over the kernel's places of matrix products.

    Each product is of the part of the image that this place of the kernel sees, so nothing is multiplied by the
    zeros around a small image; and a matrix is used transposed as it lies.
    """
    (top, _), (left, _) = geometry.padding
    height, width = geometry.size if transposed else geometry.output
    contracted = ((x.ndim - 1,), (1 if transposed else 0,))
    # Or each product would compute the layer before anew.
    x = _stored(x)
    total = jnp.zeros((), x.dtype)
    for i, j in np.ndindex(*geometry.window):
        down, right = (top - i, left - j) if transposed else (i - top, j - left)
        # Output pixel (y, x) sees input pixel (y + down, x + right), where there is one.
        first_row, last_row = max(0, -down), min(height, x.shape[1] - down)
        first_column, last_column = max(0, -right), min(width, x.shape[2] - right)
        if first_row >= last_row or first_column >= last_column:
            continue
        seen = x[:, first_row + down : last_row + down, first_column + right : last_column + right]
        product = lax.dot_general(seen, kernel[i, j], (contracted, ((), ())), precision=geometry.precision)
        around = [
            (0, 0, 0),
            (first_row, height - last_row, 0),
            (first_column, width - last_column, 0),
            (0, 0, 0),
        ]
        total += lax.pad(product, jnp.zeros((), product.dtype), around)
    total = jnp.broadcast_to(total, (x.shape[0], height, width, kernel.shape[2 if transposed else 3]))
    return _stored(total)


@jax.custom_jvp
def _stored(x: Array) -> Array:
    """The same array, in memory.

    XLA's CPU compiler computes what is read in several places anew for each of them, and drops
    `lax.optimization_barrier`. It does not see that this loop never runs, and a loop's result is stored.
    """
    first = jnp.sum(x.reshape(-1)[:1])
    never = first < first - 1
    return lax.while_loop(lambda state: state[1], lambda state: (2 * state[0], ~state[1]), (x, never))[0]


@_stored.defjvp
def _stored_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _stored(*primals), tangents[0]


def _transposed(kernel: Array, cotangent: Array, geometry: _Geometry) -> Array:
    """The input gradient as a convolution of the cotangent with the kernel turned round.

    With stride s, the gradients at the s x s pixels of a block are channels of one convolution of stride 1, whose
    kernel is the original's, filled up with zeros to a multiple of s and cut into s x s phases.
    """
    (rows, columns), (height, width) = geometry.stride, geometry.window
    channels, outputs = kernel.shape[2:]
    blocks = -(-height // rows), -(-width // columns)
    kernel = jnp.pad(kernel, ((0, blocks[0] * rows - height), (0, blocks[1] * columns - width), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks[0], rows, blocks[1], columns, channels, outputs)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 5, 1, 3, 4).reshape(*blocks, outputs, rows * columns * channels)
    full = tuple((block - 1, block - 1) for block in blocks)
    if (rows, columns) == (1, 1):
        # Zeros around the cotangent that the original's padding would cut off again are not computed at all.
        padding = tuple(
            (around - before, around - after)
            for (around, _), (before, after) in zip(full, geometry.padding, strict=True)
        )
        inner = _Geometry(cotangent.shape[1:3], blocks, (1, 1), padding, geometry.precision)
        return _convolution(cotangent, kernel, inner)
    inner = _Geometry(cotangent.shape[1:3], blocks, (1, 1), full, geometry.precision)
    phases = jnp.asarray(_convolution(cotangent, kernel, inner))
    n, h, w, _ = phases.shape
    pixels = phases.reshape(n, h, w, rows, columns, channels).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(n, h * rows, w * columns, channels)
    crop = [
        (-before, size + before - length, 0)
        for (before, _), size, length in zip(geometry.padding, geometry.size, pixels.shape[1:3], strict=True)
    ]
    return lax.pad(pixels, jnp.zeros((), pixels.dtype), [(0, 0, 0), *crop, (0, 0, 0)])


def _kernel_gradient(x: Array, kernel: Array, cotangent: Array, geometry: _Geometry) -> Array:
    return jax.vjp(lambda kernel: _plain(x, kernel, geometry), kernel)[1](cotangent)[0]


def pool(x: Float[Array, "n h w c"], pooling: Pooling, *, forward_mode: bool = False) -> Float[Array, "n i j c"]:
    """Pools each window; windows that hang over the edge see only the pixels inside.

    The gradient of a maximum goes to the first of equal pixels, in reading order.

    Args:
        x: activations.
        pooling: what to do.
        forward_mode: use the derivative that `jax.jvp` can take, which is slower on CPU.
    """
    if pooling.kind == "average":
        window, strides, padding = _windows(x, pooling)
        return nn.avg_pool(x, window, strides, padding, count_include_pad=False)
    return _plain_maximum(x, pooling) if forward_mode else _maximum(x, pooling)


def _windows(x: Array, pooling: Pooling) -> tuple[tuple[int, int], tuple[int, int], Any]:
    padding = tuple((0, pooling.overhang(size)) for size in x.shape[1:3])
    return (pooling.window, pooling.window), (pooling.stride, pooling.stride), padding


def _plain_maximum(x: Array, pooling: Pooling) -> Array:
    return nn.max_pool(x, *_windows(x, pooling))


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
    around = [(0, 0, 0), *((0, pooling.overhang(size), 0) for size in x.shape[1:3]), (0, 0, 0)]
    x = lax.pad(x, jnp.array(-np.inf, x.dtype), around)
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


def _to_winners(winner: Array, cotangent: Array, pooling: Pooling, size: tuple[int, ...]) -> Array:
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
            total += jnp.where(winner[part] == place[:, None, :, None], cotangent[part], 0)
    blocks = total.reshape(n, (rows + reach) * step, (columns + reach) * step, channels)
    crop = [(0, length - there, 0) for length, there in zip(size, blocks.shape[1:3], strict=True)]
    return lax.pad(blocks, jnp.zeros((), blocks.dtype), [(0, 0, 0), *crop, (0, 0, 0)])


def inside(x: Float[Array, "n h w c"], sizes: Int[Array, "n 2"]) -> Float[Array, "n h w c"]:
    """The top left part of each image, of its own height and width, and zeros around it."""

    def along(axis: int) -> Bool[Array, "n _"]:
        return jnp.arange(x.shape[1 + axis]) < sizes[:, axis, None]

    return jnp.where((along(0)[:, :, None] & along(1)[:, None, :])[..., None], x, 0)


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), with gradient 0 at 0."""
    return jax.nn.relu(x)


def resize_bilinear(x: Float[Array, "n i j"], height: int, width: int) -> Float[Array, "n h w"]:
    """Bilinear enlargement with half-pixel centres (PyTorch's `align_corners=False`)."""
    return jax.image.resize(
        x,
        (*x.shape[:-2], height, width),
        "bilinear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.result_type(x))

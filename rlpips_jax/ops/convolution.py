"""Convolution whose gradients are fast on CPU too.

XLA's own convolution and its derivatives are right everywhere and fast on GPU and TPU, where they are used. On CPU some
miss the fast path: an input gradient inside a loop (its reversed kernel keeps a layout that the fast convolution does
not take), the input gradient of a strided convolution, and convolutions of images so small that many of their
multiplications are by the zeros around them. With windows of 3x3 many multiplications can be saved, which XLA does not.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float

from rlpips_jax.errors import MetricError
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.ops.reverse_only import reverse_only
from rlpips_jax.ops.varying import varying_alike
from rlpips_jax.ops.winograd import winograd

Padding = tuple[tuple[int, int], ...]
"""Pixels of zeros above and below, left and right; negative ones crop."""

LAYOUT = ("NHWC", "HWIO", "NHWC")
"""The order of the axes of images, kernel and result."""

LARGELY_INSIDE = 0.85
"""Where more than the rest of a convolution's multiplications would be by zeros around a small image, they are left out
on CPU (measured: 1.5 to 2 times as fast at 3x3 and 4x4 pixels, as fast at 8x8)."""

ENOUGH_CHANNELS = 128
"""With fewer to sum over, those products are too thin to be worth while."""

FILTERED_CHANNELS = 32
"""With fewer channels, in or out, Winograd's transforms take longer than what they save."""

FILTERED_PRODUCTS = 10**9
"""With fewer multiplications, less than some milliseconds are saved, and the program takes longer to compile."""


@dataclass(frozen=True)
class _Geometry:
    """What of a convolution is known before any value is.

    Attributes:
        size: height and width of the input; expressions of JAX in a program that is exported for any size.
        window: height and width of the kernel.
        stride: along both axes.
        padding: of the input.
        precision: as `jax.lax.Precision` names it.
        filtered: whether Winograd's way may be taken.
    """

    size: tuple[Any, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    precision: Any
    filtered: bool = True

    @property
    def output(self) -> tuple[Any, ...]:
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
        if self.stride != (1, 1) or not all(isinstance(size, int) for size in self.size):
            return False
        shares = []
        for size, window, length, (before, _) in zip(self.size, self.window, self.output, self.padding, strict=True):
            seen = [sum(0 <= place - before + step < size for step in range(window)) for place in range(length)]
            shares.append(sum(seen) / (window * length))
        return shares[0] * shares[1] <= LARGELY_INSIDE


@automatic_axes("x")
def convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "i j c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = LAYOUT,
    feature_group_count: int = 1,
    precision: Any = None,
    filtered: bool = True,
) -> Float[Array, "n h2 w2 d"]:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it, with an input gradient that is fast on CPU.

    Args:
        x: channels last.
        kernel: height, width, channels in, channels out.
        strides: along both axes.
        padding: pixels of zeros before and after, for both axes.
        lhs_dilation: 1 along both axes, or None.
        rhs_dilation: 1 along both axes, or None.
        dimension_numbers: channels last.
        feature_group_count: 1.
        precision: as `jax.lax.Precision` names it.
        filtered: whether Winograd's way may be taken, which holds the kernels' transforms in memory.

    Raises:
        MetricError: the convolution is dilated, grouped, padded by name, or laid out in another way.
    """
    for name, dilation in (("lhs_dilation", lhs_dilation), ("rhs_dilation", rhs_dilation)):
        if dilation is not None and tuple(dilation) != (1, 1):
            raise MetricError(f"this convolution has no dilation: {name} must be (1, 1), got {dilation}")
    if feature_group_count != 1:
        raise MetricError(f"this convolution has no groups: feature_group_count must be 1, got {feature_group_count}")
    if isinstance(padding, str):
        raise MetricError(f"padding must be two pairs of numbers of pixels, got {padding!r}")
    layout = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, LAYOUT)
    if x.ndim != 4 or lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers) != layout:
        raise MetricError(f"this convolution takes images (n, h, w, c): {LAYOUT}, got {dimension_numbers}")
    geometry = _Geometry(
        x.shape[1:3],
        kernel.shape[:2],
        tuple(strides),
        tuple((before, after) for before, after in padding),
        precision,
        filtered,
    )
    return _convolution(*reverse_only(varying_alike((x, kernel))), geometry)


def _plain(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        dimension_numbers=LAYOUT,
        precision=geometry.precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    plain = functools.partial(_plain, geometry=geometry)
    if geometry.wasteful and kernel.shape[2] >= ENOUGH_CHANNELS:
        fast = functools.partial(_sum_of_products, geometry=geometry, transposed=False)
    elif _filtered(x, kernel, geometry):
        fast = functools.partial(winograd, padding=geometry.padding, precision=geometry.precision)
    else:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=fast, default=plain)


def _filtered(x: Array, kernel: Array, geometry: _Geometry) -> bool:
    """Whether Winograd's way is wanted, and faster."""
    lengths = (x.shape[0], *geometry.output)
    if not geometry.filtered or not all(isinstance(length, int) for length in lengths):
        return False
    return (
        (geometry.window, geometry.stride) == ((3, 3), (1, 1))
        and x.dtype in (jnp.float32, jnp.float64)
        and min(kernel.shape[2:]) >= FILTERED_CHANNELS
        and math.prod(lengths) * kernel.size >= FILTERED_PRODUCTS
    )


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
    # Winograd's rounding is two to three times as large. A distance does not tell; but its gradient jumps where
    # rounding decides on which side of 0 a ReLU's input is, or which of two pixels is the maximum.
    value = jnp.asarray(_convolution(x.value, kernel.value, replace(geometry, filtered=False)))
    return value, _Residuals(kernel.value, saved, asked)


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
        around = [(window - 1, window - 1) for window in geometry.window]
        # What is left, or lacking, of the input's pixels and the zeros that were put around them.
        crop = [
            (-before, size + before - stride * (length - 1) - window)
            for size, window, stride, (before, _), length in zip(
                geometry.size,
                geometry.window,
                geometry.stride,
                geometry.padding,
                cotangent.shape[1:3],
                strict=True,
            )
        ]
        known = all(isinstance(size, int) for size in geometry.size)
        if known:
            around = [(low + first, high + last) for (low, high), (first, last) in zip(around, crop, strict=True)]
        gradient = lax.conv_general_dilated(
            cotangent,
            kernel[::-1, ::-1],
            (1, 1),
            around,
            lhs_dilation=geometry.stride,
            dimension_numbers=("NHWC", "HWOI", "NHWC"),
            precision=geometry.precision,
        )
        # A convolution takes no padding that is yet unknown, as in a program that is exported for any size.
        edges = [(0, 0, 0), *((first, last, 0) for first, last in crop), (0, 0, 0)]
        return gradient if known else lax.pad(gradient, jnp.zeros((), gradient.dtype), edges)

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
        inner = replace(geometry, size=cotangent.shape[1:3], padding=padding)
        return _convolution(cotangent, kernel, inner)
    inner = replace(geometry, size=cotangent.shape[1:3], window=blocks, stride=(1, 1), padding=full)
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

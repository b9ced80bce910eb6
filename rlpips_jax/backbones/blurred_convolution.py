"""A convolution of stride 1 and a blur pooling of what it gives, as one convolution of stride 2."""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rlpips_jax.backbones.protocol import Computation
from rlpips_jax.ops.blur_pool import FILTER


def blurred_convolution(
    parameters: Mapping[str, Array], x: Float[Array, "n h w c"], *, padding: int, computation: Computation
) -> Float[Array, "n i j d"]:
    """`blur_pool` of a convolution, with a kernel that is smoothed instead of the activations.

    An 11x11 kernel needs 0.35 of the multiplications, and activations of four times as many pixels are never made.

    Args:
        parameters: `{"kernel": (h, w, c, d), "bias": (d,)}`.
        x: at least two pixels higher and wider than the kernel, with the padding.
        padding: pixels of zeros on each side.
        computation: how to compute.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # A smoothed kernel is rounded to the network's dtype, but not before.
    kernel = parameters["kernel"].astype(jnp.promote_types(computation.dtype, jnp.float32))
    rows = []
    for strip, by_rows in _parts(x, kernel, 0):
        pieces = [
            computation.convolve({"kernel": by_both, "bias": parameters["bias"]}, piece, stride=2)
            for piece, by_both in _parts(strip, by_rows, 1)
        ]
        rows.append(_with_edges(pieces, 2))
    return _with_edges(rows, 1)


def _parts(x: Array, kernel: Array, axis: int) -> Iterator[tuple[Array, Array]]:
    """What is convolved with which kernel along an axis: the windows inside, and one window over an even end.

    The last pixel's reflection is the one before it, which makes of the filter [1 2 1] / 4 there [2 2] / 4.
    """
    yield x, _smoothed(kernel, FILTER, axis)
    size, window = x.shape[axis + 1], kernel.shape[axis]
    if (size - window + 1) % 2 == 0:
        yield lax.slice_in_dim(x, size - window - 1, size, axis=axis + 1), _smoothed(kernel, (0.5, 0.5), axis)


def _smoothed(kernel: Array, weights: tuple[float, ...], axis: int) -> Array:
    """The kernel that convolves as this one does and weights the results."""
    around = [
        [(place, len(weights) - 1 - place) if each == axis else (0, 0) for each in range(4)]
        for place in range(len(weights))
    ]
    return jnp.asarray(sum(weight * jnp.pad(kernel, pad) for weight, pad in zip(weights, around, strict=True)))


def _with_edges(parts: list[Array], axis: int) -> Array:
    """The windows along an axis; reflected, the first sees the same as the second, and so at an odd end the last."""
    whole, *last = parts
    first = lax.slice_in_dim(whole, 0, 1, axis=axis)
    return lax.concatenate([first, whole, *(last or [lax.slice_in_dim(whole, -1, None, axis=axis)])], axis)

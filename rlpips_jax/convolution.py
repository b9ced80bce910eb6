"""Pooling with PyTorch's two ways of counting windows (floor and ceil); convolutions are Flax's own."""

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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

    def size(self, size: int) -> int:
        """Number of windows along an axis of `size` pixels; 0 or less where none fits."""
        steps = (size - self.window) / self.stride
        if not self.ceil:
            return math.floor(steps) + 1
        # A window counts only if it starts inside the image.
        return min(math.ceil(steps), (size - 1) // self.stride) + 1

    def overhang(self, size: int) -> int:
        """How many pixels the last window reaches over the edge."""
        return max(0, (self.size(size) - 1) * self.stride + self.window - size)


def pool(x: Float[Array, "n h w c"], pooling: Pooling) -> Float[Array, "n i j c"]:
    """Pools each window; windows that hang over the edge see only the pixels inside."""
    padding = tuple((0, pooling.overhang(size)) for size in x.shape[-3:-1])
    window, strides = (pooling.window,) * 2, (pooling.stride,) * 2
    if pooling.kind == "max":
        return nn.max_pool(x, window, strides, padding)  # pyright: ignore[reportArgumentType]
    return nn.avg_pool(x, window, strides, padding, count_include_pad=False)  # pyright: ignore[reportArgumentType]


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

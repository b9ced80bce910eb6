"""LPIPS written plainly in JAX: XLA's own convolution and pooling, differentiated by JAX.

The benchmarks compare the library's own derivative rules with it. It shares tables and parameters with the library,
but no computation; `rlpips_jax.cli.doctor.distance_in_numpy` is the same formula without JAX.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.backbones import BlurPool, Fire, Pool, Sequential, layer_name
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.weights.parameters import SCALE, SHIFT


def distance(metric: Lpips, x: Float[Array, "n h w 3"], y: Float[Array, "n h w 3"]) -> Float[Array, " n"]:
    """LPIPS 0.1 of images in [-1, 1]."""
    return between(metric, features(metric, x), features(metric, y))


def features(metric: Lpips, x: Float[Array, "n h w 3"]) -> list[Float[Array, "n _ _ _"]]:
    """Unit-normalised activations at the taps."""
    x = ((x - np.asarray(SHIFT, np.float32)) / np.asarray(SCALE, np.float32)).astype(metric.dtype)
    assert isinstance(metric.backbone, Sequential)
    taps = activations(metric.parameters["backbone"], metric.backbone, x, metric.precision)
    return [unit(tap.astype(jnp.float32)) for tap in taps]


def between(metric: Lpips, features: list[Array], others: list[Array]) -> Float[Array, " n"]:
    """Distances between images, from their features."""
    layers = zip(features, others, metric.parameters["heads"], strict=True)
    return sum(((f - g) ** 2 * head).sum(-1).mean((1, 2)) for f, g, head in layers)  # pyright: ignore


def activations(
    backbone: Mapping[str, Any], architecture: Sequential, x: Float[Array, "n h w 3"], precision: str
) -> list[Float[Array, "n _ _ _"]]:
    """Activations at the taps that the table of the architecture lists."""

    def convolve(parameters: Mapping[str, Array], x: Array, stride: int = 1, padding: int = 0) -> Array:
        convolved = jax.lax.conv_general_dilated(
            x,
            parameters["kernel"].astype(x.dtype),
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )
        return convolved + parameters["bias"].astype(x.dtype)

    pooling = architecture.pooling
    if pooling.kind != "max":
        raise ValueError(f"only max pooling is implemented here, and {architecture.name} has {pooling.kind} pooling")
    taps = []
    for layer in architecture.layers:
        if isinstance(layer, Pool):
            # With `ceil` the remainder of the image gets one more window.
            over = [(0, -(size - pooling.window) % pooling.stride if pooling.ceil else 0) for size in x.shape[1:3]]
            x = nn.max_pool(x, (pooling.window,) * 2, (pooling.stride,) * 2, over)  # pyright: ignore
            continue
        if isinstance(layer, BlurPool):
            x = blurred(x)
            continue
        parameters = backbone[layer_name(layer)]
        if isinstance(layer, Fire):
            squeezed = nn.relu(convolve(parameters["squeeze"], x))
            narrow, wide = (
                convolve(parameters["expand1x1"], squeezed),
                convolve(parameters["expand3x3"], squeezed, 1, 1),
            )
            x = nn.relu(jnp.concatenate([narrow, wide], -1))
        else:
            x = convolve(parameters, x, layer.stride, layer.padding)
            x = nn.relu(blurred(x) if layer.blurred else x)
        if layer.index in architecture.tapped:
            taps.append(x)
    return taps


def blurred(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """[1 2 1] x [1 2 1] / 16 by a depthwise convolution of stride 2 of reflected images."""
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return jax.lax.conv_general_dilated(
        jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect"),
        jnp.tile(jnp.asarray(kernel, x.dtype)[:, :, None, None], x.shape[-1]),
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def unit(f: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """f / |f|; the term under the root keeps the gradient finite at f = 0."""
    return f / (jnp.sqrt(jnp.sum(f * f, -1, keepdims=True) + 1e-20) + 1e-10)

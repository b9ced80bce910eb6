"""From a pair of distances to a judgment: which of two images is closer to the reference, and how surely.

Distances d0, d1 of two images from their reference become the logit of the probability that the second is closer. Two
ways lead there: `RankingHead`, the small learned network of LPIPS, and `ratio_logit`, which has nothing to learn
and hardly changes when the metric is scaled. `judgment_loss` compares either with what people said.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

from rlpips_jax.arguments import Key

STEEPNESS = 4.0
"""How surely a ratio of distances speaks: the logit of log(d0 / d1) = 1."""

OFFSET = 0.1
"""What the ranking head adds to a distance that it divides by."""

WIDTH = 32
"""Of the ranking head's two hidden layers."""

SLOPE = 0.2
"""Of its activations below 0."""


class RankingHead(nn.Module):
    """A pair of distances to the logit of a judgment (Zhang et al. 2018), as a network of one pair at a time.

        d0, d1, d0 - d1, d0 / (d1 + 0.1), d1 / (d0 + 0.1)  ->  32  ->  32  ->  1,        LeakyReLU(0.2) between

    A sigmoid of the result is the probability that the second image is closer.
    """

    @nn.compact
    def __call__(self, d0: Float[Array, " n"], d1: Float[Array, " n"]) -> Float[Array, " n"]:
        """Logits `(n,)` of distances `(n,)`, 0 or more."""
        x = jnp.stack([d0, d1, d0 - d1, d0 / (d1 + OFFSET), d1 / (d0 + OFFSET)], axis=-1)
        for index, width in enumerate((WIDTH, WIDTH, 1)):
            if index:
                x = nn.leaky_relu(x, SLOPE)
            bound = _uniform(x.shape[-1])
            x = nn.Dense(width, kernel_init=bound, bias_init=bound, precision="highest", name=f"layer{index}")(x)
        return x[..., 0]


def draw_ranking_head(key: Key) -> dict[str, Any]:
    """Parameters of a `RankingHead`: weights and biases in U(-1, 1) / sqrt(inputs), as PyTorch draws them."""
    variables: Any = RankingHead().init(jnp.asarray(key), jnp.zeros(1), jnp.zeros(1))
    return variables["params"]


def ranking_head_logit(
    parameters: dict[str, PyTree], d0: Float[Array, " n"], d1: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The logit that a `RankingHead` with these parameters gives for distances `(n,)`."""
    return RankingHead().apply({"params": parameters}, d0, d1)  # pyright: ignore[reportReturnType]


def ratio_logit(
    d0: Float[Array, "..."], d1: Float[Array, "..."], *, steepness: float = STEEPNESS, floor: float = 1e-6
) -> Float[Array, "..."]:
    """steepness * log((d0 + floor) / (d1 + floor)): above 0 where the second image is closer.

    Args:
        d0: distances of the first images from their references, 0 or more.
        d1: distances of the second images.
        steepness: how surely a ratio speaks.
        floor: keeps the logarithm of a distance of 0 finite.
    """
    return steepness * (jnp.log(d0 + floor) - jnp.log(d1 + floor))


def judgment_loss(logit: Float[Array, "..."], judgment: Float[Array, "..."]) -> Float[Array, "..."]:
    """Binary cross-entropy of sigmoid(logit) with a judgment in [0, 1], the share of people for the second image."""
    return optax.losses.sigmoid_binary_cross_entropy(logit, judgment)


def _uniform(inputs: int) -> Callable[..., Array]:
    bound = inputs**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)

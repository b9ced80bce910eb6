"""Dropout that compiles quickly and whose masks depend on a seed and a place in the network alone."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32


@functools.partial(jax.tree_util.register_dataclass, data_fields=["seeds"], meta_fields=["keep"])
@dataclass(frozen=True)
class Dropout:
    """Masks on the input of every convolution, rescaled so that the expectation stays the same.

    Attributes:
        seeds: `(m, 2)`, random. A batch of n images is m groups of n / m consecutive images; each group has one mask.
        keep: the share of the inputs that is kept.
    """

    seeds: UInt32[Array, "m 2"]
    keep: float

    def __call__(self, x: Float[Array, "n h w c"], place: int) -> Float[Array, "n h w c"]:
        """Activations under the masks of a place in the network."""
        index = jnp.arange(np.prod(x.shape[1:]), dtype=jnp.uint32).reshape(1, *x.shape[1:])
        first, second = _mixed(self.seeds + np.uint32(place * 0x9E3779B9 % 2**32)).T[..., None, None, None]
        kept = _mixed(_mixed(index + first) ^ second) < np.uint32(self.keep * 2**32)
        grouped = x.reshape(kept.shape[0], -1, *x.shape[1:])
        return jnp.where(kept[:, None], grouped * np.array(1 / self.keep, x.dtype), 0).reshape(x.shape)


def dropped(x: Float[Array, "n h w c"], dropout: Dropout | None, place: int) -> Float[Array, "n h w c"]:
    """The input of the convolution at a place in the network, under its masks if there is dropout."""
    return x if dropout is None else dropout(x, place)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the 32-bit numbers that looks random (Wellons, "Prospecting for hash functions", lowbias32).

    The bits of `jax.random` for as many masks take several times as long to compile as the network itself.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)

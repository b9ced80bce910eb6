"""What an estimate of E-LPIPS draws: how samples fall on scale levels, and how they are spread over the rest.

Scale level and transposition of a sample are one for all images. The rest of a transformation comes from nine uniform
numbers an image:

* `plain`: every number, level and transposition is drawn independently.
* `published`: within a sample colours are a Latin hypercube over the images of the batch, and flips and permutations a
  shuffled round of all of them; samples are independent. Of a single image it is `plain`.
* `stratified`: of each image and level, the numbers are a Latin hypercube over samples, and half of the samples are
  transposed. A fixed number m_s of samples falls on each level, which counts P(s) / m_s; with so few samples that
  this would cost more than it brings, levels are drawn, one from each of as many equal shares of probability.

Each is unbiased: every sample's distribution is that of `plain`, given its level.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlpips_jax.ensemble.transformations import FLIPS, NUMBERS, PERMUTATIONS, SHIFTS, level_probabilities

ESTIMATORS = ("plain", "published", "stratified")

PIXELS_TOGETHER = 1 << 18
"""Of all images, transformed, that pass through the network at once: bounds memory."""
ALLOWANCE = 1.25
"""Levels get fixed numbers of samples where that makes the variance at most so much larger, if levels were alike."""


class Samples(NamedTuple):
    """Draws of samples in chunks that are transposed, and pass through the network, together.

    Attributes:
        numbers: `(chunks, c, n, 9)`, uniform, for `transformations.from_uniform`.
        transposed: `(chunks,)`.
        seeds: `(chunks, c, n, 2)`, of the masks of dropout.
    """

    numbers: Float[Array, "chunks c n 9"]
    transposed: Bool[Array, " chunks"]
    seeds: UInt32[Array, "chunks c n 2"]


def allocation(samples: int, height: int, width: int) -> tuple[int, ...] | None:
    """How many samples fall on each level; None where levels are better drawn.

    The numbers are even where they can be, so that half of the samples are transposed; otherwise as near to the
    probabilities as they get with one at least.
    """
    probabilities = level_probabilities(height, width)
    if samples < len(probabilities):
        return None
    counts = np.maximum(2 * np.rint(samples * probabilities / 2), np.where(samples * probabilities < 1.5, 1, 2))
    # The first level has most, and takes what is left.
    counts[0] = samples - counts[1:].sum()
    if counts[0] < 1 or np.sum(probabilities**2 / counts) > ALLOWANCE / samples:
        return None
    return tuple(int(count) for count in counts)


def at_once(level: int, height: int, width: int, max_batch: int | None = None) -> int:
    """How many images may pass through the network at once."""
    pixels = np.prod([-(-length // level) + SHIFTS for length in (height, width)])
    most = int(PIXELS_TOGETHER // pixels)
    return max(1, most if max_batch is None else min(most, max_batch))


def together(samples: int, n: int, level: int, height: int, width: int) -> int:
    """How many of a level's samples are transposed together: a divisor, that leaves two chunks or more.

    What is drawn depends on it, so it does not depend on what else bounds memory.
    """
    return _divisor(samples, min(at_once(level, height, width) // max(n, 1), samples // 2))


def cut(chunks: Samples, images: int, most: int) -> Samples:
    """The same samples, in chunks so small that no more than so many images pass through the network at once.

    Args:
        chunks: of samples.
        images: of a sample.
        most: that may pass; a sample that has more makes a chunk alone.
    """
    count, together = chunks.numbers.shape[:2]
    size = _divisor(together, most // max(images, 1))
    numbers, seeds = (
        each.reshape(count * (together // size), size, *each.shape[2:]) for each in (chunks.numbers, chunks.seeds)
    )
    return Samples(numbers, jnp.repeat(chunks.transposed, together // size), seeds)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is not above `most`, or 1."""
    return next((size for size in range(most, 1, -1) if number % size == 0), 1)


class _Bits(NamedTuple):
    """All that is drawn, in one call: what is compiled for each call of `jax.random` outweighs a small network.

    Attributes:
        places: `(samples, n, 9)`, uniform, by whose order strata are dealt out.
        within: `(samples, n, 9)`, uniform, places within strata.
        seeds: `(samples, n, 2)`.
        shared: `(samples, 4)`, uniform, for what is one for all images.
    """

    places: Float[Array, "samples n 9"]
    within: Float[Array, "samples n 9"]
    seeds: UInt32[Array, "samples n 2"]
    shared: Float[Array, "samples 4"]


def _bits(key: Any, samples: int, n: int) -> _Bits:
    each = 2 * NUMBERS + 2
    bits = jax.random.bits(key, (samples, n * each + 4), jnp.uint32)
    of_images = bits[:, 4:].reshape(samples, n, each)
    places, within = _uniform(of_images[..., :NUMBERS]), _uniform(of_images[..., NUMBERS:-2])
    return _Bits(places, within, of_images[..., -2:], _uniform(bits[:, :4]))


def _uniform(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Numbers in [0, 1) of as many digits as float32 has."""
    return (bits >> 8).astype(jnp.float32) * np.float32(2**-24)


def stratified_samples(key: Any, counts: tuple[int, ...], n: int, chunks: tuple[int, ...]) -> list[Samples]:
    """Samples of each level, spread over everything that they draw.

    Args:
        key: a key of `jax.random`.
        counts: of samples on each level.
        n: images.
        chunks: samples of each level that are transposed together, divisors of their numbers.
    """
    bits = _bits(key, sum(counts), n)
    numbers = latin_hypercube(bits.places, bits.within, counts)
    found = []
    start = 0
    for count, chunk in zip(counts, chunks, strict=True):
        those = slice(start, start + count)
        # What a chunk draws has no order, so turning every other one is as good as drawing which half to turn.
        turned = (jnp.arange(count // chunk) + (bits.shared[start, 0] < 0.5)) % 2 == 1
        numbers_, seeds = (
            each[those].reshape(count // chunk, chunk, *each.shape[1:]) for each in (numbers, bits.seeds)
        )
        found.append(Samples(numbers_, turned, seeds))
        start += count
    return found


def drawn_samples(
    key: Any, samples: int, n: int, height: int, width: int, estimator: str
) -> tuple[Samples, Int[Array, " samples"]]:
    """Samples in chunks of one, and the level of each, counted from 0."""
    bits = _bits(key, samples, n)
    numbers, transposed, levels = bits.within, bits.shared[:, 0], bits.shared[:, 1]
    if estimator == "stratified":
        numbers = latin_hypercube(bits.places, numbers, (samples,))
        both = latin_hypercube(bits.shared[:, 2:], bits.shared[:, :2], (samples,))
        transposed, levels = both[:, 0], both[:, 1]
    elif estimator == "published":
        numbers = _over_the_batch(bits)
    ends = jnp.asarray(np.cumsum(level_probabilities(height, width)[:-1]), jnp.float32)
    found = Samples(numbers[:, None], transposed < 0.5, bits.seeds[:, None])
    return found, jnp.searchsorted(ends, levels, side="right").astype(jnp.int32)


def latin_hypercube(
    places: Float[Array, "samples ..."], within: Float[Array, "samples ..."], counts: tuple[int, ...]
) -> Float[Array, "samples ..."]:
    """Uniform numbers of which, in each group, one falls into each of as many equal parts of [0, 1) as it is large.

    Args:
        places: uniform numbers whose order deals out the parts.
        within: uniform numbers that choose the place within a part.
        counts: of samples in each group, one group after another.
    """
    shape = (-1, *(1,) * (places.ndim - 1))
    # One sort for all groups, of which none mixes with another.
    group = np.repeat(np.arange(len(counts), dtype=np.float32), counts).reshape(shape)
    start = np.repeat(np.cumsum((0, *counts[:-1])), counts).reshape(shape)
    size = np.repeat(np.array(counts, np.float32), counts).reshape(shape)
    return (jnp.argsort(places + group, axis=0) - start + within) / size


def _over_the_batch(bits: _Bits) -> Float[Array, "samples n 9"]:
    """Colours as a Latin hypercube over images, flips and permutations in a shuffled round that starts anywhere."""
    n = bits.places.shape[1]
    order = jnp.argsort(bits.places[..., :5], axis=1)
    colors = (order[..., :3] + bits.within[..., :3]) / n

    def around(place: int, count: int) -> Float[Array, "samples n 1"]:
        start = (bits.shared[:, place - 1, None] * count).astype(jnp.int32)
        return (((order[..., place] + start) % count + 0.5) / count)[..., None]

    rounds = (around(3, len(FLIPS)), around(4, len(PERMUTATIONS)))
    return jnp.concatenate([colors, *rounds, bits.within[..., 5:]], axis=-1)

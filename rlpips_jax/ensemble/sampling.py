"""How the draws of an E-LPIPS estimate are spread: over scale levels, and over everything else.

All images of a sample share its scale level and transposition. The rest of a transformation comes from nine uniform
numbers per image:

* `plain`: every number, level and transposition is drawn independently.
* `published`: within a sample colours are a Latin hypercube over the images of the batch, and flips and permutations a
  shuffled round of all of them; samples are independent. For a single image it is the same as `plain`.
* `stratified`: for each image and level, the numbers are a Latin hypercube over samples, and half of the samples are
  transposed. Each level s has a fixed number m_s of samples, each with the weight P(s) / m_s. Where there are so few
  samples that this would raise the variance, levels are drawn instead, one from each of equal shares of probability.

Each is unbiased: given its level, every sample is distributed as in `plain`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from rlpips_jax.ensemble.transformations import FLIPS, NUMBERS, PERMUTATIONS, SHIFTS, level_probabilities

ESTIMATORS = ("plain", "published", "stratified")
"""How samples can be drawn: independently, as E-LPIPS's authors do, or stratified; all have the same expectation."""

PIXELS_TOGETHER = 1 << 18
"""Most pixels of transformed images that are in the network at once: bounds memory."""
ALLOWANCE = 1.25
"""Levels have fixed numbers of samples where that multiplies the variance by at most this, if levels vary alike."""


class Samples(NamedTuple):
    """Samples in chunks; the samples of a chunk are transposed and pass through the network together.

    Attributes:
        numbers: `(chunks, c, n, 9)`, uniform, for `transformations.from_uniform`.
        transposed: `(chunks,)`.
        seeds: `(chunks, c, n, 2)`, of the masks of dropout.
    """

    numbers: Float[Array, "chunks c n 9"]
    transposed: Bool[Array, " chunks"]
    seeds: UInt32[Array, "chunks c n 2"]


def allocation(samples: int, height: int, width: int) -> tuple[int, ...] | None:
    """The number of samples of each level; None where drawing the levels gives a smaller variance.

    The numbers are even where possible, so that half of the samples are transposed; otherwise they are as near to the
    probabilities as possible, and at least one.
    """
    probabilities = level_probabilities(height, width)
    if samples < len(probabilities):
        return None
    counts = np.maximum(2 * np.rint(samples * probabilities / 2), np.where(samples * probabilities < 1.5, 1, 2))
    # The first level has the most samples; the remainder goes there.
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
    """The number of a level's samples that are transposed together: a divisor that leaves two chunks or more.

    The draws depend on it, so it must not depend on `max_batch`.
    """
    return _divisor(samples, min(at_once(level, height, width) // max(n, 1), samples // 2))


def cut(chunks: Samples, images: int, most: int) -> Samples:
    """The same samples in smaller chunks, so that at most `most` images pass through the network at once.

    Args:
        chunks: the samples.
        images: number of images of each sample.
        most: images that may pass at once; a sample with more images is a chunk of its own.
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
    """All random numbers, from one call of `jax.random`: compiling each call takes longer than a small network.

    Attributes:
        places: `(samples, n, 9)`, uniform; their order assigns the strata.
        within: `(samples, n, 9)`, uniform; the place within a stratum.
        seeds: `(samples, n, 2)`, of dropout masks.
        shared: `(samples, 4)`, uniform, for what all images share.
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
    """Numbers in [0, 1) with 24 bits, the precision of float32."""
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
        # Chunks have no order, so transposing every second one is as good as drawing which half to transpose.
        turned = (jnp.arange(count // chunk) % 2 == 1) != (bits.shared[start, 0] < 0.5)
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
    """Uniform numbers: in each group of k samples, exactly one number lies in each of k equal parts of [0, 1).

    Args:
        places: uniform numbers whose order assigns the parts.
        within: uniform numbers that choose the place within a part.
        counts: of samples in each group, one group after another.
    """
    shape = (-1, *(1,) * (places.ndim - 1))
    # One sort for all groups; adding the group's number keeps them apart.
    group = np.repeat(np.arange(len(counts), dtype=np.float32), counts).reshape(shape)
    start = np.repeat(np.cumsum((0, *counts[:-1]), dtype=np.float32), counts).reshape(shape)
    size = np.repeat(np.array(counts, np.float32), counts).reshape(shape)
    order = jnp.argsort(places + group, axis=0).astype(within.dtype)
    return (order - start + within) / size


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

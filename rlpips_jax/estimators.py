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
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax.transformations import FLIPS, NUMBERS, PERMUTATIONS, SHIFTS, level_probabilities

ESTIMATORS = ("plain", "published", "stratified")

PIXELS_TOGETHER = 1 << 18
"""Of the images, transformed, of the samples that pass through the network at once: bounds memory."""
ALLOWANCE = 1.25
"""Levels get fixed numbers of samples where that makes the variance at most so much larger, if levels were alike."""


class Samples(NamedTuple):
    """Draws of samples, `count` in all, in chunks that pass through the network at once.

    Attributes:
        numbers: `(chunks, c, n, 9)`, uniform, for `transformations.from_uniform`.
        transposed: `(chunks,)`.
        keys: `(chunks, c)`, of `jax.random`, for the masks of dropout.
    """

    numbers: Float[Array, "chunks c n 9"]
    transposed: Bool[Array, " chunks"]
    keys: Any


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


def together(samples: int, n: int, level: int, height: int, width: int, max_batch: int | None = None) -> int:
    """How many of a level's samples pass through the network at once: a divisor, that leaves two chunks or more."""
    pixels = n * np.prod([-(-length // level) + SHIFTS for length in (height, width)])
    most = int(min(PIXELS_TOGETHER // max(pixels, 1), samples // 2))
    if max_batch is not None:
        most = min(most, max_batch // max(n, 1))
    most = max(1, most)
    return next(size for size in range(most, 0, -1) if samples % size == 0)


def stratified_samples(key: Any, samples: int, n: int, chunk: int) -> Samples:
    """Samples of one level, spread over everything that they draw."""
    of_numbers, of_transposed, of_masks = jax.random.split(key, 3)
    chunks = samples // chunk
    numbers = latin_hypercube(of_numbers, samples, (n, NUMBERS))
    return Samples(
        numbers=numbers.reshape(chunks, chunk, n, NUMBERS),
        transposed=latin_hypercube(of_transposed, chunks, ()) < 0.5,
        keys=jax.random.split(of_masks, (chunks, chunk)),
    )


def drawn_samples(
    key: Any, samples: int, n: int, height: int, width: int, estimator: str
) -> tuple[Samples, Int[Array, " samples"]]:
    """Samples in chunks of one, and the level of each, counted from 0."""
    of_numbers, of_transposed, of_levels, of_masks = jax.random.split(key, 4)
    ends = jnp.asarray(np.cumsum(level_probabilities(height, width)[:-1]), jnp.float32)
    if estimator == "stratified":
        numbers = latin_hypercube(of_numbers, samples, (n, NUMBERS))
        transposed, levels = (latin_hypercube(each, samples, ()) for each in (of_transposed, of_levels))
    else:
        numbers = jax.random.uniform(of_numbers, (samples, n, NUMBERS))
        transposed, levels = (jax.random.uniform(each, (samples,)) for each in (of_transposed, of_levels))
    if estimator == "published":
        numbers = jax.vmap(_over_the_batch)(jax.random.split(of_numbers, samples), numbers)
    found = Samples(numbers[:, None], transposed < 0.5, jax.random.split(of_masks, (samples, 1)))
    return found, jnp.searchsorted(ends, levels, side="right").astype(jnp.int32)


def latin_hypercube(key: Any, count: int, shape: tuple[int, ...]) -> Float[Array, "count ..."]:
    """Numbers of which, along the first axis, one falls into each of `count` equal parts of [0, 1)."""
    of_places, within = jax.random.split(key)
    places = jnp.argsort(jax.random.uniform(of_places, (count, *shape)), axis=0)
    return (places + jax.random.uniform(within, (count, *shape))) / count


def _over_the_batch(key: Any, numbers: Float[Array, "n 9"]) -> Float[Array, "n 9"]:
    """Colours as a Latin hypercube over images, flips and permutations in a shuffled round that starts anywhere."""
    of_colors, *of_rounds = jax.random.split(key, 5)
    n = len(numbers)
    colors = latin_hypercube(of_colors, n, (3,))

    def around(place: Any, start: Any, count: int) -> Float[Array, " n"]:
        choices = (jax.random.permutation(place, n) + jax.random.randint(start, (), 0, count)) % count
        return (choices + 0.5) / count

    flips = around(*of_rounds[:2], len(FLIPS))
    permutations = around(*of_rounds[2:], len(PERMUTATIONS))
    return jnp.concatenate([colors, flips[:, None], permutations[:, None], numbers[:, 5:]], axis=1)

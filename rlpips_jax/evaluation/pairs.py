"""Reference patches and distorted versions of them, to train on.

Programs that ask for more than one worker need the usual ``if __name__ == "__main__":`` guard, because
workers are started afresh (spawned), and must be run from a file or a module.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from rlpips_jax.errors import DistortionError, ImageError
from rlpips_jax.evaluation.distortions import distort, training_kinds

COMPOSED = 0.2
"""Share of distorted versions to which a second, different kind is applied."""
FAINT = 0.15
"""Share of distorted versions that are mixed back towards the reference, so that small distances occur too."""
CHUNK = 128
"""References a worker distorts at a time. It is part of the seeding: changing it changes the result."""

Result = TypeVar("Result")


class DistortedPairs(NamedTuple):
    """Reference patches and ``k`` distorted versions of each."""

    references: UInt8[np.ndarray, "n h w 3"]
    distorted: UInt8[np.ndarray, "n k h w 3"]


def _run(function: Callable[..., Result], arguments: tuple, seed: np.random.SeedSequence) -> Result:
    return function(*arguments, rng=np.random.default_rng(seed))


def seeded_map(
    function: Callable[..., Result], arguments: Sequence[tuple], *, seed: int, workers: int | None = None
) -> Iterator[Result]:
    """``function(*a, rng=...)`` for every ``a`` in ``arguments``, in order, in ``workers`` processes.

    Every call has its own child of ``seed``, so the results do not depend on the number of workers. ``None``
    takes every processor this process may use; 1 starts no process. ``function`` must be importable by name.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise DistortionError(f"workers is {workers}; give at least 1, or None for every processor")
    seeds = np.random.SeedSequence(seed).spawn(len(arguments))
    workers = min(workers, len(arguments))
    if workers <= 1:
        for chunk, child in zip(arguments, seeds, strict=True):
            yield _run(function, chunk, child)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_run, [function] * len(arguments), arguments, seeds)


def random_distortion(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The image distorted by one of the `training_kinds` at a strength from U(0, 1).

    A share `COMPOSED` gets a second, different kind on top, at its own strength; a share `FAINT` is mixed
    back towards the image until only a part of the change is left, from 5 % to 50 %, uniform in its
    logarithm.
    """
    kinds = training_kinds()
    first, second = rng.choice(len(kinds), size=2, replace=False)
    choice = rng.random()
    distorted = distort(image, kinds[first], float(rng.random()), rng)
    if choice < COMPOSED:
        return distort(distorted, kinds[second], float(rng.random()), rng)
    if choice < COMPOSED + FAINT:
        share = np.float32(np.exp(rng.uniform(np.log(0.05), np.log(0.5))))
        return np.rint(image + share * (distorted.astype(np.float32) - image)).astype(np.uint8)
    return distorted


def _distort_chunk(
    references: UInt8[np.ndarray, "n h w 3"], versions: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "n k h w 3"]:
    result = np.empty((len(references), versions, *references.shape[1:]), np.uint8)
    for reference, row in zip(references, result, strict=True):
        for version in range(versions):
            row[version] = random_distortion(reference, rng)
    return result


def make_pairs(
    references: np.ndarray, *, versions: int = 4, seed: int = 0, workers: int | None = None
) -> DistortedPairs:
    """Each reference, uint8 ``(n, h, w, 3)``, with ``versions`` independent draws of `random_distortion`.

    The result depends on ``seed`` and not on ``workers``; see `seeded_map` for the latter.
    """
    if references.ndim != 4 or references.shape[-1] != 3 or references.dtype != np.uint8:
        raise ImageError(f"references are {references.dtype} {references.shape}; give uint8 (n, h, w, 3)")
    if versions < 1:
        raise DistortionError(f"versions is {versions}; give at least 1")
    starts = range(0, len(references), CHUNK)
    chunks = [(references[start : start + CHUNK], versions) for start in starts]
    distorted = np.empty((len(references), versions, *references.shape[1:]), np.uint8)
    results = seeded_map(_distort_chunk, chunks, seed=seed, workers=workers)
    for start, chunk in zip(starts, results, strict=True):
        distorted[start : start + CHUNK] = chunk
    return DistortedPairs(references, distorted)

"""Distances of pairs of files by a random metric: estimates with their standard errors."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np

from rlpips_jax.distances.protocol import RandomMetric
from rlpips_jax.ensemble.inference import estimate
from rlpips_jax.errors import ImageError
from rlpips_jax.scoring.batches import of_one_type, read_ahead
from rlpips_jax.scoring.pairs import Pair, Result, check_files
from rlpips_jax.scoring.pixel_measures import measured
from rlpips_jax.scoring.readers import Readers

ESTIMATES = ("standard_error", "samples")
"""What the results of a random metric have beside the distance."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How far a random metric is sampled; as in `rlpips_jax.estimate`.

    Attributes:
        seed: of all draws; each pair has its own.
        relative_error, absolute_error: half the interval of 95 % at which drawing ends, whichever is wider.
        max_samples: where drawing ends in any case.
    """

    seed: int = 0
    relative_error: float = 0.025
    absolute_error: float = 0.01
    max_samples: int = 5000

    @property
    def words(self) -> str:
        """All of it, in words: numbers depend on it."""
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


def score_estimates(
    pairs: Iterable[Pair],
    metric: RandomMetric,
    readers: Readers,
    *,
    sampling: Sampling,
    measures: tuple[str, ...] = (),
    skip: int = 0,
    pause: Callable[[], object] = lambda: None,
) -> Generator[list[Result], None, None]:
    """The estimates of all pairs, in their order, one at a time.

    Args:
        pairs: those that are not known yet.
        metric: a random one.
        readers: read the files.
        sampling: how far; the key of a pair is made of the seed and of its place among all pairs.
        measures: names in `pixel_measures.MEASURES`, to compute besides.
        skip: the number of pairs before these.
        pause: called between two pairs; what it raises ends the work.
    """
    options = {field.name: getattr(sampling, field.name) for field in fields(sampling) if field.name != "seed"}
    for place, (pair, files) in enumerate(read_ahead(pairs, readers), start=skip):
        pause()
        error = "; ".join(dict.fromkeys(filter(None, (pair.error, *(file.error for file in files)))))
        images = of_one_type([file.image for file in files if file.image is not None])
        if not error:
            try:
                check_files(metric, dict(zip(map(Path, pair.paths), images, strict=True)))
            except ImageError as problem:
                error = str(problem)
        if error:
            yield [Result(pair.reference, pair.image, error=error)]
            continue
        key = jax.random.fold_in(jax.random.key(sampling.seed), place)
        found = estimate(images[0], images[1], metric, key=key, **options)
        numbers = {"standard_error": np.float64(found.standard_error), "samples": np.float32(found.samples)}
        distance = np.float64(found.mean)
        yield [Result(pair.reference, pair.image, distance, measures=numbers | measured(measures, images))]

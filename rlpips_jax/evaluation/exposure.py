"""How far attacks can drive the distance from a reference: the two experiments of E-LPIPS (Kettunen et al. 2019).

* A small change that measures far (`rlpips_jax.attacks.distort`): how many times the usual distance does it reach?
* An image that looks different and measures close (`impostor`): how far do its pixels get from the reference?

The usual distance of a metric is its mean distance between the references of triplets and their distorted images.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import TripletsError
from rlpips_jax.evaluation.measurement import BATCH, Distances, Score
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets
from rlpips_jax.files.array_hash import array_hash

RESAMPLES = 10_000
"""Resamples of a bootstrap interval."""


class Exposed(NamedTuple):
    """How far an attack drove each different reference, in the order of `different_references`.

    Attributes:
        distance: `(m,)`, from the reference, by the metric.
        rms: `(m,)`, root mean square difference of pixels from the reference, images in [0, 1].
    """

    distance: Float[np.ndarray, " m"]
    rms: Float[np.ndarray, " m"]


class References(NamedTuple):
    """The different references of triplets.

    Attributes:
        first: `(m,)`, the first triplet with each reference.
        of_triplet: `(n,)`, the index of the reference of each triplet.
    """

    first: Int[np.ndarray, " m"]
    of_triplet: Int[np.ndarray, " n"]


def different_references(triplets: AnyTriplets) -> References:
    """The different references, and which triplets share them."""
    if isinstance(triplets, IndexedTriplets):
        names: Any = triplets.indices[:, 0]
    else:
        names = [array_hash(image) for image in triplets.reference]
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return References(first[order], np.argsort(order)[inverse.reshape(-1)])


def usual_distance(natural: Distances) -> float:
    """The mean distance between references and the distorted images of their triplets."""
    return float(np.mean(np.concatenate(natural), dtype=np.float64))


def usual_difference(triplets: AnyTriplets) -> float:
    """The mean root mean square difference between references and the distorted images, images in [0, 1]."""
    return float(_differences(triplets).mean())


def rise(exposed: Exposed, natural: Distances, triplets: AnyTriplets) -> Score:
    """How many times its usual distance a metric was driven to, with a bootstrap interval over references.

    References are resampled together with their triplets, as the usual distance is an estimate too.
    """
    return _ratio(exposed.distance, np.stack(natural, axis=1), different_references(triplets))


def spread(exposed: Exposed, triplets: AnyTriplets) -> Score:
    """How many times the usual difference of pixels the attacked references reached; with an interval as in `rise`."""
    return _ratio(exposed.rms, _differences(triplets), different_references(triplets))


def _differences(triplets: AnyTriplets) -> Float[np.ndarray, "n 2"]:
    found = []
    for begin in range(0, len(triplets), BATCH):
        part = triplets.batch(begin, begin + BATCH)
        apart = ((np.asarray(image, np.float64) - part.reference) / 255 for image in (part.p0, part.p1))
        found.append(np.stack([np.sqrt(np.mean(np.square(one), axis=(1, 2, 3))) for one in apart], axis=1))
    return np.concatenate(found)


def _ratio(reached: Float[np.ndarray, " m"], usual: Float[np.ndarray, "n 2"], references: References) -> Score:
    count = len(references.first)
    sums = np.zeros((2, count))
    np.add.at(sums[0], references.of_triplet, np.asarray(usual, np.float64).sum(axis=1))
    np.add.at(sums[1], references.of_triplet, 2.0)

    def ratio(times: Float[np.ndarray, "... m"] | Int[np.ndarray, "... m"]) -> Any:
        return (times @ np.asarray(reached, np.float64) / count) / ((times @ sums[0]) / (times @ sums[1]))

    resampled = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    low, high = np.quantile(ratio(resampled), [0.025, 0.975])
    return Score(float(ratio(np.ones(count))), float(low), float(high), count)


def exposed(
    metric: Metric | RandomMetric,
    triplets: AnyTriplets,
    attack: Callable[..., Any],
    *,
    key: PRNGKeyArray | None = None,
    batch: int = BATCH,
    start: int = 0,
) -> Iterator[Exposed]:
    """Attacks each different reference of triplets once, part by part.

    Args:
        metric: from `rlpips_jax.load`, or your own.
        triplets: their references are attacked.
        attack: `metric, images, *, key -> result` with all else given, such as
            `functools.partial(rl.attacks.distort, epsilon=4 / 255)` or `functools.partial(rl.attacks.impostor,
            bound=0.1)`; a share of `usual_distance` as the bound treats metrics alike.
        key: a key of `jax.random`; None for `jax.random.key(0)`.
        batch: references attacked at once, 1 or more.
        start: the first reference, a multiple of `batch`.

    Raises:
        TripletsError: the batch is below 1.
    """
    whole_number("batch", batch, error=TripletsError)
    key = jax.random.key(0) if key is None else key
    first = different_references(triplets).first
    size = min(batch, len(first))
    for begin in range(start, len(first), size or 1):
        rows = first[begin : begin + size]
        # Filled up to a whole batch: one shape, hence one compiled program.
        filled = rows[np.minimum(np.arange(size), len(rows) - 1)]
        images = triplets.select(filled).batch(0, size).reference
        result = attack(metric, images, key=jax.random.fold_in(key, begin))
        distance = result.distance if hasattr(result, "distance") else result.after
        columns = np.asarray(distance), np.asarray(result.l2) / np.sqrt(images[0].size)
        yield Exposed(*(column[: len(rows)].astype(np.float32) for column in columns))

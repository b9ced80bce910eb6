"""What a metric can be made to say of photographs: the two experiments of E-LPIPS (Kettunen et al. 2019).

* A change that nobody sees and that measures far (`distort`): how many times the usual distance is that?
* An image that looks different and measures close (`impostor`): how far from the reference does it get?

What is usual for a metric is its mean distance between the references of triplets and their distorted images.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from rlpips_jax.attacks import Randomness, distort, impostor
from rlpips_jax.attacks.expectations import ADAPTIVE
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.evaluation.measurement import BATCH, Distances, Score
from rlpips_jax.evaluation.triplets import AnyTriplets, IndexedTriplets

RESAMPLES = 10_000
"""Of an interval."""


class Exposed(NamedTuple):
    """What an attack made of each different reference, in the order of `different_references`.

    Attributes:
        distance: `(m,)`, by the metric, from the reference.
        rms: `(m,)`, root mean square difference of pixels from the reference, images in [0, 1].
    """

    distance: Float[np.ndarray, " m"]
    rms: Float[np.ndarray, " m"]


class References(NamedTuple):
    """The references of triplets, each once.

    Attributes:
        first: `(m,)`, the first triplet of each.
        of_triplet: `(n,)`, which of them each triplet has.
    """

    first: Int[np.ndarray, " m"]
    of_triplet: Int[np.ndarray, " n"]


def different_references(triplets: AnyTriplets) -> References:
    """Which triplets share a reference."""
    if isinstance(triplets, IndexedTriplets):
        names: Any = triplets.indices[:, 0]
    else:
        names = [hashlib.sha256(image.tobytes()).hexdigest() for image in triplets.reference]
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return References(first[order], np.argsort(order)[inverse.reshape(-1)])


def usual_distance(natural: Distances) -> float:
    """The mean of a metric's distances between references and the distorted images of their triplets."""
    return float(np.mean(np.concatenate(natural), dtype=np.float64))


def usual_difference(triplets: AnyTriplets) -> float:
    """The mean root mean square difference between references and the distorted images, images in [0, 1]."""
    return float(_differences(triplets).mean())


def rise(exposed: Exposed, natural: Distances, triplets: AnyTriplets) -> Score:
    """How many times its usual distance a metric was driven to, with a bootstrap interval over references.

    References are drawn with their triplets, so that the interval knows that what is usual is an estimate too.
    """
    return _ratio(exposed.distance, np.stack(natural, axis=1), different_references(triplets))


def spread(exposed: Exposed, triplets: AnyTriplets) -> Score:
    """How many times the usual difference of pixels impostors got away; the interval is that of `rise`."""
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

    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    low, high = np.quantile(ratio(drawn), [0.025, 0.975])
    return Score(float(ratio(np.ones(count))), float(low), float(high), count)


def distorted(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    epsilon: float,
    *,
    norm: str = "linf",
    steps: int = 50,
    restarts: int = 1,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
    start: int = 0,
) -> Iterator[Exposed]:
    """The different references of triplets, moved away from themselves by `rlpips_jax.attacks.distort`, part by part.

    Args:
        metric: from `rlpips_jax.load`.
        triplets: whose references are attacked.
        epsilon: radius of the ball, images in [0, 1].
        norm: "linf" or "l2".
        steps: gradients that are computed.
        restarts: starts, of which the best counts.
        randomness: of an ensemble, how it is attacked and judged.
        key: a key of `jax.random`; None for `jax.random.key(0)`.
        batch: references attacked at once.
        start: the first reference, a multiple of `batch`.
    """
    for references, own in _parts(triplets, key, batch, start):
        result = distort(
            metric,
            references.images,
            key=own,
            epsilon=epsilon,
            norm=norm,
            steps=steps,
            restarts=restarts,
            randomness=randomness,
        )
        yield _exposed(result.after, result.l2, references)


def impostors(
    metric: Metric | Ensemble,
    triplets: AnyTriplets,
    bound: float,
    *,
    steps: int = 200,
    restarts: int = 1,
    randomness: Randomness = ADAPTIVE,
    key: Any = None,
    batch: int = BATCH,
    start: int = 0,
) -> Iterator[Exposed]:
    """Impostors of the references of triplets by `rlpips_jax.attacks.impostor`, part by part.

    Args:
        bound: on the metric's distance, in its own units; a share of its `usual_distance` treats metrics alike.
        steps: gradients that are computed.

    The other arguments are those of `distorted`.
    """
    for references, own in _parts(triplets, key, batch, start):
        result = impostor(
            metric, references.images, key=own, bound=bound, steps=steps, restarts=restarts, randomness=randomness
        )
        yield _exposed(result.distance, result.l2, references)


class _Part(NamedTuple):
    """References, filled up to a whole batch, and how many they are."""

    images: UInt8[np.ndarray, "n h w 3"]
    count: int


def _parts(triplets: AnyTriplets, key: Any, batch: int, start: int) -> Iterator[tuple[_Part, Any]]:
    """References, and a key for each part."""
    key = jax.random.key(0) if key is None else key
    first = different_references(triplets).first
    size = min(batch, len(first))
    for begin in range(start, len(first), size):
        rows = first[begin : begin + size]
        filled = rows[np.minimum(np.arange(size), len(rows) - 1)]
        images = triplets.select(filled).batch(0, size).reference
        yield _Part(images, len(rows)), jax.random.fold_in(key, begin)


def _exposed(distance: jax.Array, l2: jax.Array, references: _Part) -> Exposed:
    values = references.images[0].size
    columns = np.asarray(distance), np.asarray(l2) / np.sqrt(values)
    return Exposed(*(column[: references.count].astype(np.float32) for column in columns))

"""What a metric can be made to say of photographs: the two experiments of E-LPIPS (Kettunen et al. 2019).

* A change that nobody sees and that measures far (`distort`): how many times the usual distance is that?
* An image that looks different and measures close (`impostor`): how far from the reference does it get?

What is usual for a metric is its mean distance between the references of triplets and their distorted images.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rlpips_jax.attacks import Randomness, distort, impostor
from rlpips_jax.attacks.expectations import ADAPTIVE
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.evaluation.measurement import BATCH, Distances, Score, score_of
from rlpips_jax.evaluation.triplets import AnyTriplets
from rlpips_jax.metric import Metric


class Exposed(NamedTuple):
    """What an attack made of each reference, `(n,)` each.

    Attributes:
        distance: by the metric, from the reference.
        rms: root mean square difference of pixels from the reference, images in [0, 1].
    """

    distance: Float[np.ndarray, " n"]
    rms: Float[np.ndarray, " n"]


def usual_distance(natural: Distances) -> float:
    """The mean of a metric's distances between references and the distorted images of their triplets."""
    return float(np.mean(np.concatenate(natural), dtype=np.float64))


def usual_difference(triplets: AnyTriplets) -> float:
    """The mean root mean square difference between references and the distorted images, images in [0, 1]."""
    found = []
    for begin in range(0, len(triplets), BATCH):
        part = triplets.batch(begin, begin + BATCH)
        for image in (part.p0, part.p1):
            difference = (np.asarray(image, np.float64) - part.reference) / 255
            found.append(np.sqrt(np.mean(np.square(difference), axis=(1, 2, 3))))
    return float(np.mean(np.concatenate(found)))


def rise(exposed: Exposed, natural: Distances) -> Score:
    """How many times its usual distance a metric was driven to, with a bootstrap interval over references."""
    return score_of(np.asarray(exposed.distance, np.float64) / usual_distance(natural))


def spread(exposed: Exposed, triplets: AnyTriplets) -> Score:
    """How many times the usual difference of pixels impostors got away, with a bootstrap interval over references."""
    return score_of(np.asarray(exposed.rms, np.float64) / usual_difference(triplets))


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
    """The references of triplets, moved away from themselves by `rlpips_jax.attacks.distort`, part by part.

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
        start: the first triplet, a multiple of `batch`.
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


class _References(NamedTuple):
    """References, filled up to a whole batch, and how many they are."""

    images: np.ndarray
    count: int


def _parts(triplets: AnyTriplets, key: Any, batch: int, start: int) -> Iterator[tuple[_References, Any]]:
    """References, and a key for each part."""
    key = jax.random.key(0) if key is None else key
    size = min(batch, len(triplets))
    for begin in range(start, len(triplets), size):
        references = triplets.batch(begin, begin + size).reference
        rows = np.minimum(np.arange(size), len(references) - 1)
        yield _References(references[rows], len(references)), jax.random.fold_in(key, begin)


def _exposed(distance: jax.Array, l2: jax.Array, references: _References) -> Exposed:
    values = references.images[0].size
    columns = np.asarray(distance), np.asarray(l2) / np.sqrt(values)
    return Exposed(*(column[: references.count].astype(np.float32) for column in columns))

"""Objectives of randomised metrics, such as an ensemble, for attacks that adapt to the randomness.

    >>> import jax
    >>> import rlpips_jax as rl
    >>> ensemble = rl.load("elpips-tiny")
    >>> reference, closer, farther = jax.random.uniform(jax.random.key(0), (3, 2, 32, 32, 3))
    >>> objective = rl.attacks.expected_ranking(ensemble, reference, closer, farther, samples=4)
    >>> result = rl.attacks.pgd(objective, closer, key=jax.random.key(1), epsilon=2 / 255, steps=2)
    >>> result.success.shape
    (2,)

Each step draws fresh transformations and masks, the same for all images of a triplet, and the result is judged with
others (expectation over transformation, Athalye et al. 2018).

`triplet_objective` and `distance_objective` make the objective of any metric, random or not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.arguments import whole_number
from rlpips_jax.attacks.keys import Key, Purpose, child
from rlpips_jax.attacks.objectives import (
    STILL,
    Randomised,
    TracedObjective,
    check_attacked,
    distance_from,
    ranking,
)
from rlpips_jax.distances.distance import distance
from rlpips_jax.distances.protocol import Features, Metric, RandomMetric, is_random
from rlpips_jax.ensemble import distances
from rlpips_jax.errors import EnsembleError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, float_dtype, to_unit

DRAWS = 16
"""Transformations that each step averages."""
JUDGED = 64
"""Transformations that a distance averages, before and after an attack."""

FeaturesOf = Callable[[Float[Array, "n k h w 3"]], Features]
"""Features of images in [0, 1] under the draw at hand."""


@dataclass(frozen=True)
class Randomness:
    """How a randomised metric is attacked, and judged afterwards; metrics that are not random ignore it.

    Attributes:
        draws: transformations that each step of an attack averages.
        samples: transformations that a distance averages, before and after an attack.
        fixed: the metric always draws the same `samples` transformations and masks, and the attack knows them: all its
            steps see these, whatever `draws` says. This measures what is left when a fixed key is no secret.
    """

    draws: int = DRAWS
    samples: int = JUDGED
    fixed: bool = False

    def __post_init__(self) -> None:
        for name in ("draws", "samples"):
            whole_number(name, getattr(self, name), error=EnsembleError)


ADAPTIVE = Randomness()
"""Fresh draws at each step, and others to judge by."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class EnsembleObjective(TracedObjective):
    """A ranking or a distance by a randomised metric, `images, key -> (n,)`. Made by `expected_ranking`.

    Attributes:
        metric: the distance.
        still: `(n, k, h, w, 3)` in [0, 1], images that do not move.
        key: the key that it always draws by; None to be called with a key.
        attacked: which image of a triplet moves, one of `ATTACKED`; None for the distance from the one that does not.
        samples: transformations that are averaged.
        value_range: black and white of the images that move.
        goal: 0 for a ranking, above which the order is reversed; None for a distance.
    """

    metric: RandomMetric
    still: Float[Array, "n k h w 3"]
    key: Key | None
    attacked: str | None = field(metadata={"static": True})
    samples: int = field(metadata={"static": True})
    value_range: ValueRange = field(metadata={"static": True})
    goal: float | None = field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n ..."], key: Key | None = None) -> Float[Array, " n"]:
        key = self.key if key is None else key
        moving = _unit(images, self.value_range).reshape(len(images), -1, *images.shape[-3:])
        return self.metric.expectation(
            _Value(self.attacked), (moving, self.still), key=cast(Key, key), samples=self.samples
        )


@dataclass(frozen=True)
class _Value:
    """The function that is averaged: `metric, features_of, (moving, still) -> (n,)`."""

    attacked: str | None

    def __call__(
        self,
        metric: Metric,
        features_of: FeaturesOf,
        images: tuple[Float[Array, "n j h w 3"], Float[Array, "n k h w 3"]],
    ) -> Float[Array, " n"]:
        moving, still = images
        moved, others = features_of(moving), features_of(still)
        if self.attacked == "reference":
            found = distances(metric, moved, others, moving, still)
            return found[:, 0] - found[:, 1]
        if self.attacked in (None, "both"):
            found = distances(metric, others, moved, still, moving)
            return found[:, 0] if self.attacked is None else found[:, 0] - found[:, 1]
        reference, other = (jax.tree.map(lambda leaf, at=at: leaf[:, at : at + 1], others) for at in (0, 1))
        margin = distances(metric, reference, moved, still[:, :1], moving) - distances(
            metric, reference, other, still[:, :1], still[:, 1:]
        )
        return margin[:, 0] if self.attacked == "closer" else -margin[:, 0]


def expected_ranking(
    ensemble: RandomMetric,
    reference: Images,
    closer: Images,
    farther: Images,
    *,
    attacked: str = "closer",
    samples: int = DRAWS,
    key: Key | None = None,
    value_range: ValueRange = UNIT_RANGE,
) -> Randomised | EnsembleObjective:
    """`ranking` by a randomised metric: the expectation of d(reference, closer) - d(reference, farther).

    Args:
        ensemble: from `rlpips_jax.load("elpips-squeeze")`, or made of any metric.
        reference: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        closer: the images that are nearer to their references.
        farther: the images that are farther.
        attacked: which image moves, one of `ATTACKED`.
        samples: transformations that are averaged at each step.
        key: None to draw afresh at each step. A key of `jax.random` fixes the draws of all steps and of the result.
        value_range: black and white of floating-point images.

    Raises:
        AttackError: `attacked` is not one of `ATTACKED`.
        EnsembleError: `samples` is not a whole number of 1 or more.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    check_attacked(attacked)
    images = {"reference": reference, "closer": closer, "farther": farther}
    still = _units(ensemble, value_range, **{name: images[name] for name in STILL[attacked]})
    return _objective(ensemble, still, key, attacked, samples, value_range)


def expected_distance_from(
    ensemble: RandomMetric,
    images: Images,
    *,
    samples: int = DRAWS,
    key: Key | None = None,
    value_range: ValueRange = UNIT_RANGE,
) -> Randomised | EnsembleObjective:
    """`distance_from` by a randomised metric: the expectation of the distance from `images`.

    Arguments as in `expected_ranking`.
    """
    return _objective(ensemble, _units(ensemble, value_range, images=images), key, None, samples, value_range)


def triplet_objective(
    metric: Metric | RandomMetric,
    triplet: tuple[Images, Images, Images],
    *,
    attacked: str,
    randomness: Randomness,
    key: Key,
    value_range: ValueRange,
) -> TracedObjective:
    """`ranking` or `expected_ranking` of reference, closer and farther images.

    Args:
        key: the one that a randomised metric draws by if `randomness.fixed`.
    """
    options: dict[str, Any] = {"attacked": attacked, "value_range": value_range}
    if is_random(metric):
        return expected_ranking(metric, *triplet, **options, **_drawn(randomness, key))
    return ranking(cast(Metric, metric), *triplet, **options)


def distance_objective(
    metric: Metric | RandomMetric, images: Images, *, randomness: Randomness, key: Key, value_range: ValueRange
) -> TracedObjective:
    """`distance_from` or `expected_distance_from`. Arguments as in `triplet_objective`."""
    if is_random(metric):
        return expected_distance_from(metric, images, value_range=value_range, **_drawn(randomness, key))
    return distance_from(cast(Metric, metric), images, value_range=value_range)


def judge_key(key: Key) -> Key:
    """The key, made of an attack's, that a randomised metric judges the outcome by; no step draws by it."""
    return child(key, Purpose.OUTCOME)


def choice_key(key: Key, randomness: Randomness) -> Key:
    """The key by which outcomes are compared: the judge's own only where the attack knows that one anyway."""
    return judge_key(key) if randomness.fixed else child(key, Purpose.CHOICE)


def measured_distances(
    metric: Metric | RandomMetric,
    reference: Images,
    others: tuple[Images, ...],
    *,
    randomness: Randomness,
    key: Key,
    value_range: ValueRange,
) -> list[Float[Array, " n"]]:
    """Distances of several images from each reference, by a randomised metric under the same draws.

    Args:
        key: the one that a randomised metric draws by.
    """
    if not is_random(metric):
        return [distance(reference, other, metric, value_range=value_range) for other in others]
    still, moving = (
        jnp.stack([_unit(image, value_range) for image in images], axis=1) for images in ((reference,), others)
    )
    found = metric.expectation(_from_first, (still, moving), key=key, samples=randomness.samples)
    return list(found.T)


def _from_first(
    metric: Metric, features_of: FeaturesOf, images: tuple[Float[Array, "n 1 h w 3"], Float[Array, "n k h w 3"]]
) -> Float[Array, "n k"]:
    reference, others = images
    return distances(metric, features_of(reference), features_of(others), reference, others)


def _drawn(randomness: Randomness, key: Key) -> dict[str, Any]:
    if randomness.fixed:
        return {"samples": randomness.samples, "key": key}
    return {"samples": randomness.draws}


def _objective(
    metric: RandomMetric,
    still: Float[Array, "n k h w 3"],
    key: Key | None,
    attacked: str | None,
    samples: int,
    value_range: ValueRange,
) -> Randomised | EnsembleObjective:
    samples = whole_number("samples", samples, error=EnsembleError)
    value_range = check_value_range(value_range)
    goal = None if attacked is None else 0.0
    objective = EnsembleObjective(metric, still, key, attacked, samples, value_range, goal)
    return Randomised(objective, 1, goal) if key is None else objective


def _unit(images: Images, value_range: ValueRange) -> Float[Array, "..."]:
    """Images in [0, 1], in float32 at least."""
    wide = jnp.issubdtype(images.dtype, jnp.floating)
    return to_unit(images, value_range, float_dtype(images) if wide else jnp.float32)


def _units(metric: RandomMetric, value_range: ValueRange, **images: Images) -> Float[Array, "n k h w 3"]:
    """Images in [0, 1], one beside the other."""
    value_range = check_value_range(value_range)
    arrays = check_images(value_range, minimum_size=metric.minimum_size, user=metric.name, **images)
    return jnp.stack([_unit(array, value_range) for array in arrays], axis=1)

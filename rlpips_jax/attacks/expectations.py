"""Objectives of an ensemble, for attacks that adapt to its randomness.

    objective = rl.attacks.expected_ranking(ensemble, reference, closer, farther, samples=16)
    result = rl.attacks.pgd(objective, closer, key=key, epsilon=2 / 255, steps=20)

Each step draws fresh transformations and masks, the same for all images of a triplet, and what an attack has reached is
judged with others (expectation over transformation, Athalye et al. 2018).
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks.objectives import STILL, Objective, Randomised, _check_attacked
from rlpips_jax.ensemble import Ensemble, FeaturesOf, check_samples, distances, expectation, unit_images
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range
from rlpips_jax.metric import Metric

DRAWS = 8
"""Transformations that each step averages."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ensemble", "still"],
    meta_fields=["attacked", "samples", "value_range"],
)
@dataclass(frozen=True, eq=False)
class EnsembleObjective(Objective):
    """A ranking or a distance by an ensemble, `images, key -> (n,)`. Made by `expected_ranking`.

    Attributes:
        ensemble: the distance.
        still: `(n, k, h, w, 3)` in [0, 1], images that do not move.
        attacked: which image of a triplet moves, one of `ATTACKED`; None for the distance from the one that does not.
        samples: transformations averaged.
        value_range: black and white of the images that move.
    """

    ensemble: Ensemble
    still: Float[Array, "n k h w 3"]
    attacked: str | None
    samples: int
    value_range: ValueRange

    def __call__(self, images: Float[Array, "n ..."], key: Any = None) -> Float[Array, " n"]:
        moving = unit_images(self.ensemble, images, self.value_range).reshape(len(images), -1, *images.shape[-3:])
        return expectation(self.ensemble, _Value(self.attacked), (moving, self.still), key, self.samples)


@dataclass(frozen=True)
class _Value:
    """What is averaged: `metric, features_of, (moving, still) -> (n,)`."""

    attacked: str | None

    def __call__(
        self,
        metric: Metric,
        features_of: FeaturesOf,
        images: tuple[Float[Array, "n j h w 3"], Float[Array, "n k h w 3"]],
    ) -> Float[Array, " n"]:
        moving, still = images
        moved, others = features_of(moving), features_of(still)
        if self.attacked in (None, "reference", "both"):
            found = distances(metric, moved, others, moving, still)
            return found[:, 0] if self.attacked is None else found[:, 0] - found[:, 1]
        reference, other = (tuple(feature[:, place : place + 1] for feature in others) for place in (0, 1))
        margin = distances(metric, moved, reference, moving, still[:, :1]) - distances(
            metric, other, reference, still[:, 1:], still[:, :1]
        )
        return margin[:, 0] if self.attacked == "closer" else -margin[:, 0]


def expected_ranking(
    ensemble: Ensemble,
    reference: Images,
    closer: Images,
    farther: Images,
    *,
    attacked: str = "closer",
    samples: int = DRAWS,
    value_range: ValueRange = UNIT_RANGE,
) -> Randomised:
    """`ranking` by an ensemble: the expectation of d(reference, closer) - d(reference, farther).

    Args:
        ensemble: from `rlpips_jax.load("elpips-squeeze")`, or of any metric.
        reference: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        closer: the images that are nearer to their references.
        farther: the images that are farther.
        attacked: which image moves, one of `ATTACKED`.
        samples: transformations averaged at each step.
        value_range: black and white of floating-point images.

    Raises:
        AttackError: `attacked` is none of `ATTACKED`.
        EnsembleError: `samples` is no whole number of 1 or more.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    _check_attacked(attacked)
    images = {"reference": reference, "closer": closer, "farther": farther}
    still = _units(ensemble, value_range, **{name: images[name] for name in STILL[attacked]})
    objective = EnsembleObjective(ensemble, still, attacked, check_samples(samples), check_value_range(value_range))
    return Randomised(objective, 1, 0.0)


def expected_distance_from(
    ensemble: Ensemble, images: Images, *, samples: int = DRAWS, value_range: ValueRange = UNIT_RANGE
) -> Randomised:
    """`distance_from` by an ensemble: the expectation of the distance from `images`. Arguments as above."""
    still = _units(ensemble, value_range, images=images)
    objective = EnsembleObjective(ensemble, still, None, check_samples(samples), check_value_range(value_range))
    return Randomised(objective, 1, None)


def _units(ensemble: Ensemble, value_range: ValueRange, **images: Images) -> Float[Array, "n k h w 3"]:
    """Images in [0, 1], one beside the other."""
    value_range = check_value_range(value_range)
    arrays = check_images(value_range, minimum_size=ensemble.minimum_size, user=ensemble.name, **images)
    return jnp.stack([unit_images(ensemble, array, value_range) for array in arrays], axis=1)

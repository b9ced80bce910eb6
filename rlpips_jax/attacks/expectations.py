"""Objectives of an ensemble, for attacks that adapt to its randomness.

    objective = rl.attacks.expected_ranking(ensemble, reference, closer, farther, samples=16)
    result = rl.attacks.pgd(objective, closer, key=key, epsilon=2 / 255, steps=20)

Each step draws fresh transformations and masks, the same for all images of a triplet, and what an attack has reached is
judged with others (expectation over transformation, Athalye et al. 2018).

`triplet_objective` and `distance_objective` give the objective of whatever metric, random or not.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks.objectives import STILL, Objective, Randomised, _check_attacked, distance_from, ranking
from rlpips_jax.distances.lpips import Metric, distance
from rlpips_jax.ensemble import Ensemble, FeaturesOf, check_samples, distances, expectation, unit_images
from rlpips_jax.errors import EnsembleError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range

DRAWS = 16
"""Transformations that each step averages."""
JUDGED = 64
"""Transformations that a distance averages, before and after an attack."""
JUDGE, CHOICE = 2**30, 2**30 + 1
"""What a key is folded with for the draws that judge an outcome, and for those by which outcomes are chosen among: no
attack counts so far."""


@dataclass(frozen=True)
class Randomness:
    """How an ensemble is attacked, and judged afterwards; of no account where nothing is random.

    Attributes:
        draws: transformations that each step of an attack averages.
        samples: transformations that a distance averages, before and after an attack.
        fixed: the ensemble always draws the same `samples` transformations and masks, and the attack knows which: all
            its steps see these, whatever `draws` says. What a fixed key hides is then no longer hidden.
    """

    draws: int = DRAWS
    samples: int = JUDGED
    fixed: bool = False

    def __post_init__(self) -> None:
        for name in ("draws", "samples"):
            if getattr(self, name) is None:
                raise EnsembleError(f"{name} must be a whole number, 1 or more, got None")
            check_samples(getattr(self, name), name)


ADAPTIVE = Randomness()
"""Fresh draws at each step, and others to judge by."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ensemble", "still", "key"],
    meta_fields=["attacked", "samples", "value_range", "goal"],
)
@dataclass(frozen=True, eq=False)
class EnsembleObjective(Objective):
    """A ranking or a distance by an ensemble, `images, key -> (n,)`. Made by `expected_ranking`.

    Attributes:
        ensemble: the distance.
        still: `(n, k, h, w, 3)` in [0, 1], images that do not move.
        key: what it always draws by; None to be called with a key.
        attacked: which image of a triplet moves, one of `ATTACKED`; None for the distance from the one that does not.
        samples: transformations averaged.
        value_range: black and white of the images that move.
        goal: 0, above which the order of a triplet is reversed; None of a distance.
    """

    ensemble: Ensemble
    still: Float[Array, "n k h w 3"]
    key: Any
    attacked: str | None
    samples: int
    value_range: ValueRange
    goal: float | None

    def __call__(self, images: Float[Array, "n ..."], key: Any = None) -> Float[Array, " n"]:
        key = self.key if key is None else key
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
    key: Any = None,
    value_range: ValueRange = UNIT_RANGE,
) -> Randomised | EnsembleObjective:
    """`ranking` by an ensemble: the expectation of d(reference, closer) - d(reference, farther).

    Args:
        ensemble: from `rlpips_jax.load("elpips-squeeze")`, or of any metric.
        reference: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        closer: the images that are nearer to their references.
        farther: the images that are farther.
        attacked: which image moves, one of `ATTACKED`.
        samples: transformations averaged at each step.
        key: None to draw afresh at each step. A key of `jax.random` to see at each step, and at the end, what it draws.
        value_range: black and white of floating-point images.

    Raises:
        AttackError: `attacked` is none of `ATTACKED`.
        EnsembleError: `samples` is no whole number of 1 or more.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    _check_attacked(attacked)
    images = {"reference": reference, "closer": closer, "farther": farther}
    still = _units(ensemble, value_range, **{name: images[name] for name in STILL[attacked]})
    return _objective(ensemble, still, key, attacked, samples, value_range)


def expected_distance_from(
    ensemble: Ensemble,
    images: Images,
    *,
    samples: int = DRAWS,
    key: Any = None,
    value_range: ValueRange = UNIT_RANGE,
) -> Randomised | EnsembleObjective:
    """`distance_from` by an ensemble: the expectation of the distance from `images`. Arguments as above."""
    return _objective(ensemble, _units(ensemble, value_range, images=images), key, None, samples, value_range)


def triplet_objective(
    metric: Metric | Ensemble,
    triplet: tuple[Images, Images, Images],
    *,
    attacked: str,
    randomness: Randomness,
    key: Any,
    value_range: ValueRange,
) -> Objective:
    """`ranking` or `expected_ranking` of reference, closer and farther images.

    Args:
        key: what an ensemble with `randomness.fixed` draws by.
    """
    if not isinstance(metric, Ensemble):
        return ranking(metric, *triplet, attacked=attacked, value_range=value_range)
    drawn = _drawn(randomness, key)
    return expected_ranking(metric, *triplet, attacked=attacked, value_range=value_range, **drawn)


def distance_objective(
    metric: Metric | Ensemble, images: Images, *, randomness: Randomness, key: Any, value_range: ValueRange
) -> Objective:
    """`distance_from` or `expected_distance_from`. Arguments as above."""
    if not isinstance(metric, Ensemble):
        return distance_from(metric, images, value_range=value_range)
    return expected_distance_from(metric, images, value_range=value_range, **_drawn(randomness, key))


def judge_key(key: Any) -> Any:
    """Of an attack's key, the one that an ensemble judges the outcome by. The attack draws by no such one."""
    return jax.random.fold_in(key, JUDGE)


def choice_key(key: Any, randomness: Randomness) -> Any:
    """The one by which outcomes are compared, to choose among them: the judge's only where that is known anyway."""
    return judge_key(key) if randomness.fixed else jax.random.fold_in(key, CHOICE)


def measured_distances(
    metric: Metric | Ensemble,
    reference: Images,
    others: tuple[Images, ...],
    *,
    randomness: Randomness,
    key: Any,
    value_range: ValueRange,
) -> list[Float[Array, " n"]]:
    """Distances of several images from each reference, by an ensemble under the same transformations and masks.

    Args:
        key: what an ensemble draws by.
    """
    if not isinstance(metric, Ensemble):
        return [distance(reference, other, metric, value_range=value_range) for other in others]
    still, moving = (
        jnp.stack([unit_images(metric, image, value_range) for image in images], axis=1)
        for images in ((reference,), others)
    )
    found = expectation(metric, _from_first, (still, moving), key, randomness.samples)
    return list(found.T)


def _from_first(
    metric: Metric, features_of: FeaturesOf, images: tuple[Float[Array, "n 1 h w 3"], Float[Array, "n k h w 3"]]
) -> Float[Array, "n k"]:
    reference, others = images
    return distances(metric, features_of(others), features_of(reference), others, reference)


def _drawn(randomness: Randomness, key: Any) -> dict[str, Any]:
    if randomness.fixed:
        return {"samples": randomness.samples, "key": key}
    return {"samples": randomness.draws}


def _objective(
    ensemble: Ensemble,
    still: Float[Array, "n k h w 3"],
    key: Any,
    attacked: str | None,
    samples: int,
    value_range: ValueRange,
) -> Randomised | EnsembleObjective:
    samples, value_range = check_samples(samples), check_value_range(value_range)
    goal = None if attacked is None else 0.0
    objective = EnsembleObjective(ensemble, still, key, attacked, samples, value_range, goal)
    return Randomised(objective, 1, goal) if key is None else objective


def _units(ensemble: Ensemble, value_range: ValueRange, **images: Images) -> Float[Array, "n k h w 3"]:
    """Images in [0, 1], one beside the other."""
    value_range = check_value_range(value_range)
    arrays = check_images(value_range, minimum_size=ensemble.minimum_size, user=ensemble.name, **images)
    return jnp.stack([unit_images(ensemble, array, value_range) for array in arrays], axis=1)

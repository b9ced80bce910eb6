"""Attacks on triplets: can a small change of an image, whichever it is, reverse the order of two distances?"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import as_floats
from rlpips_jax.attacks.expectations import (
    ADAPTIVE,
    Randomness,
    choice_key,
    judge_key,
    measured_distances,
    triplet_objective,
)
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.objectives import ATTACKED, attacked_images, with_moved
from rlpips_jax.attacks.result import worth
from rlpips_jax.attacks.worst_case import Attack, run
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range

Triplets = tuple[Float[Array, "n h w 3"], Float[Array, "n h w 3"], Float[Array, "n h w 3"]]
"""Reference, closer, farther."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TripletDistances:
    """The two distances from the reference of each triplet.

    Attributes:
        closer: `(n,)`, d(reference, closer).
        farther: `(n,)`, d(reference, farther).
    """

    closer: Float[Array, " n"]
    farther: Float[Array, " n"]

    @property
    def margin(self) -> Float[Array, " n"]:
        """d(reference, closer) - d(reference, farther): above 0 where the order is reversed."""
        return self.closer - self.farther


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TripletAttackResult:
    """Triplets after the attack from the side where it does most harm, and their distances.

    A pytree. Lengths are in the units of `value_range`.

    Attributes:
        reference: `(n, h, w, 3)`, floats in `value_range`, attacked or as it was.
        closer: in the same form.
        farther: in the same form.
        before: distances within the original triplets.
        after: distances within the attacked ones.
        reversed: `(n,)`, whether the closer image is now the farther one; a tie is not reversed.
        side: `(n,)`, which side that is, an index into `ATTACKED`.
        linf: `(n,)`, the largest change of a value in any of the three images.
        l2: `(n,)`, the Euclidean length of the largest change of an image.
    """

    reference: Float[Array, "n h w 3"]
    closer: Float[Array, "n h w 3"]
    farther: Float[Array, "n h w 3"]
    before: TripletDistances
    after: TripletDistances
    reversed: Bool[Array, " n"]
    side: Array
    linf: Float[Array, " n"]
    l2: Float[Array, " n"]


def attack_triplets(
    metric: Metric | RandomMetric,
    reference: Images,
    closer: Images,
    farther: Images,
    *,
    attack: Attack,
    key: Key,
    attacked: str | Sequence[str] = "closer",
    surrogate: Metric | RandomMetric | None = None,
    randomness: Randomness = ADAPTIVE,
    value_range: ValueRange = UNIT_RANGE,
) -> TripletAttackResult:
    """Attacks the order of triplets from one side or several, and keeps the worst side of each triplet.

        >>> import functools
        >>> import jax
        >>> import rlpips_jax as rl
        >>> reference, change = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3))
        >>> triplet = reference, 0.8 * reference + 0.2 * change, 0.7 * reference + 0.3 * change
        >>> attack = functools.partial(rl.attacks.pgd, epsilon=2 / 255, steps=2)
        >>> key = jax.random.key(1)
        >>> sides = ("closer", "farther")
        >>> metric = rl.load("lpips-tiny")
        >>> result = rl.attacks.attack_triplets(metric, *triplet, attack=attack, key=key, attacked=sides)
        >>> accuracy = 1 - result.reversed.mean()

    Each side is one compiled program, used again for batches of the same shape, other parameters of the same metric,
    and other radii. The draws of a side do not depend on which other sides are attacked.

    Args:
        metric: from `rlpips_jax.load`.
        reference: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        closer: the images that are nearer to their references, as people or the metric judge.
        farther: the images that are farther.
        attack: a function `(objective, images, *, key, value_range) -> AttackResult`. With "both" its radius is that
            of each of the two images.
        key: a key of `jax.random`.
        attacked: which image moves, one of `ATTACKED` or several.
        surrogate: the metric that is attacked, in the hope that the attack transfers; None for `metric` itself.
        randomness: how randomised metrics are attacked and judged.
        value_range: black and white of the images.

    Returns:
        A `TripletAttackResult`. Its distances are those of its images by `rlpips_jax.distance`, for a randomised
        metric with draws that the attack has not seen (unless `randomness.fixed`). The worst side is the one whose
        margin by `metric` is largest.

    Raises:
        AttackError: `attacked` is not one or several of `ATTACKED`, or `attack` is not such a function.
        ImageError: the images break the convention of `rlpips_jax.images`, or differ in shape.
    """
    sides = (attacked,) if isinstance(attacked, str) else tuple(attacked)
    if not sides or len(set(sides)) < len(sides) or not set(sides) <= set(ATTACKED):
        raise AttackError(f"attacked must be one or several of {', '.join(ATTACKED)}, got {attacked!r}")
    value_range = check_value_range(value_range)
    images = check_images(value_range, reference=reference, closer=closer, farther=farther)
    if images[0].ndim != 4:
        raise ImageError(f"reference has shape {images[0].shape}; triplets are three batches (n, h, w, 3)")
    originals = cast(Triplets, tuple(as_floats(image, value_range)[0] for image in images))
    judge = judge_key(key)
    results = []
    for side in sides:
        objective = triplet_objective(
            metric if surrogate is None else surrogate,
            originals,
            attacked=side,
            randomness=randomness,
            key=judge,
            value_range=value_range,
        )
        own = jax.random.fold_in(key, ATTACKED.index(side))
        results.append(run(attack, objective, attacked_images(*originals, side), own, value_range))
    adversarial = tuple(result.adversarial for result in results)
    choice = choice_key(key, randomness)
    return _worst_side(
        metric,
        originals,
        adversarial,
        (choice, judge),
        sides=sides,
        randomness=randomness,
        value_range=value_range,
    )


@functools.partial(jax.jit, static_argnames=("sides", "randomness", "value_range"))
def _worst_side(
    metric: Metric | RandomMetric,
    originals: Triplets,
    adversarial: tuple[Float[Array, "n ..."], ...],
    keys: tuple[Key, Key],
    *,
    sides: tuple[str, ...],
    randomness: Randomness,
    value_range: ValueRange,
) -> TripletAttackResult:
    choice, judge = keys

    def measured(triplet: Triplets, key: Key) -> TripletDistances:
        reference, *others = triplet
        found = measured_distances(
            metric, reference, tuple(others), randomness=randomness, key=key, value_range=value_range
        )
        return TripletDistances(*found)

    pairs = zip(sides, adversarial, strict=True)
    attacked = [cast(Triplets, with_moved(originals, moved, side)) for side, moved in pairs]
    if len(sides) == 1:
        chosen, triplets = jnp.zeros(len(originals[0]), jnp.int32), attacked[0]
    else:
        margins = jnp.stack([measured(triplet, choice).margin for triplet in attacked])
        chosen = jnp.argmax(worth(margins), axis=0)
        triplets = originals
        for index, triplet in enumerate(attacked):
            here = (chosen == index)[:, None, None, None]
            merged = (jnp.where(here, new, old) for new, old in zip(triplet, triplets, strict=True))
            triplets = cast(Triplets, tuple(merged))
    before, now = measured(originals, judge), measured(triplets, judge)
    changes = jnp.stack([new - old for new, old in zip(triplets, originals, strict=True)])
    return TripletAttackResult(
        *triplets,
        before=before,
        after=now,
        reversed=now.margin > 0,
        side=jnp.asarray([ATTACKED.index(side) for side in sides])[chosen],
        linf=balls.BALLS["linf"].length(changes).max(axis=0),
        l2=balls.BALLS["l2"].length(changes).max(axis=0),
    )

"""Several attacks on the same images: the worst that any of them found for each example."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import as_floats
from rlpips_jax.attacks.keys import Key, Purpose, as_key, child
from rlpips_jax.attacks.minimum import MinimumResult
from rlpips_jax.attacks.objectives import Objective, Randomised, as_pytree
from rlpips_jax.attacks.procedure import objective_value
from rlpips_jax.attacks.result import AttackResult, worth
from rlpips_jax.attacks.search import summary
from rlpips_jax.attacks.worst_of import worst_of
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

Attack = Callable[..., AttackResult]
"""`objective, images, *, key, value_range -> AttackResult`, such as `functools.partial(pgd, epsilon=.1, steps=20)`."""


def worst_case(
    objective: Objective, images: Images, *, key: Key, attacks: Sequence[Attack], value_range: ValueRange = UNIT_RANGE
) -> AttackResult:
    """The adversarial image with the largest objective for each example, among those of several attacks.

        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from rlpips_jax.attacks import noise, pgd, worst_case
        >>> attacks = [functools.partial(pgd, epsilon=0.1, steps=4), functools.partial(noise, epsilon=0.1)]
        >>> images = jnp.full((1, 4, 4, 3), 0.5)
        >>> result = worst_case(lambda x: x.mean((1, 2, 3)), images, key=jax.random.key(0), attacks=attacks)
        >>> print(result.after.round(3))
        [0.6]

    An attack draws the same whatever attacks follow it in the list, so that more of them are never weaker. A randomised
    objective compares all under the same draws, and judges what was chosen once more; no attack has used the keys of
    either. Of `minimum` and `first_reversal`, whose results are lengths, the images are compared by the objective as
    all others; they take a radius too, `functools.partial(minimum, epsilon=0.1, steps=20)`.

    Args:
        objective: as in `pgd`.
        images: as in `pgd`.
        key: a key of `jax.random`.
        attacks: functions `(objective, images, *, key, value_range) -> AttackResult`.
        value_range: black and white of the images.

    Returns:
        An `AttackResult`, as `worst_of` makes it.

    Raises:
        AttackError: there are no attacks, or one is not such a function.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    objective = as_pytree(objective, value_range)
    attacks, key = tuple(attacks), as_key(key)
    if not attacks:
        raise AttackError("attacks is empty; worst_case needs one at least")
    results = [
        run(attack, objective, images, jax.random.fold_in(key, index), value_range)
        for index, attack in enumerate(attacks)
    ]
    choice, judge = (child(key, purpose) for purpose in (Purpose.CHOICE, Purpose.OUTCOME))
    results = [
        _by_objective(objective, images, result.adversarial, judge) if isinstance(result, MinimumResult) else result
        for result in results
    ]
    if len(attacks) == 1 or not isinstance(objective, Randomised):
        return worst_of(results)
    alike = [replace(result, after=_value(objective, result.adversarial, choice)) for result in results]
    result = worst_of(alike)
    return _judged(objective, images, result.adversarial, result.trajectory, judge)


def run(attack: Attack, objective: Objective, images: Images, key: Key, value_range: ValueRange) -> AttackResult:
    """What an attack finds.

    Raises:
        AttackError: it is not what `Attack` says.
    """
    says = (
        "an attack is a function (objective, images, *, key, value_range) -> AttackResult, such as "
        "functools.partial(pgd, epsilon=2 / 255, steps=20)"
    )
    if not callable(attack):
        raise AttackError(f"{says}; got {type(attack).__name__}")
    result = attack(objective, images, key=key, value_range=value_range)
    if not isinstance(result, AttackResult):
        raise AttackError(f"{says}; this one gave {type(result).__name__}")
    return result


@jax.jit
def _judged(
    objective: Objective,
    images: Float[Array, "n ..."],
    adversarial: Float[Array, "n ..."],
    trajectory: Float[Array, "steps n"],
    key: Key,
) -> AttackResult:
    values = (objective_value(objective, images, key), objective_value(objective, adversarial, key))
    return summary(objective, images, adversarial, values, trajectory)


@jax.jit
def _by_objective(
    objective: Objective, images: Float[Array, "n ..."], adversarial: Float[Array, "n ..."], key: Key
) -> AttackResult:
    """What an attack has found whose own values are lengths; the image itself where that is better."""
    before, after = (objective_value(objective, array, key).astype(images.dtype) for array in (images, adversarial))
    better = worth(after) > worth(before)
    kept, value = jnp.where(balls.per_example(better, images), adversarial, images), jnp.where(better, after, before)
    return summary(objective, images, kept, (before, value), jnp.stack([before, value]))


@jax.jit
def _value(objective: Randomised, images: Float[Array, "n ..."], key: Key) -> Float[Array, " n"]:
    return objective(images, key).astype(images.dtype)

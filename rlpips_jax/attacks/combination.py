"""Several attacks on the same images: of each example the worst that any of them found."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks.objectives import Randomised, as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import Key, as_floats, judged
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

Attack = Callable[..., AttackResult]
"""`objective, images, *, key, value_range -> AttackResult`, such as `functools.partial(pgd, epsilon=.1, steps=20)`."""


def worst_case(
    objective: Any, images: Images, *, key: Key, attacks: Sequence[Attack], value_range: ValueRange = UNIT_RANGE
) -> AttackResult:
    """Of each example the adversarial image, among those of several attacks, whose objective is largest.

        worst_case(objective, images, key=key, attacks=[
            functools.partial(pgd, epsilon=2 / 255, steps=20, restarts=5),
            functools.partial(square, epsilon=2 / 255, steps=500),
        ])

    An attack draws the same whatever attacks follow it in the list, so that more of them are never weaker. By a
    randomised objective all are compared under the same draws, and what is chosen is judged once more; no attack has
    used the keys of either.

    Args:
        objective: as in `pgd`.
        images: as in `pgd`.
        key: a key of `jax.random`.
        attacks: functions `(objective, images, *, key, value_range) -> AttackResult`.
        value_range: black and white of the images.

    Returns:
        An `AttackResult`, as `worst_of` makes it.

    Raises:
        AttackError: there are no attacks, or one is no such function.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    objective = as_pytree(objective, value_range)
    attacks = tuple(attacks)
    if not attacks:
        raise AttackError("attacks is empty; worst_case needs one at least")
    results = [
        run(attack, objective, images, jax.random.fold_in(key, index), value_range)
        for index, attack in enumerate(attacks)
    ]
    if len(attacks) == 1 or not isinstance(objective, Randomised):
        return worst_of(results)
    choice, judge = (jax.random.fold_in(key, len(attacks) + index) for index in range(2))
    alike = [replace(result, after=_value(objective, result.adversarial, choice)) for result in results]
    result = worst_of(alike)
    return _judged(objective, images, result.adversarial, result.trajectory, judge)


def worst_of(results: Sequence[AttackResult]) -> AttackResult:
    """Of each example the result whose objective is largest; the first of those that are alike.

    Args:
        results: of attacks on the same images with the same objective. What a randomised objective says of the chosen
            ones is too good after a choice; `worst_case` judges again.

    Returns:
        An `AttackResult`. The trajectory is that of the chosen attack, continued by its last value if another attack
        had more steps.

    Raises:
        AttackError: there are none, or they are of images of several shapes.
    """
    results = tuple(results)
    if not results:
        raise AttackError("results is empty; worst_of needs one at least")
    shapes = {result.adversarial.shape for result in results}
    if len(shapes) > 1:
        raise AttackError(
            f"results have images of shapes {', '.join(map(str, sorted(shapes)))}; they must be of the same images"
        )
    return _worst_of(results)


def run(attack: Any, objective: Any, images: Images, key: Any, value_range: ValueRange) -> AttackResult:
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
def _worst_of(results: tuple[AttackResult, ...]) -> AttackResult:
    chosen = jnp.argmax(jnp.stack([result.after for result in results]), axis=0)
    longest = max(len(result.trajectory) for result in results)

    def pick(arrays: Sequence[Float[Array, "n ..."] | Bool[Array, " n"]]) -> Any:
        """Of each example what the chosen attack has."""
        return jax.vmap(lambda index, *each: jnp.stack(each)[index])(chosen, *arrays)

    def continued(trajectory: Float[Array, "steps n"]) -> Float[Array, "n longest"]:
        return jnp.pad(trajectory, ((0, longest - len(trajectory)), (0, 0)), mode="edge").T

    names = [field.name for field in fields(AttackResult) if field.name != "trajectory"]
    picked = {name: pick([getattr(result, name) for result in results]) for name in names}
    return AttackResult(**picked, trajectory=pick([continued(result.trajectory) for result in results]).T)


_judged = jax.jit(judged)


@jax.jit
def _value(objective: Randomised, images: Float[Array, "n ..."], key: Key) -> Float[Array, " n"]:
    return objective(images, key).astype(images.dtype)

"""The worst result for each example, among those of several attacks."""

from collections.abc import Sequence
from dataclasses import fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.attacks.minimum import MinimumResult
from rlpips_jax.attacks.result import AttackResult, worth
from rlpips_jax.errors import AttackError


def worst_of(results: Sequence[AttackResult]) -> AttackResult:
    """The result with the largest finite objective for each example; the first of equal ones.

    Args:
        results: of attacks on the same images with the same objective. The best of several draws of a randomised
            objective is too good to report; `worst_case` judges again.

    Returns:
        An `AttackResult`. The trajectory is that of the chosen attack, continued by its last value if another attack
        had more steps.

    Raises:
        AttackError: there are no results, they are of images of several shapes, or only some are of `minimum`, which
            gives lengths.
    """
    results = tuple(results)
    if not results:
        raise AttackError("results is empty; worst_of needs one at least")
    shapes = {result.adversarial.shape for result in results}
    if len(shapes) > 1:
        raise AttackError(
            f"results have images of shapes {', '.join(map(str, sorted(shapes)))}; they must be of the same images"
        )
    if 0 < sum(isinstance(result, MinimumResult) for result in results) < len(results):
        raise AttackError("`after` of minimum's results is a length, and of the others the objective; use worst_case")
    return _worst_of(results)


@jax.jit
def _worst_of(results: tuple[AttackResult, ...]) -> AttackResult:
    chosen = jnp.argmax(worth(jnp.stack([result.after for result in results])), axis=0)
    longest = max(len(result.trajectory) for result in results)

    def pick(arrays: Sequence[Array]) -> Array:
        """What the chosen attack has, for each example."""
        return jax.vmap(lambda index, *each: jnp.stack(each)[index])(chosen, *arrays)

    def continued(trajectory: Float[Array, "steps n"]) -> Float[Array, "n longest"]:
        return jnp.pad(trajectory, ((0, longest - len(trajectory)), (0, 0)), mode="edge").T

    names = [field.name for field in fields(AttackResult) if field.name != "trajectory"]
    picked = {name: pick([getattr(result, name) for result in results]) for name in names}
    return AttackResult(**picked, trajectory=pick([continued(result.trajectory) for result in results]).T)

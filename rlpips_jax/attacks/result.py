"""What an attack gives back."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AttackResult:
    """Adversarial images, the best of all iterates and restarts for each example, and what they reached.

    A pytree, so that it leaves `jit`. Lengths are in the units of `value_range`.

    Attributes:
        adversarial: `(n, ..., h, w, 3)`, floats in `value_range`; of the shape of the images. The image itself where
            an attack on an objective (but `noise`) found nothing better, if the objective is not randomised. An image
            whose objective is not finite is returned only where no finite objective was seen.
        before: `(n,)`, the objective of the images.
        after: `(n,)`, the objective of the adversarial images. For a randomised objective both are judged with keys
            that the attack has not used.
        linf: `(n, ...)`, the largest change of a value, for each image.
        l2: `(n, ...)`, the Euclidean length of the change, for each image.
        success: `(n,)`, whether the objective passed its goal (0 for rankings); without a goal, whether it rose.
        trajectory: `(steps + 1, n)`, the objective on the way, of the restart that was kept. The iterate that was best
            by it is the one that is returned, unless the image itself is better.
    """

    adversarial: Float[Array, "n ..."]
    before: Float[Array, " n"]
    after: Float[Array, " n"]
    linf: Float[Array, "n ..."]
    l2: Float[Array, "n ..."]
    success: Bool[Array, " n"]
    trajectory: Float[Array, "steps n"]


def worth(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Objectives as they are compared: one that is not finite is worth less than any other."""
    return jnp.where(jnp.isfinite(values), values, -jnp.inf)

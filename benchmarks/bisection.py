"""The smallest radius at which an attack succeeds, by bisection."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.attacks import AttackResult


def bisected(
    attack: Callable[[Float[np.ndarray, " n"], Array], AttackResult],
    count: int,
    *,
    largest: float,
    rounds: int,
    took: Callable[[AttackResult], Array] | None = None,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n h w 3"]]:
    """The smallest radius at which each example is fooled, infinite where it never is, and the images there.

    Args:
        attack: `radii, key -> result`.
        count: of examples.
        largest: radius that is tried first.
        rounds: attacks.
        took: the radius that the images of a result used, where less than was allowed counts.
    """
    low, high = np.zeros(count, np.float32), np.full(count, np.inf, np.float32)
    images = np.zeros(())
    for index in range(rounds):
        radii = np.where(np.isfinite(high), (low + np.minimum(high, largest)) / 2, np.float32(largest))
        result = attack(radii, jax.random.fold_in(jax.random.key(0), index))
        used = radii if took is None else np.asarray(took(result))
        smaller = np.asarray(result.success) & (used < high)
        found = np.asarray(result.adversarial)
        images = np.where(smaller[:, None, None, None], found, images if index else found)
        high, low = np.where(smaller, used, high), np.where(result.success, low, np.maximum(low, radii))
    return high, images

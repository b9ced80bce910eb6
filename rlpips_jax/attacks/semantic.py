"""The semantic similarity attack on a distance: an image that is farther from its own reference than from all others.

After Luo et al., "Frequency-driven imperceptible adversarial attack on semantic similarity" (2022), in the form that
R-LPIPS (Ghazanfari et al., 2023) trains against.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rlpips_jax.attacks.arguments import Radius, as_floats
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.objectives import TracedObjective
from rlpips_jax.attacks.pgd import pgd
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.distances.pairwise import pairwise_between
from rlpips_jax.distances.protocol import Features, Metric
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_value_range


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SemanticSimilarity(TracedObjective):
    """min(0, d(ref_i, x_i) - max over j != i of d(ref_j, x_i)). Made by `semantic_similarity`.

    Attributes:
        metric: the distance.
        features: of the references.
        value_range: black and white of the images.
    """

    # The largest value, 0, counts as reached.
    goal = -float(np.finfo(np.float32).tiny)

    metric: Metric
    features: Features
    value_range: ValueRange = field(metadata={"static": True})

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, " n"]:
        moving = self.metric.features(images, value_range=self.value_range)
        # The matrix only says which reference is farthest; the gradient needs no other pair than that.
        distances = pairwise_between(self.metric, *jax.tree.map(lax.stop_gradient, (self.features, moving))).T
        own = jnp.eye(images.shape[0], dtype=bool)
        farthest = jnp.argmax(jnp.where(own, -jnp.inf, distances), axis=1)
        others = jax.tree.map(lambda leaf: leaf[farthest], self.features)
        margin = self.metric.between(self.features, moving) - self.metric.between(others, moving)
        return jnp.minimum(margin, 0)


def semantic_similarity(
    metric: Metric, references: Images, *, value_range: ValueRange = UNIT_RANGE
) -> SemanticSimilarity:
    """The objective that makes each image farther from its own reference than from any other: below 0 until it is.

    Args:
        metric: from `rlpips_jax.load`.
        references: `(n, h, w, 3)`, at least two, uint8 or floats in `value_range`. Their features are computed once.
        value_range: black and white of floating-point images.

    Raises:
        AttackError: there are fewer than two references, or they are not a batch.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    value_range = check_value_range(value_range)
    features = metric.features(references, value_range=value_range)
    if references.ndim != 4 or references.shape[0] < 2:
        raise AttackError(
            f"references has shape {tuple(references.shape)}; a batch (n, h, w, 3) of two or more is needed, as each "
            "image is compared with the references of the others"
        )
    return SemanticSimilarity(metric, features, value_range)


def semantic(
    metric: Metric,
    images: Images,
    references: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int = 50,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Moves each image away from its reference until it is nearer to every other: maximises, by `pgd`,

        min(0, d(ref_i, x_i + delta_i) - max over j != i of d(ref_j, x_i + delta_i)),    |delta_i| <= epsilon

    The other references are those of the batch, so the result for an image depends on the rest of its batch; the
    others being as far away as photographs are, small balls rarely suffice. Where the goal is reached the slope is 0
    and an image stays as it is. For several restarts, another step size or no random start call `pgd` itself on
    `semantic_similarity`. As in R-LPIPS's program, which takes 50 sign steps from delta = 0 within 8/255 of
    images in (-1, 1), but for its step size, which throws delta from corner to corner.

    Args:
        metric: from `rlpips_jax.load`; an argument of the compiled program.
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`, n >= 2.
        references: of each image, of the same shape; they do not move.
        key: a key of `jax.random`.
        epsilon: radius of the ball in the units of `value_range`, as in `pgd`.
        norm: "linf" or "l2".
        steps: gradients that are computed.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        An `AttackResult`; `success` where the objective reached 0.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    objective = semantic_similarity(metric, references, value_range=value_range)
    if images.shape != tuple(references.shape):
        raise AttackError(
            f"images has shape {images.shape} and references {tuple(references.shape)}; pass one reference for each "
            "image, of its size"
        )
    return pgd(objective, images, key=key, epsilon=epsilon, norm=norm, steps=steps, value_range=value_range)

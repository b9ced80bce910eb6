"""Fast-LPA, the fast Lagrangian perceptual attack (Laidlaw et al., "Perceptual adversarial robustness", 2021)."""

import math
from typing import cast

from rlpips_jax.attacks.arguments import Radius, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.lagrangian import LagrangianAscent, Weights
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.project_perceptual import PerceptualAttackResult, PerceptualBall
from rlpips_jax.attacks.search import search
from rlpips_jax.distances.protocol import EmbeddedMetric
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

WEIGHTS = Weights(first=1.0, raised=1.0, growth=10.0)
"""How the weight of the penalty changes."""


def fast_lagrangian(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    metric: EmbeddedMetric,
    bound: Radius,
    steps: int = 20,
    step_size: Radius | None = None,
    restarts: int = 1,
    random_start: bool = True,
    value_range: ValueRange = UNIT_RANGE,
) -> PerceptualAttackResult:
    """One round of `lagrangian`, meant for training, in which lambda rises steadily from 1 to 10.

    The published attack ends near the bound, on either side; here the last iterate is brought within.

    Arguments, result and errors are those of `lagrangian`.
    """
    check_counts(steps=steps, restarts=restarts)
    ball = PerceptualBall.checked(metric, images, bound, value_range)
    ascent = LagrangianAscent(
        ball=ball,
        step_size=ball.bound if step_size is None else ball.lengths("step_size", step_size),
        steps=steps,
        weights=WEIGHTS,
        enough=math.inf,
        random_start=random_start,
    )
    objective = as_pytree(objective, ball.value_range)
    return cast(
        PerceptualAttackResult,
        search(objective, ball.originals, ascent, key=as_key(key), steps=steps, restarts=restarts),
    )

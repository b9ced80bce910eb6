"""Images that look the same and measure far: the largest distance within a ball.

The second attack of E-LPIPS (Kettunen, Härkönen and Lehtinen, 2019) and the experiment by which R-LPIPS (Ghazanfari et
al., 2023) compares metrics: 50 steps of 0.01 within 0.05 (l-inf) or 1.0 (l2), images in [0, 1].
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlpips_jax.attacks.arguments import Radius, as_floats
from rlpips_jax.attacks.expectations import ADAPTIVE, Randomness, distance_objective, judge_key, measured_distances
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.pgd import pgd
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange


def distort(
    metric: Metric | RandomMetric,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int = 50,
    step_size: Radius | None = None,
    restarts: int = 1,
    randomness: Randomness = ADAPTIVE,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Maximises the distance d(x, x + delta) of each image from itself, |delta| <= epsilon, by `pgd`.

    It starts from a point drawn from the ball, as a distance has no slope where it is 0.

    Args:
        metric: from `rlpips_jax.load`; an argument of the compiled program. A randomised one is attacked in
            expectation.
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        key: a key of `jax.random`.
        epsilon: radius of the ball in the units of `value_range`, as in `pgd`. R-LPIPS: 0.05 (l-inf), 1.0 (l2), for
            images in (0, 1).
        norm: "linf" or "l2".
        steps: gradients that are computed.
        step_size: in the units of `epsilon`; None for 2.5 epsilon / steps. R-LPIPS: 0.01 for images in (0, 1).
        restarts: starts that are computed side by side, in as many times the memory.
        randomness: how a randomised metric is attacked and judged.
        value_range: black and white of the images; adversarial images stay within.

    Returns:
        An `AttackResult`: `before` is 0, `after` the distance from the image. A randomised metric measures it with
        draws that the attack has not seen (unless `randomness.fixed`).

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    judge = judge_key(key)
    objective = distance_objective(metric, images, randomness=randomness, key=judge, value_range=value_range)
    result = pgd(
        objective,
        images,
        key=key,
        epsilon=epsilon,
        norm=norm,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        value_range=value_range,
    )
    if is_random(metric):
        drawn = {"randomness": randomness, "key": judge, "value_range": value_range}
        (after,) = measured_distances(metric, images, (result.adversarial,), **drawn)
        result = dataclasses.replace(result, after=after)
    return _from_zero(result)


@jax.jit
def _from_zero(result: AttackResult) -> AttackResult:
    """The same with a distance of exactly 0 where nothing changed: features of two programs differ by rounding."""
    after = jnp.where(result.linf > 0, result.after, 0).astype(result.after.dtype)
    return dataclasses.replace(result, before=jnp.zeros_like(after), after=after, success=after > 0)

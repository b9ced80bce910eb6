"""Images that look different and measure close: the largest pixel distance within a bound on the metric.

The first attack of E-LPIPS (Kettunen, Härkönen and Lehtinen, "E-LPIPS: Robust perceptual image similarity via random
transformation ensembles", 2019).
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.expectations import ADAPTIVE, Randomness, choice_key, distance_objective, judge_key
from rlpips_jax.attacks.objectives import Objective, Randomised
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import Key, Point, as_floats, check_counts, radius_of, search
from rlpips_jax.distances.lpips import Metric
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

LEARNING_RATE = 0.05
"""Length of Adam's steps, as a share of the range of values; it falls to 0 over the second half of them."""
MULTIPLIER, SLOWEST, FASTEST = 0.5, 1e-4, 1e4
"""What the metric weighs beside the root mean square difference at first, at least and at most."""
ADJUSTMENT = 20.0
"""By how much the multiplier's logarithm moves in all steps together: up outside the bound, down within."""
NOISE = 0.02
"""Standard deviation of the noise at the start, as a share of the range of values."""
MARGIN = 1e-5
"""The bound is kept with this share to spare, for programs that round differently."""
BISECTIONS = 24


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["adversarial", "before", "after", "linf", "l2", "success", "trajectory", "distance"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class ImpostorResult(AttackResult):
    """An `AttackResult` whose objective is the pixel distance, and what the metric says.

    Of iterates outside the bound `trajectory` has minus the metric.

    Attributes:
        distance: `(n,)`, of the adversarial images by the metric: within the bound, but for the error of an estimate by
            an ensemble, which judges by other draws than those that were held to the bound.
    """

    distance: Float[Array, " n"]


def impostor(
    metric: Metric | Ensemble,
    images: Images,
    *,
    key: Key,
    bound: Any,
    steps: int = 200,
    starts: Images | None = None,
    restarts: int = 1,
    randomness: Randomness = ADAPTIVE,
    value_range: ValueRange = UNIT_RANGE,
) -> ImpostorResult:
    """Maximises the pixel l2 distance |y - x| from each image while the metric stays small: d(y, x) <= bound.

    Adam on |y - x| / sqrt(h w 3) - multiplier d(y, x), whose multiplier, one for each image, rises at each step
    outside the bound and falls at each within. The best iterate within the bound is kept; where there is none, the
    segment from the image to the nearest is halved until its end is within. Unless it is told where to start, it never
    ends nearer than the image made brighter or darker by as much as the bound allows. By an ensemble steps draw afresh,
    and what is kept is held to the bound by transformations that no step has seen.

    Args:
        metric: from `rlpips_jax.load`; an argument of the compiled program.
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        key: a key of `jax.random`.
        bound: largest distance by the metric, in its own units. One number, or one for each image.
        steps: gradients that are computed.
        starts: images to begin with, of the same shape, for impostors that look like them: other photographs.
            None for the negatives of the images, which get farthest with LPIPS of real networks, and by an ensemble for
            the images made brighter or darker up to the bound. Faint noise is added to any.
        restarts: starts that are computed side by side, in as many times the memory; their noise differs.
        randomness: of an ensemble, how it is attacked and judged.
        value_range: black and white of the images; impostors stay within.

    Returns:
        An `ImpostorResult`: `after` and `l2` are the pixel distance, `distance` is the metric's. The bound holds for
        these floats; rounded to uint8 they may be off it by a little.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    bound = radius_of("bound", bound, images, units="the metric")
    begin = None if starts is None else as_floats(starts, value_range)[0]
    if begin is not None and begin.shape != images.shape:
        raise AttackError(
            f"starts has shape {begin.shape} and images {images.shape}; pass one start for each image, of its size"
        )
    by = functools.partial(distance_objective, metric, images, value_range=value_range)
    distance = judged = by(randomness=randomness, key=judge_key(key))
    objective = known = _Within(distance, images, bound)
    if isinstance(distance, Randomised):
        # Only what always draws the same can be held to a bound; it is judged by other draws.
        fixed = functools.partial(by, randomness=dataclasses.replace(randomness, fixed=True))
        known, judged = _Within(fixed(key=choice_key(key, randomness)), images, bound), fixed(key=judge_key(key))
        objective = Randomised(_Within(distance.function, images, bound), 1)
    return _impostor(objective, known, judged, begin, key, steps, restarts, value_range)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["distance", "images", "bound"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class _Within(Objective):
    """The pixel distance from the images within the bound; outside, less than any: minus the metric.

    Its gradient is that of minus the metric on both sides, as that of a pixel distance is no work.

    Attributes:
        distance: from the images by the metric.
        images: `(n, h, w, 3)`.
        bound: on the distance.
    """

    distance: Any
    images: Float[Array, "n h w 3"]
    bound: Float[Array, "..."]

    def __call__(self, images: Float[Array, "n h w 3"], *key: Any) -> Float[Array, " n"]:
        distance = self.distance(images, *key)
        value = jnp.where(self.holds(distance), balls.BALLS["l2"].length(images - self.images), -distance)
        return lax.stop_gradient(value + distance) - distance

    def holds(self, distance: Float[Array, " n"]) -> Bool[Array, " n"]:
        return distance <= self.bound * (1 - MARGIN)


class _State(NamedTuple):
    adam: Any
    multiplier: Float[Array, " n"]


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _impostor(
    objective: Objective,
    known: _Within,
    judged: Objective,
    begin: Float[Array, "n h w 3"] | None,
    key: Any,
    steps: int,
    restarts: int,
    value_range: ValueRange,
) -> ImpostorResult:
    images, (black, white) = known.images, value_range
    width = white - black
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)
    shifted = None
    if begin is None:
        shifted = _shifted(known, value_range)
        begin = shifted if isinstance(objective, Randomised) else black + white - images
    first = begin

    def start(key: Any) -> Float[Array, "n h w 3"]:
        noise = jax.random.normal(key, images.shape, images.dtype)
        return jnp.clip(first + NOISE * width * noise, black, white)

    def state(variable: Float[Array, "n h w 3"]) -> _State:
        return _State(adam.init(variable), jnp.full(images.shape[0], MULTIPLIER, images.dtype))

    def step(state: _State, point: Point) -> tuple[_State, Float[Array, "n h w 3"]]:
        adjustment = np.exp(ADJUSTMENT / steps)
        multiplier = state.multiplier * jnp.where(point.value >= 0, 1 / adjustment, adjustment)
        multiplier = jnp.clip(multiplier, SLOWEST, FASTEST)
        difference = point.variable - images
        rms = balls.BALLS["l2"].length(difference) * images[0].size ** -0.5
        # Of quantities without units, by values as shares of the range, times the number of values.
        apart = difference / balls.per_example(jnp.where(rms > 0, rms, 1), images)
        near = point.gradient * (width * images[0].size)
        ascent: Any
        ascent, moments = adam.update(apart + balls.per_example(multiplier, images) * near, state.adam)
        rate = LEARNING_RATE * width * jnp.minimum(1, 2 * (1 - point.index / steps))
        return _State(moments, multiplier), jnp.clip(point.variable + rate * ascent, black, white)

    result, found = search(
        objective, images, start=start, step=step, state=state, steps=steps, restarts=restarts, key=key
    )
    within = known.holds(known.distance(found))
    adversarial = lax.cond(jnp.all(within), lambda found: found, functools.partial(_nearer, known), found)
    if shifted is not None:
        farther = [balls.BALLS["l2"].length(end - images) for end in (shifted, adversarial)]
        adversarial = jnp.where(balls.per_example(farther[0] > farther[1], images), shifted, adversarial)
    # What moves not at all is at 0, though two programs may round its features differently.
    change = adversarial - images
    linf, l2 = (balls.BALLS[norm].length(change) for norm in ("linf", "l2"))
    return ImpostorResult(
        adversarial=adversarial,
        before=jnp.zeros_like(l2),
        after=l2,
        linf=linf,
        l2=l2,
        success=l2 > 0,
        trajectory=result.trajectory,
        distance=jnp.where(linf > 0, judged(adversarial), 0).astype(images.dtype),
    )


def _nearer(objective: _Within, found: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """What was found, moved towards its image until it is within the bound."""
    images = objective.images
    already = objective.holds(objective.distance(found))
    moved = _last_within(objective, lambda share: images + share * (found - images))
    return jnp.where(balls.per_example(already, images), found, moved)


def _shifted(objective: _Within, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """The images made brighter or darker up to the bound, whichever gets farther."""
    images, (black, white) = objective.images, value_range

    def towards(end: Any) -> Float[Array, "n h w 3"]:
        return _last_within(objective, lambda share: jnp.clip(images + share * end, black, white))

    ends = lax.map(towards, jnp.array([white - black, black - white], images.dtype))
    lighter, darker = (balls.BALLS["l2"].length(end - images) for end in ends)
    return jnp.where(balls.per_example(lighter > darker, images), *ends)


def _last_within(objective: _Within, at: Callable[[Any], Float[Array, "n h w 3"]]) -> Float[Array, "n h w 3"]:
    """Where a path leaves the bound, by bisection.

    Args:
        objective: knows the bound.
        at: images by the share of the path, from 0, which is within, to 1; shares are `(n, 1, 1, 1)`.
    """
    images = objective.images

    def halve(limits: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        inside, outside = limits
        middle = (inside + outside) / 2
        holds = balls.per_example(objective.holds(objective.distance(at(middle))), images)
        return (jnp.where(holds, middle, inside), jnp.where(holds, outside, middle)), None

    whole = jnp.ones((images.shape[0], 1, 1, 1), images.dtype)
    (share, _), _ = lax.scan(halve, (jnp.zeros_like(whole), whole), length=BISECTIONS)
    return at(share)

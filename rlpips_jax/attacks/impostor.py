"""Images that look different and measure close: the largest pixel distance within a bound on the metric.

The first attack of E-LPIPS (Kettunen, Härkönen and Lehtinen, "E-LPIPS: Robust perceptual image similarity via random
transformation ensembles", 2019).
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts, radius_of
from rlpips_jax.attacks.expectations import ADAPTIVE, Randomness, choice_key, distance_objective, judge_key
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.objectives import Objective, Randomised, TracedObjective
from rlpips_jax.attacks.procedure import Point, Procedure
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

LEARNING_RATE = 0.05
"""Length of Adam's steps, as a share of the range of values; it falls to 0 over the second half of them."""
MULTIPLIER, SLOWEST, FASTEST = 0.5, 1e-4, 1e4
"""Weight of the metric beside the root mean square difference: the first, the smallest and the largest."""
ADJUSTMENT = 20.0
"""How far the multiplier's logarithm moves in all steps together: up outside the bound, down within."""
NOISE = 0.02
"""Standard deviation of the noise at the start, as a share of the range of values."""
MARGIN = 1e-5
"""Images are held to the bound less this share of it, as other programs may round distances differently."""
BISECTIONS = 24
SHRINKAGE, SHRINKINGS = 0.98, 100
"""How much of a change is left after an image was measured outside the bound once more, and how often at most."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ImpostorResult(AttackResult):
    """An `AttackResult` whose objective is the pixel distance, and the distance by the metric.

    In `trajectory`, iterates outside the bound have minus the distance by the metric.

    Attributes:
        distance: `(n,)`, of the adversarial images by the metric, never above the bound. Only a randomised metric may
            measure more: this is an estimate by other draws than those by which the bound was kept.
    """

    distance: Float[Array, " n"]


def impostor(
    metric: Metric | RandomMetric,
    images: Images,
    *,
    key: Key,
    bound: Radius,
    steps: int = 200,
    starts: Images | None = None,
    restarts: int = 1,
    randomness: Randomness = ADAPTIVE,
    value_range: ValueRange = UNIT_RANGE,
) -> ImpostorResult:
    """Maximises the pixel l2 distance |y - x| from each image while the metric stays small: d(x, y) <= bound.

    Adam on |y - x| / sqrt(h w 3) - multiplier d(x, y), whose multiplier, one for each image, rises at each step
    outside the bound and falls at each within. The best iterate within the bound is kept; where there is none, the
    segment from the image to the nearest iterate is bisected until its end is within. Unless `starts` are given, the
    result is never nearer than the image made brighter or darker by as much as the bound allows. Against a randomised
    metric steps draw afresh, and the bound is kept by draws that no step has seen.

    Args:
        metric: from `rlpips_jax.load`; an argument of the compiled program.
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        key: a key of `jax.random`.
        bound: largest distance by the metric, in its own units. One number, or one for each image.
        steps: gradients that are computed.
        starts: images to begin with, of the same shape, for impostors that look like them: other photographs.
            None for the negatives of the images, which get farthest with LPIPS of real networks, or, against a
            randomised metric, for the images made brighter or darker up to the bound. Faint noise is added to all.
        restarts: starts that are computed side by side, in as many times the memory; their noise differs.
        randomness: how a randomised metric is attacked and judged.
        value_range: black and white of the images; impostors stay within.

    Returns:
        An `ImpostorResult`: `after` and `l2` are the pixel distance, `distance` is the metric's. The bound holds for
        these floats; rounded to uint8 they may be outside by a little.

    Raises:
        AttackError: an argument makes no sense; the message says which one and what would be right.
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
        # Only fixed draws can be held to a bound; the result is judged by other draws.
        fixed = functools.partial(by, randomness=dataclasses.replace(randomness, fixed=True))
        known, judged = _Within(fixed(key=choice_key(key, randomness)), images, bound), fixed(key=judge_key(key))
        objective = Randomised(_Within(distance.function, images, bound), 1)
    return _impostor(objective, known, judged, begin, key, steps=steps, restarts=restarts, value_range=value_range)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Within(TracedObjective):
    """The pixel distance from the images within the bound; outside, minus the metric, which is less than any.

    Its gradient is that of minus the metric on both sides; that of the pixel distance is added by the steps.

    Attributes:
        distance: from the images by the metric.
        images: `(n, h, w, 3)`.
        bound: on the distance.
    """

    distance: Objective
    images: Float[Array, "n h w 3"]
    bound: Float[Array, "..."]

    def __call__(self, images: Float[Array, "n h w 3"], *key: Key) -> Float[Array, " n"]:
        distance = self.distance(images, *key)
        value = jnp.where(self.holds(distance), balls.BALLS["l2"].length(images - self.images), -distance)
        return lax.stop_gradient(value + distance) - distance

    def holds(self, distance: Float[Array, " n"]) -> Bool[Array, " n"]:
        return distance <= self.bound * (1 - MARGIN)


class _State(NamedTuple):
    adam: Any
    multiplier: Float[Array, " n"]


ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Descent(Procedure):
    """Adam on the pixel distance less the metric.

    Attributes:
        images: the images to get away from.
        first: where to start, without noise.
        steps: how many there are.
        value_range: black and white of the images.
    """

    images: Float[Array, "n h w 3"]
    first: Float[Array, "n h w 3"]
    steps: int = field(metadata={"static": True})
    value_range: ValueRange = field(metadata={"static": True})

    @property
    def width(self) -> float | int:
        """From black to white."""
        return self.value_range[1] - self.value_range[0]

    def start(self, key: Key) -> Float[Array, "n h w 3"]:
        noise = jax.random.normal(key, self.images.shape, self.images.dtype)
        return self.project(self.first + NOISE * self.width * noise)

    def state(self, variable: Float[Array, "n h w 3"]) -> _State:
        return _State(ADAM.init(variable), jnp.full(self.images.shape[0], MULTIPLIER, self.images.dtype))

    def step(self, state: _State, point: Point) -> tuple[_State, Float[Array, "n h w 3"]]:
        adjustment = np.exp(ADJUSTMENT / self.steps)
        multiplier = state.multiplier * jnp.where(point.at.value >= 0, 1 / adjustment, adjustment)
        multiplier = jnp.clip(multiplier, SLOWEST, FASTEST)
        difference, values = point.variable - self.images, self.images[0].size
        rms = balls.BALLS["l2"].length(difference) * values**-0.5
        # Gradients by values as shares of the range, times the number of values: quantities without units.
        apart = difference / balls.per_example(jnp.where(rms > 0, rms, 1), self.images)
        near = point.at.gradient * (self.width * values)
        ascent: Any
        ascent, moments = ADAM.update(apart + balls.per_example(multiplier, self.images) * near, state.adam)
        rate = LEARNING_RATE * self.width * jnp.minimum(1, 2 * (1 - point.index / self.steps))
        return _State(moments, multiplier), point.variable + rate * ascent

    def project(self, variable: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
        return jnp.clip(variable, *self.value_range)


@functools.partial(jax.jit, static_argnames=("steps", "restarts", "value_range"))
def _impostor(
    objective: Objective,
    known: _Within,
    judged: Objective,
    begin: Float[Array, "n h w 3"] | None,
    key: Key,
    *,
    steps: int,
    restarts: int,
    value_range: ValueRange,
) -> ImpostorResult:
    images, (black, white) = known.images, value_range
    random = isinstance(objective, Randomised)
    shifted = None
    if begin is None:
        shifted = _shifted(known, value_range)
        begin = shifted if random else black + white - images
    descent = _Descent(images, begin, steps, value_range)
    result = search(objective, images, descent, key=key, steps=steps, restarts=restarts)
    found = result.adversarial
    within = known.holds(known.distance(found))
    adversarial = lax.cond(jnp.all(within), lambda found: found, functools.partial(_nearer, known), found)
    if shifted is not None:
        farther = [balls.BALLS["l2"].length(end - images) for end in (shifted, adversarial)]
        adversarial = jnp.where(balls.per_example(farther[0] > farther[1], images), shifted, adversarial)
    adversarial, distance = _settled(known, adversarial) if not random else (adversarial, judged(adversarial))
    linf, l2 = (balls.BALLS[norm].length(adversarial - images) for norm in ("linf", "l2"))
    return ImpostorResult(
        adversarial=adversarial,
        before=jnp.zeros_like(l2),
        after=l2,
        linf=linf,
        l2=l2,
        success=l2 > 0,
        trajectory=result.trajectory,
        # Features of equal images may differ between two programs by rounding.
        distance=jnp.where(linf > 0, distance, 0).astype(images.dtype),
    )


def _settled(
    objective: _Within, adversarial: Float[Array, "n h w 3"]
) -> tuple[Float[Array, "n h w 3"], Float[Array, " n"]]:
    """Images whose distance, which is returned too, is not above the bound, also if it is rounded coarsely."""
    images, bound = objective.images, objective.bound

    def outside(distance: Float[Array, " n"]) -> Bool[Array, " n"]:
        return ~(distance <= bound)

    def shrink(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, points, distance = carry
        share = jnp.where(index < SHRINKINGS, SHRINKAGE, 0)
        nearer = images + share * (points - images)
        points = jnp.where(balls.per_example(outside(distance), images), nearer, points)
        return index + 1, points, objective.distance(points)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] <= SHRINKINGS) & jnp.any(outside(carry[2]))

    carry = (jnp.asarray(0), adversarial, objective.distance(adversarial))
    return lax.while_loop(unfinished, shrink, carry)[1:]


def _nearer(objective: _Within, found: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Images, moved towards their originals until they are within the bound."""
    images = objective.images
    already = objective.holds(objective.distance(found))
    moved = _last_within(objective, lambda share: images + share * (found - images))
    return jnp.where(balls.per_example(already, images), found, moved)


def _shifted(objective: _Within, value_range: ValueRange) -> Float[Array, "n h w 3"]:
    """The images made brighter or darker up to the bound, whichever gets farther."""
    images, (black, white) = objective.images, value_range

    def towards(end: Array) -> Float[Array, "n h w 3"]:
        return _last_within(objective, lambda share: jnp.clip(images + share * end, black, white))

    ends = lax.map(towards, jnp.array([white - black, black - white], images.dtype))
    lighter, darker = (balls.BALLS["l2"].length(end - images) for end in ends)
    return jnp.where(balls.per_example(lighter > darker, images), *ends)


def _last_within(objective: _Within, at: Callable[[Array], Float[Array, "n h w 3"]]) -> Float[Array, "n h w 3"]:
    """The last images within the bound on a path that leaves it, by bisection.

    Args:
        objective: the distance and the bound.
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

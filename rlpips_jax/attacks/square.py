"""The Square attack (Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
search", 2020): a check, by values alone, that gradients are not merely hidden."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.procedure import ByValues, InBall, Point, State
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.errors import AttackError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

PUBLISHED_STEPS = 10_000
HALVED_AT = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
"""The published steps at which the share of an image that a window covers is halved."""
TILES = 5
"""Rows and columns of pyramids that an l2 search starts from."""


def square(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    norm: str = "linf",
    steps: int,
    restarts: int = 1,
    initial_share: float | int = 0.8,
    value_range: ValueRange = UNIT_RANGE,
) -> AttackResult:
    """Maximises an objective within a ball around each image by random search, from its values alone.

    Each step changes the best point in one square window of each image, and the change is kept, example by example,
    if it raises the objective. Windows cover `initial_share` of an image at first and half as much after 0.1, 0.5,
    2, 10, 20, 40, 60 and 80 % of the steps; their places are uniform.

    In l-inf the search starts from vertical stripes of +-epsilon, and a window sets each channel to one +-epsilon. In
    l2 it starts from 5 x 5 square pyramids with drawn signs. A step empties one window and gives its energy, and what
    the ball has left, to another one, where a pair of pyramids of opposite signs is added: the perturbation stays as
    long as epsilon, but for what the range of values cuts off.

    Against a randomised objective the best point and the new one are compared under the same draws, fresh at each step.

    Other arguments, the result and errors are those of `pgd`.

    Args:
        objective: `images -> (n,)`; it need not be differentiable.
        steps: changes that are tried; the objective is computed once more, at the start.
        initial_share: share of an image's pixels in the first window, above 0 and at most 1. The paper has 0.05 in
            l-inf and 0.1 in l2, AutoAttack 0.8.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    if not 0 < initial_share <= 1:
        raise AttackError(f"initial_share must be above 0 and at most 1, a share of an image, got {initial_share!r}")
    windows = _Windows(
        images=images,
        epsilon=balls.radius_in(norm, epsilon, images, value_range),
        norm=norm,
        value_range=value_range,
        steps=steps,
        initial_share=float(initial_share),
    )
    return search(as_pytree(objective, value_range), images, windows, key=as_key(key), steps=steps, restarts=restarts)


def window_sides(steps: int, share: float, height: int, width: int) -> Int[np.ndarray, " steps"]:
    """The side in pixels of the window that each step tries: the root of its share of the pixels, at least 1."""
    published = np.arange(steps) * (PUBLISHED_STEPS / steps)
    halvings = np.searchsorted(HALVED_AT, published, side="right")
    sides = np.rint(np.sqrt(share * height * width * 0.5**halvings))
    return np.clip(sides, 1, min(height, width)).astype(np.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Windows(ByValues, InBall):
    steps: int = field(metadata={"static": True})
    initial_share: float = field(metadata={"static": True})

    @property
    def radius(self) -> Float[Array, "*n 1 1 1"]:
        """The radius of each image."""
        return jnp.broadcast_to(balls.per_example(self.epsilon, self.images), (*self.images.shape[:-3], 1, 1, 1))

    def start(self, key: Key) -> Float[Array, "n ..."]:
        first = {"linf": _stripes, "l2": _pyramids}[self.norm]
        return self.project(self.images + first(key, self.images, self.radius))

    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        change = {"linf": _repainted, "l2": _moved}[self.norm]
        sides = jnp.asarray(window_sides(self.steps, self.initial_share, *self.images.shape[-3:-1]))
        return state, self.images + change(point.key, point.best - self.images, self.radius, sides[point.index])


def _signs(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
    return jax.random.rademacher(key, shape).astype(dtype)


def _stripes(key: Key, images: Float[Array, "*n h w 3"], radius: Float[Array, "*n 1 1 1"]) -> Float[Array, "*n h w 3"]:
    """Vertical stripes one pixel wide, each of a colour drawn from the corners of the ball."""
    *leading, _, width, channels = images.shape
    return jnp.broadcast_to(radius * _signs(key, (*leading, 1, width, channels), images.dtype), images.shape)


def _repainted(
    key: Key, perturbation: Float[Array, "*n h w 3"], radius: Float[Array, "*n 1 1 1"], side: Int[Array, ""]
) -> Float[Array, "*n h w 3"]:
    """A window painted in a colour from the corners of the ball."""
    where, colour = jax.random.split(key)
    *leading, _, _, channels = perturbation.shape
    place = jax.random.uniform(where, (*leading, 1, 1, 1, 2))
    painted = radius * _signs(colour, (*leading, 1, 1, channels), perturbation.dtype)
    return jnp.where(_window(place, perturbation.shape, side).inside, painted, perturbation)


def _pyramids(key: Key, images: Float[Array, "*n h w 3"], radius: Float[Array, "*n 1 1 1"]) -> Float[Array, "*n h w 3"]:
    """A grid of square pyramids, each channel of each with a drawn sign, as long as the radius."""
    *leading, height, width, channels = images.shape
    side = max(min(height, width) // TILES, 1)
    rows, columns = min(TILES, height), min(TILES, width)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    pyramid = _pyramid(jnp.arange(side)[:, None], jnp.arange(side), jnp.asarray(side), jnp.asarray(side), side)
    signs = _signs(key, (*leading, rows, 1, columns, 1, channels), images.dtype)
    tiles = (signs * pyramid[:, None, :, None]).reshape(*leading, rows * side, columns * side, channels)
    borders = ((top, height - rows * side - top), (left, width - columns * side - left), (0, 0))
    return radius * balls.BALLS["l2"].steepest(jnp.pad(tiles, (*((0, 0),) * len(leading), *borders)))


def _moved(
    key: Key, perturbation: Float[Array, "*n h w 3"], radius: Float[Array, "*n 1 1 1"], side: Int[Array, ""]
) -> Float[Array, "*n h w 3"]:
    """One window emptied, and its energy given to another one, with a pair of pyramids added there."""
    where, colour = jax.random.split(key)
    *leading, height, width, channels = perturbation.shape
    places = jax.random.uniform(where, (*leading, 1, 1, 1, 5))
    emptied = _window(places[..., :2], perturbation.shape, side).inside
    down, across, filled = _window(places[..., 2:4], perturbation.shape, side)

    turned = places[..., 4] < 0.5
    along, over = jnp.where(turned, across, down), jnp.where(turned, down, across)
    # The window is halved along one axis: a pyramid on one half, one that points the other way on the other.
    near = side // 2
    second = over >= near
    pyramid = _pyramid(
        along, jnp.where(second, over - near, over), side, jnp.where(second, side - near, near), max(height, width)
    )
    pair = jnp.where(second, -pyramid, pyramid) * _signs(colour, (*leading, 1, 1, channels), perturbation.dtype)

    shape = _unit_channels(jnp.where(filled, pair, 0)) + _unit_channels(jnp.where(filled, perturbation, 0))
    involved = jnp.where(emptied | filled, perturbation, 0)
    unused = jnp.square(radius) - jnp.sum(jnp.square(perturbation), axis=balls.IMAGE, keepdims=True)
    energy = jnp.sum(jnp.square(involved), axis=(-3, -2), keepdims=True) + jnp.maximum(unused, 0) / channels
    kept = jnp.where(emptied, 0, perturbation)
    return jnp.where(filled, _unit_channels(shape) * jnp.sqrt(energy), kept).astype(perturbation.dtype)


class _Window(NamedTuple):
    """Where each pixel lies, counted from the top left corner of a window, and whether it is inside the window."""

    down: Int[Array, "*n h 1 1"]
    across: Int[Array, "*n 1 w 1"]
    inside: Bool[Array, "*n h w 1"]


def _window(place: Float[Array, "*n 1 1 1 2"], shape: tuple[int, ...], side: Int[Array, ""]) -> _Window:
    """A window at a place, drawn from [0, 1), of where it can be in images of this shape."""
    height, width = shape[-3:-1]
    row = jnp.floor(place[..., 0] * (height - side + 1)).astype(jnp.int32)
    column = jnp.floor(place[..., 1] * (width - side + 1)).astype(jnp.int32)
    down = jnp.arange(height)[:, None, None] - row
    across = jnp.arange(width)[:, None] - column
    return _Window(down, across, (down >= 0) & (down < side) & (across >= 0) & (across < side))


def _pyramid(
    row: Int[Array, "..."], column: Int[Array, "..."], height: Int[Array, ""], width: Int[Array, "..."], largest: int
) -> Float[Array, "..."]:
    """sum of 1 / j^2 over j from m + 1 to height // 2 + 1, at m pixels from the middle of a rectangle (the larger of
    the two coordinates). Height and width may be traced; no height is above `largest`."""
    sums = jnp.cumsum(1 / jnp.square(jnp.arange(1, largest // 2 + 2)))
    sums = jnp.concatenate([jnp.zeros(1), sums])
    top = height // 2 + 1
    away = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
    return sums[top] - sums[jnp.clip(away, 0, top)]


def _unit_channels(perturbation: Float[Array, "*n h w 3"]) -> Float[Array, "*n h w 3"]:
    """Each channel of each image of length 1, or 0 where it is 0."""
    length = jnp.sqrt(jnp.sum(jnp.square(perturbation), axis=(-3, -2), keepdims=True))
    return perturbation / jnp.where(length > 0, length, 1)

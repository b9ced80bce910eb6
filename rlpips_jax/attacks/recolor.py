"""ReColorAdv, a smooth map of colours in place of noise (Laidlaw and Feizi, "Functional adversarial attacks", 2019).

The paper maps CIELUV and penalises maps that are not smooth; here the map is one of RGB, so that its bound is one in
l-inf beside those of `pgd`, and it is smooth by construction.
"""

from dataclasses import dataclass, field
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import Radius, as_floats, check_counts
from rlpips_jax.attacks.keys import Key, as_key
from rlpips_jax.attacks.objectives import Objective, as_pytree
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.search import search
from rlpips_jax.attacks.warp import Warp, checked_smoothness
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange

NODES = 16
"""Nodes of the grid along each channel; the paper has 16 to 32."""
SMOOTHNESS = 1.0
"""Standard deviation in nodes of the Gaussian that smooths maps, where none is given."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RecolorResult(AttackResult):
    """An `AttackResult` and the map that made its images.

    Attributes:
        flow: `(n, ..., nodes, nodes, nodes, 3)`, what is added to the colour of each node of a grid over red, green and
            blue, from black to white; between nodes it is interpolated trilinearly.
    """

    flow: Float[Array, "n ... r g b 3"]


def recolor(
    objective: Objective,
    images: Images,
    *,
    key: Key,
    epsilon: Radius,
    smoothness: ArrayLike = SMOOTHNESS,
    steps: int,
    restarts: int = 1,
    value_range: ValueRange = UNIT_RANGE,
) -> RecolorResult:
    """Maximises an objective by changing every colour of an image to another one, wherever in the image it is.

    What varies is a change of colour at each node of a 16 x 16 x 16 grid over RGB, of at most epsilon in each channel.
    It is smoothed by a Gaussian whose weights sum to 1 and interpolated trilinearly, so no pixel changes by more; what
    leaves the range of values is cut off. Steps are signs of the gradient, 2.5 epsilon / steps long, from a smooth map
    drawn at random.

    Args:
        objective: as in `pgd`.
        images: `(n, ..., h, w, 3)`, uint8 or floats in `value_range`. Each image has its own map.
        key: a key of `jax.random`.
        epsilon: the largest change of a channel, in the units of `value_range`. One number, or one for each example.
        smoothness: standard deviation of the Gaussian, in nodes; 0 smooths nothing. It takes the place of the paper's
            penalty, and matters where an image has many colours: the less smooth, the more a map can do.
        steps: gradients that are computed.
        restarts: starts that are computed side by side, in as many times the memory.
        value_range: black and white of the images.

    Returns:
        A `RecolorResult`.

    Raises:
        AttackError: an argument makes no sense; says which and what would.
        ImageError: the images break the convention of `rlpips_jax.images`.
    """
    images, value_range = as_floats(images, value_range)
    check_counts(steps=steps, restarts=restarts)
    epsilon = balls.radius_in("linf", epsilon, images, value_range)
    colours = _Colours(
        images=images,
        epsilon=epsilon,
        smoothness=checked_smoothness(smoothness, images, units="nodes"),
        step_size=2.5 * epsilon / steps,
        random_start=True,
        value_range=value_range,
    )
    return cast(
        RecolorResult,
        search(as_pytree(objective, value_range), images, colours, key=as_key(key), steps=steps, restarts=restarts),
    )


def interpolated(grid: Float[Array, "*n r g b c"], colours: Float[Array, "*n h w 3"]) -> Float[Array, "*n h w c"]:
    """A grid of values over the unit cube, interpolated trilinearly at colours in [0, 1]."""
    *leading, size, _, _, channels = grid.shape
    positions = (size - 1) * jax.lax.stop_gradient(colours)
    low = jnp.floor(positions)
    share = positions - low
    # Each node with its seven upper neighbours, so that a colour needs one look-up.
    padded = jnp.pad(grid, [(0, 0)] * len(leading) + [(0, 1)] * 3 + [(0, 0)], mode="edge")
    corners = list(np.ndindex(2, 2, 2))
    shifted = [padded[..., i : i + size, j : j + size, k : k + size, :] for i, j, k in corners]
    cells = jnp.concatenate(shifted, axis=-1).reshape(*leading, size**3, 8 * channels)
    index = low.astype(jnp.int32) @ jnp.asarray([size * size, size, 1])
    found = jnp.take_along_axis(cells, index.reshape(*leading, -1, 1), axis=-2)
    found = found.reshape(*index.shape, 8, channels)
    weights = [jnp.prod(jnp.where(np.array(corner, bool), share, 1 - share), axis=-1) for corner in corners]
    return jnp.sum(found * jnp.stack(weights, axis=-1)[..., None], axis=-2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class _Colours(Warp):
    axes: ClassVar[int] = 3

    value_range: ValueRange = field(metadata={"static": True})

    def shape(self) -> tuple[int, ...]:
        return (*self.images.shape[:-3], NODES, NODES, NODES, 3)

    def length(self, field: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return jnp.abs(field)

    def steepest(self, gradient: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return jnp.sign(gradient)

    def displaced(self, displacement: Float[Array, "n ... r g b 3"]) -> Float[Array, "n ..."]:
        black, white = self.value_range
        change = interpolated(displacement, (self.images - black) / (white - black))
        return jnp.clip(self.images + change, black, white)

    def report(self, result: AttackResult, variable: Float[Array, "n ..."]) -> RecolorResult:
        return RecolorResult(**vars(result), flow=self.displacement(variable))

"""Warps: smooth fields of vectors that displace what an image is made of: its pixels (`spatial`), or their colours
(`recolor`)."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from rlpips_jax.attacks import balls
from rlpips_jax.attacks.arguments import radius_of
from rlpips_jax.attacks.keys import Key
from rlpips_jax.attacks.procedure import Point, Procedure, State
from rlpips_jax.errors import AttackError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class Warp(Procedure):
    """An attack whose variable is a field of vectors on a lattice, no vector longer than epsilon.

    The field is smoothed by a Gaussian whose weights sum to 1, so no vector gets longer, before it displaces anything.
    A subclass says on what lattice it lies, how long a vector is, and what it displaces.

    Attributes:
        images: `(n, ..., h, w, 3)`, floats.
        epsilon: the longest vector, one number or one for each example.
        smoothness: standard deviation of the Gaussian, in steps of the lattice.
        step_size: in the unit of epsilon.
        random_start: whether to start with a smooth field drawn at random, or with 0.
    """

    axes: ClassVar[int]
    """How many the lattice has; they and the vectors' own are the last axes of the field."""

    images: Float[Array, "n ..."]
    epsilon: Float[Array, "..."]
    smoothness: Float[Array, ""]
    step_size: Float[Array, "..."]
    random_start: bool = field(metadata={"static": True})

    def shape(self) -> tuple[int, ...]:
        """That of the field."""
        raise NotImplementedError

    def length(self, field: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Of each vector, or of each component where each has its own bound; broadcasts with the field."""
        raise NotImplementedError

    def steepest(self, gradient: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The direction along which the objective rises most where the longest vector is 1; 0 where the gradient is."""
        raise NotImplementedError

    def displaced(self, displacement: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The images after a displacement."""
        raise NotImplementedError

    def displacement(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The smooth field."""
        return smooth(variable, self.smoothness, axes=self.axes)

    def origin(self) -> Float[Array, "n ..."]:
        return jnp.zeros(self.shape(), self.images.dtype)

    def start(self, key: Key) -> Float[Array, "n ..."]:
        if not self.random_start:
            return self.origin()
        noise = self.displacement(jax.random.normal(key, self.shape(), self.images.dtype))
        longest = jnp.max(self.length(noise), axis=tuple(range(-self.axes - 1, 0)), keepdims=True)
        return balls.per_example(self.epsilon, noise) * noise / longest

    def step(self, state: State, point: Point) -> tuple[State, Float[Array, "n ..."]]:
        stride = balls.per_example(self.step_size, point.variable)
        return state, point.variable + stride * self.steepest(point.at.gradient)

    def project(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        length = self.length(variable)
        radius = balls.per_example(self.epsilon, variable)
        return variable * jnp.minimum(1, radius / jnp.where(length > 0, length, 1))

    def render(self, variable: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        return self.displaced(self.displacement(variable))


def checked_smoothness(smoothness: ArrayLike, images: Float[Array, "n ..."], *, units: str) -> Float[Array, ""]:
    """A standard deviation as an array.

    Raises:
        AttackError: it is not one number, 0 or more.
    """
    deviation = radius_of("smoothness", smoothness, images, units=units)
    if deviation.ndim:
        raise AttackError(f"smoothness must be one number of {units}, got shape {deviation.shape}")
    return deviation


def smooth(field: Float[Array, "..."], deviation: Float[Array, ""], *, axes: int = 2) -> Float[Array, "..."]:
    """Means weighted by a Gaussian over what lies in the lattice.

    Args:
        field: its last axes are those of the lattice and that of the vectors.
        deviation: of the Gaussian, in steps of the lattice.
        axes: how many the lattice has.
    """
    weights = [_weights(size, deviation, field.dtype) for size in field.shape[-1 - axes : -1]]
    before, after = "ijk"[:axes], "xyz"[:axes]
    terms = [f"{new}{old}" for new, old in zip(after, before, strict=True)]
    expression = f"{terms[0]},...{before}v,{','.join(terms[1:])}->...{after}v"
    return jnp.einsum(expression, weights[0], field, *weights[1:], precision="highest")


def _weights(size: int, deviation: Float[Array, ""], dtype: DTypeLike) -> Float[Array, "size size"]:
    """Rows that sum to 1."""
    positions = jnp.arange(size, dtype=dtype)
    # As good as 0, without dividing by it.
    scaled = (positions[:, None] - positions) / jnp.maximum(deviation, 1e-3).astype(dtype)
    return jax.nn.softmax(-jnp.square(scaled) / 2, axis=-1)

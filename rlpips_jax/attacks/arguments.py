"""Arguments that all attacks share: images as floats, counts, radii as arrays or as text."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rlpips_jax.arguments import whole_number
from rlpips_jax.errors import AttackError, ImageError
from rlpips_jax.images import Images, ValueRange, check_images, check_value_range, float_dtype

Radius = ArrayLike | Sequence[float | int]
"""One number, or one for each example."""


def as_floats(images: Images, value_range: ValueRange) -> tuple[Float[Array, "n ..."], ValueRange]:
    """A batch of images as floats in `value_range`; uint8 is scaled to it.

    Raises:
        ImageError: they break the convention of `rlpips_jax.images`, or are not a batch.
    """
    value_range = check_value_range(value_range)
    (images,) = check_images(value_range, images=images)
    if images.ndim < 4:
        raise ImageError(f"images has shape {images.shape}; an attack takes a batch (n, h, w, 3): pass images[None]")
    black, white = value_range
    array = jnp.asarray(images)
    if array.dtype == jnp.uint8:
        array = black + array.astype(jnp.float32) * ((white - black) / 255)
    return jnp.clip(array.astype(float_dtype(array)), black, white), value_range


def check_counts(**counts: int) -> None:
    """Raises an AttackError for a count that is not a whole number of 1 or more."""
    for name, count in counts.items():
        whole_number(name, count, error=AttackError)


def is_known(radius: Radius) -> bool:
    """Whether a radius has values already, because it is not traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(radius))


def radius_of(
    name: str, radius: Radius, images: Float[Array, "n ..."], *, units: str = "value_range"
) -> Float[Array, "..."]:
    """A radius or step as an array: one number, or one for each example.

    Raises:
        AttackError: it has another shape, is negative or is not a number (where it is not traced).
    """
    try:
        array = jnp.asarray(radius, images.dtype)
    except (TypeError, ValueError):
        raise AttackError(f"{name} must be a number, or one for each example, got {radius!r}") from None
    if array.shape not in ((), images.shape[:1]):
        raise AttackError(
            f"{name} must be one number or one for each of the {images.shape[0]} examples, got shape {array.shape}"
        )
    if not is_known(radius):
        return array
    # NumPy, because within a jitted function JAX traces even operations on known values.
    values = np.asarray(radius, float)
    if not np.all(np.isfinite(values) & (values >= 0)):
        raise AttackError(f"{name} must be finite and 0 or more, in the units of {units}, got {radius}")
    return array


def read_radius(text: str) -> float:
    """A radius written as a number or a fraction.

        >>> from rlpips_jax.attacks.arguments import read_radius
        >>> read_radius("0.5"), read_radius("51/255")
        (0.5, 0.2)

    Raises:
        ValueError: it is neither, or not finite.
    """
    numerator, slash, denominator = text.partition("/")
    divisor = float(denominator) if slash else 1.0
    value = float(numerator) / divisor if divisor else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    return value

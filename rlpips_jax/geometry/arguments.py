"""Arguments that averages and paths share, checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlpips_jax.errors import GeometryError
from rlpips_jax.images import check_images, check_value_range


def checked(images: Any, value_range: Any, name: str, metric: Any = None) -> Array | np.ndarray:
    """Images as arrays, values untouched, whatever holds them.

    Raises:
        ImageError: they break the convention of `rlpips_jax.images`, or are too small for the metric.
    """
    limits: dict[str, Any] = {}
    if (minimum := getattr(metric, "minimum_size", None)) is not None:
        limits = {"minimum_size": minimum, "user": getattr(metric, "name", "this metric")}
    return check_images(check_value_range(value_range), **limits, **{name: images})[0]


def unit_range(images: Array | np.ndarray, value_range: Any) -> Float[Array, "..."]:
    """Checked images as a descent has them: floats in [0, 1]."""
    black, white = check_value_range(value_range)
    array = jnp.asarray(images)
    if array.dtype == jnp.uint8:
        return array.astype(jnp.float32) / 255
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return jnp.clip((array - black) / (white - black), 0, 1)


def in_unit_range(images: Any, value_range: Any, name: str, metric: Any = None) -> Float[Array, "..."]:
    """`unit_range` of images that are `checked` first."""
    return unit_range(checked(images, value_range, name, metric), value_range)


def from_unit_range(images: Float[Array, "..."], value_range: Any) -> Float[Array, "..."]:
    """Images in [0, 1] as users get them."""
    black, white = check_value_range(value_range)
    return jnp.clip(black + images * (white - black), black, white)


def check_count(name: str, count: Any, *, least: int = 1, most: int | None = None) -> int:
    """The count; raises a GeometryError where it is no whole number from `least` to `most`."""
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or count < least or (most is not None and count > most):
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise GeometryError(f"{name} must be a whole number, {bounds}, got {count!r}")
    return int(count)


def checked_key(key: Any, drawing: str) -> Any:
    """The key; any where nobody draws.

    Args:
        key: as a user gave it.
        drawing: who needs it; "" if nobody does.

    Raises:
        GeometryError: it is needed, and missing.
    """
    if drawing and key is None:
        raise GeometryError(f"{drawing} draws at random, and needs a key: pass key=jax.random.key(0)")
    return jax.random.key(0) if key is None else key


def check_exponent(exponent: Any) -> float | int:
    """The exponent, as an integer where it is one, whose derivative has no logarithm.

    Raises:
        GeometryError: it is no number of 1 or more.
    """
    try:
        number = float(exponent)
    except (TypeError, ValueError):
        number = float("nan")
    if not 1 <= number < float("inf"):
        raise GeometryError(f"exponent must be a number, 1 or more (2 for squared distances), got {exponent!r}")
    return int(number) if number.is_integer() else number

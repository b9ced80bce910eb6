"""The image convention, stated and checked in one place.

Images are RGB, channels last, with any leading axes: `(h, w, 3)`, `(n, h, w, 3)`, `(b, t, h, w, 3)`.
`uint8` means 0..255, whatever `value_range` says. Floats are read in `value_range`, a pair (black, white),
by default (0, 1). Other types are an error: there is no agreed range for wider integers.

Shape and type are always checked; values are not checked while `jit`, `grad` or `vmap` trace the images.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from rlpips_jax.errors import ImageError, ValueRangeWarning
from rlpips_jax.warning import warn_user

Images = Shaped[Array | np.ndarray, "..."]
"""Images as users hand them in: `(..., h, w, 3)`, uint8 or floating point."""

ValueRange = tuple[float | int, float | int]
"""Black and white, in the units of the images."""

UNIT_RANGE: ValueRange = (0.0, 1.0)
COMMON_RANGES: tuple[ValueRange, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
ROUNDING = 1e-5
"""How far outside the range a value may lie, as a fraction of the range, and still count as rounding."""

OVERSHOOT = 0.25
"""How far values may leave a range, as a fraction of it, and still look as if they were meant to be in it: images
overshoot when they are resized, rendered or restored and not clipped afterwards."""

DARK = 1 / 16
"""An image whose largest value is less than this fraction of white does not look as if it were in that range."""


def check_value_range(value_range: object) -> ValueRange:
    """The range as two floats.

    Raises:
        ImageError: not a pair of finite numbers, the first below the second.
    """
    if isinstance(value_range, tuple | list) and any(isinstance(bound, Tracer) for bound in value_range):
        raise ImageError(
            "value_range is traced: it must be two plain numbers; where you jit a function of it, name it in "
            "static_argnames"
        )
    try:
        black, white = (float(bound) for bound in cast(Any, value_range))
    except (TypeError, ValueError):
        raise ImageError(f"value_range must be a pair (black, white) such as (-1, 1), got {value_range!r}") from None
    if not (np.isfinite(black) and np.isfinite(white) and black < white):
        raise ImageError(f"value_range must be (black, white) with black < white, both finite, got {value_range!r}")
    return black, white


def check_images(
    value_range: ValueRange = UNIT_RANGE,
    *,
    minimum_size: int = 1,
    user: str = "this metric",
    **images: object,
) -> tuple[Array | np.ndarray, ...]:
    """Checks images against the convention and returns them as arrays, values untouched.

    Args:
        value_range: black and white of floating-point images.
        minimum_size: smallest height and width in pixels.
        user: whose minimum size that is, for the message.
        **images: the images, by the name of the argument they came in; all must have one shape.

    Raises:
        ImageError: type, shape, size, range or values are wrong; says what would be right.

    Warns:
        ValueRangeWarning: the values fit the range but look as if they were in another one.
    """
    arrays = dict(zip(images, check_arrays(**images), strict=True))
    for name, array in arrays.items():
        _check_type(name, array)
        _check_shape(name, array, minimum_size, user)
    _check_same_shape(arrays)
    extremes = [
        _check_values(name, array, value_range)
        for name, array in arrays.items()
        if not isinstance(array, Tracer) and array.dtype != np.uint8 and array.size
    ]
    if extremes:
        _warn_if_suspicious(min(e[0] for e in extremes), max(e[1] for e in extremes), value_range)
    return tuple(arrays.values())


def check_arrays(**images: object) -> tuple[Any, ...]:
    """The images as arrays, by the name of the argument they came in; nothing else is checked.

    Raises:
        ImageError: one is not an array, or is a masked one.
    """
    return tuple(_as_array(name, image) for name, image in images.items())


def float_dtype(images: Images) -> Any:
    """What images are computed in: float64 if they are, else float32. Correct under strict promotion of types too."""
    return jnp.float64 if images.dtype == np.float64 else jnp.float32


def to_symmetric(image: Images, value_range: ValueRange, dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Maps images to [-1, 1], the range in which LPIPS is defined: 2 (x - black) / (white - black) - 1.

    Args:
        image: `(..., h, w, 3)`, uint8 or floating point.
        value_range: black and white of floating-point images; uint8 has (0, 255).
        dtype: floating-point type of the result.
    """
    image = jnp.asarray(image)
    black, white = (0.0, 255.0) if image.dtype == jnp.uint8 else value_range
    image = image.astype(dtype)
    if (black, white) == (-1.0, 1.0):
        return image
    return (image - black) * (2.0 / (white - black)) - 1.0


def to_unit(image: Images, value_range: ValueRange, dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Maps images to [0, 1], the range in which E-LPIPS is defined. Arguments as in `to_symmetric`."""
    image = jnp.asarray(image)
    black, white = (0.0, 255.0) if image.dtype == jnp.uint8 else value_range
    image = image.astype(dtype)
    return image if (black, white) == (0.0, 1.0) else (image - black) * (1.0 / (white - black))


def _as_array(name: str, image: Any) -> Array | np.ndarray:
    if isinstance(image, np.ma.MaskedArray):
        raise ImageError(
            f"{name} is a masked array of NumPy, and the values under its mask would be compared: fill them, as in "
            f"{name}.filled(0), or pass the array without its mask and the mask as mask= (True where pixels count), "
            f"where the function takes one: ~numpy.ma.getmaskarray({name}).any(axis=-1)"
        )
    if isinstance(image, jax.Array):
        return image
    if isinstance(image, str | bytes) or not hasattr(image, "__array__"):
        raise ImageError(
            f"{name} must be an array of shape (..., h, w, 3), got {type(image).__name__}; "
            "rlpips_jax.load_image reads a file, numpy.asarray converts a list or a Pillow image"
        )
    array = np.asarray(image)
    # JAX takes no other byte order than the machine's.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_type(name: str, array: Any) -> None:
    if array.dtype == np.uint8 or (jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize <= 8):
        return
    if jnp.issubdtype(array.dtype, jnp.integer):
        advice = "images of 0..255 become bytes with .astype('uint8'); anything else must be scaled to floats"
    else:
        advice = "convert it to uint8 or to floats in value_range"
    raise ImageError(f"{name} has dtype {array.dtype}; images are uint8 (0..255) or floating point: {advice}")


def _check_shape(name: str, array: Any, minimum_size: int, user: str) -> None:
    shape = tuple(array.shape)
    if len(shape) < 3:
        grey = f"; if it is grey, pass numpy.stack([{name}] * 3, axis=-1)" if len(shape) == 2 else ""
        raise ImageError(f"{name} has shape {shape}; an image is (h, w, 3), a batch (n, h, w, 3){grey}")
    if shape[-1] != 3:
        if shape[-3] == 3:
            advice = f"it seems to have its channels first: pass numpy.moveaxis({name}, -3, -1)"
        elif shape[-1] == 1:
            advice = f"grey images must be repeated: pass numpy.repeat({name}, 3, axis=-1)"
        elif shape[-1] == 4:
            advice = f"drop the alpha channel: pass {name}[..., :3]"
        elif len(shape) == 3:
            advice = f"if it is a batch of grey images (n, h, w), pass numpy.stack([{name}] * 3, axis=-1)"
        else:
            advice = "images are RGB, channels last"
        raise ImageError(f"{name} has shape {shape}, so {shape[-1]} channels where 3 are needed; {advice}")
    # Not their minimum: of sizes that are yet unknown, as in an exported program, none is the smaller one.
    if any(side < minimum_size for side in shape[-3:-1]):
        raise ImageError(
            f"{name} is {shape[-3]}x{shape[-2]} pixels; {user} needs at least {minimum_size}x{minimum_size}: "
            "enlarge or pad both images"
        )


def _check_same_shape(arrays: dict[str, Any]) -> None:
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) < 2:
        return
    listing = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
    if len({shape[-3:] for shape in shapes.values()}) > 1:
        raise ImageError(
            f"images differ in size: {listing}; resize or crop them to one height and width first "
            "('rlpips distance' does with --resize 256 --crop 256)"
        )
    raise ImageError(
        f"leading axes differ: {listing}; pair the images one to one (numpy.broadcast_to), or compute the "
        "features of the lone image once and use Metric.between, which broadcasts"
    )


@jax.jit
def _extremes(array: Float[Array, "..."]) -> Float[Array, "2"]:
    """Smallest and largest value; NaN for both if any value is (XLA's own minimum may pass over a NaN)."""
    extremes = jnp.stack([array.min(), array.max()]).astype(jnp.result_type(jnp.float32, array.dtype))
    return jnp.where(jnp.isnan(array).any(), jnp.nan, extremes)


def _check_values(name: str, array: Any, value_range: ValueRange) -> tuple[float, float]:
    """Smallest and largest value; both are NaN if any value is."""
    if isinstance(array, np.ndarray):
        low, high = float(array.min()), float(array.max())
    else:
        with jax.ensure_compile_time_eval():  # A concrete image among traced ones has values too.
            low, high = (float(extreme) for extreme in _extremes(array))
    if not (np.isfinite(low) and np.isfinite(high)):
        kind = "NaN" if np.isnan(low) or np.isnan(high) else "infinity"
        raise ImageError(
            f"{name} contains {kind}; every value must be finite and within value_range={_short(value_range)}"
        )
    if not _fits(low, high, value_range):
        raise ImageError(
            f"{name} has values from {low:.6g} to {high:.6g}, outside value_range={_short(value_range)}; "
            f"{_range_advice(name, low, high, value_range)}"
        )
    return low, high


def _range_advice(name: str, low: float, high: float, value_range: ValueRange) -> str:
    clip = f"numpy.clip({name}, {value_range[0]:g}, {value_range[1]:g})"
    largest = max(-low, high)
    if _fits(low, high, value_range, slack=OVERSHOOT) and largest >= DARK * value_range[1]:
        return f"if these values overshoot the range, as after resizing, clip them: pass {clip}"
    for candidate in COMMON_RANGES:
        if _fits(low, high, candidate) and largest >= DARK * candidate[1]:
            return f"value_range={_short(candidate)} would fit"
    return f"no common range fits: clip the image ({clip}), rescale it, or pass its true value_range"


def _fits(low: float, high: float, value_range: ValueRange, *, slack: float = ROUNDING) -> bool:
    black, white = value_range
    slack *= white - black
    return black - slack <= low and high <= white + slack


def _warn_if_suspicious(low: float, high: float, value_range: ValueRange) -> None:
    """Images in [0, 1] fit (-1, 1) and (0, 255) too, but images of those ranges have darker, or brighter, pixels."""
    if not _fits(low, high, UNIT_RANGE, slack=OVERSHOOT):
        return
    if (value_range == (-1.0, 1.0) and -0.02 < low < 0.1 and high > 0.5) or (value_range == (0.0, 255.0) and high > 0):
        warn_user(
            f"all images lie in [{low:.3g}, {high:.3g}], yet value_range={_short(value_range)} was stated; "
            "if they are in [0, 1], the distance is wrong: pass value_range=(0, 1)",
            ValueRangeWarning,
        )


def _short(value_range: ValueRange) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"

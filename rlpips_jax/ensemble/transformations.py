"""The random transformations of E-LPIPS (Kettunen et al. 2019), as a pytree that both images of a pair share.

Images in [0, 1], `(n, h, w, 3)`, are changed in this order:

1. scale level s in 1..L, L = max(1, min(h, w) // 64), P(s) ~ 1 / s^2: reflected at the borders by a random offset (0 to
   s - 1 before; to a total of (s - 1 + n + s - 1) // s * s), then averaged over s x s boxes;
2. reflected by 7 - o before and o after, o in 0..7 along each axis;
3. flipped along x, along y, along both, or not;
4. transposed, with probability 1/2;
5. their colour channels permuted;
6. each channel multiplied by U(0.2, 1).

Scale level and transposition decide shapes: they are static, and shared by all images of a batch.
"""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from rlpips_jax.arguments import Key, check_key
from rlpips_jax.errors import EnsembleError, ImageError
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, check_value_range, float_dtype, to_unit

SHIFTS = 8
"""Offsets of the second step, along each axis."""
FLIPS = ("x", "y", "both", "none")
PERMUTATIONS = np.array(list(itertools.permutations(range(3))), np.int32)
DARKEST = 0.2
"""The smallest factor of a colour channel."""
PIXELS_A_LEVEL = 64
"""Of the shorter side, for each scale level."""

FIELDS = ("scale_offset", "offset", "flip", "permutation", "color")
"""The fields of a transformation that differ from image to image."""
NUMBERS = 9
"""Uniform numbers per image that decide these fields."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale_offset", "offset", "flip", "permutation", "color"],
    meta_fields=["scale_level", "transpose"],
)
@dataclass(frozen=True)
class Transformation:
    """What is done to each image of a batch; made by `sample_transformations`. A pytree.

    A transformation of one image can be applied to any number of images.

    Attributes:
        scale_level: s, the same for all images.
        scale_offset: `(n, 2)`, rows and columns that are added before, 0 to s - 1.
        offset: `(n, 2)`, o along y and x, 0 to 7.
        flip: `(n,)`, an index into `FLIPS`.
        transpose: the same for all images.
        permutation: `(n, 3)`: channel c becomes what channel `permutation[c]` was.
        color: `(n, 3)`, factors of the channels, in the order after the permutation.
    """

    scale_level: int
    scale_offset: Int[Array, "n 2"]
    offset: Int[Array, "n 2"]
    flip: Int[Array, " n"]
    transpose: bool
    permutation: Int[Array, "n 3"]
    color: Float[Array, "n 3"]


def level_probabilities(height: int, width: int) -> Float[np.ndarray, " levels"]:
    """P(s) of the scale levels 1, 2, ... of images of a size: proportional to 1 / s^2."""
    weights = 1 / np.arange(1, max(1, min(height, width) // PIXELS_A_LEVEL) + 1) ** 2
    return weights / weights.sum()


def sample_transformations(
    key: Key, n: int, h: int, w: int, scale_level: int | None = None, transpose: bool | None = None
) -> Transformation:
    """Draws a transformation for each of n images, independently but for scale level and transposition.

    Args:
        key: a key of `jax.random`.
        n: images.
        h: their height.
        w: their width.
        scale_level: 1 or more; None to draw it, with P(s) ~ 1 / s^2, which needs a key with a value.
        transpose: whether images are transposed; None to draw it, which needs a key with a value.

    Raises:
        EnsembleError: no key, a level that images of this size do not have, or something to be drawn by a traced key.
    """
    key = check_key("a transformation", key, error=EnsembleError)
    probabilities = level_probabilities(h, w)
    if scale_level is None or transpose is None:
        if isinstance(key, Tracer):
            raise EnsembleError(
                "scale_level and transpose decide shapes and cannot be drawn by a traced key: under jit give both, or "
                "draw the transformations outside"
            )
        # Numbers, also in a function that is being traced and closes over the key.
        with jax.ensure_compile_time_eval():
            of_level, of_transpose, _ = jax.random.split(key, 3)
            level = float(jax.random.uniform(of_level, dtype=jnp.float32))
            transposed = bool(jax.random.bernoulli(of_transpose, np.float32(0.5)))
        if scale_level is None:
            scale_level = 1 + int(np.searchsorted(np.cumsum(probabilities[:-1]), level))
        transpose = transposed if transpose is None else transpose
    of_images = jax.random.split(key, 3)[2]
    if not 1 <= scale_level <= len(probabilities):
        raise EnsembleError(f"scale_level is {scale_level}; images of {h}x{w} have 1 to {len(probabilities)}")
    return from_uniform(jax.random.uniform(of_images, (n, NUMBERS), jnp.float32), scale_level, transpose)


def from_uniform(numbers: Float[Array, "n 9"], scale_level: int, transpose: bool) -> Transformation:
    """The transformations that uniform numbers in [0, 1] encode: each number selects among the choices in order.

    Args:
        numbers: three for colours, one each for flip and permutation, two each for offset and scale offset.
        scale_level: of all.
        transpose: of all.
    """

    def choice(numbers: Float[Array, "..."], count: int) -> Int[Array, "..."]:
        return jnp.minimum((numbers * count).astype(jnp.int32), count - 1)

    return Transformation(
        scale_level=scale_level,
        transpose=transpose,
        scale_offset=choice(numbers[:, 7:9], scale_level),
        offset=choice(numbers[:, 5:7], SHIFTS),
        flip=choice(numbers[:, 3], len(FLIPS)),
        permutation=jnp.asarray(PERMUTATIONS)[choice(numbers[:, 4], len(PERMUTATIONS))],
        color=DARKEST + (1 - DARKEST) * numbers[:, :3],
    )


def transform(
    images: Images, transformation: Transformation, *, value_range: ValueRange = UNIT_RANGE
) -> Float[Array, "n i j 3"]:
    """Images after a transformation, in [0, 1].

    Args:
        images: `(n, h, w, 3)`, uint8 or floats in `value_range`.
        transformation: of n images, or of one for all.
        value_range: black and white of floating-point images.

    Raises:
        ImageError: the images break the convention of `rlpips_jax.images`, or are no batch.
        EnsembleError: the transformation is of another number of images, or they are too small to be reflected.
    """
    value_range = check_value_range(value_range)
    (images,) = check_images(value_range, images=images)
    if images.ndim != 4:
        raise ImageError(f"a transformation takes a batch (n, h, w, 3), got {images.shape}: pass images[None]")
    images = jnp.asarray(images)
    units = to_unit(images, value_range, float_dtype(images))
    return transform_units(units, transformation)


def transform_units(images: Float[Array, "n h w 3"], transformation: Transformation) -> Float[Array, "n i j 3"]:
    """`transform`, of images that are in [0, 1] already and checked."""
    n, height, width, _ = images.shape
    count = transformation.flip.shape
    if count not in ((n,), (1,)):
        raise EnsembleError(
            f"the transformation is of {count} images, but there are {n}; give one of ({n},) or of (1,)"
        )
    if min(height, width) < SHIFTS or transformation.scale_level > len(level_probabilities(height, width)):
        raise EnsembleError(
            f"images of {height}x{width} pixels are too small for scale level {transformation.scale_level}, which "
            f"needs {max(SHIFTS, PIXELS_A_LEVEL * (transformation.scale_level > 1) * transformation.scale_level)}"
        )

    def one(image: Float[Array, "h w 3"], *parts: Array) -> Float[Array, "i j 3"]:
        scale_offset, offset, flip, permutation, color = parts
        image = _reduced(image, transformation.scale_level, scale_offset)
        flipped = jnp.stack([(flip == 1) | (flip == 2), (flip == 0) | (flip == 2)])
        for axis in range(2):
            length = image.shape[axis]
            # offset - 7 and on: 7 - offset pixels are reflected before.
            places = jnp.arange(length + SHIFTS - 1) - (SHIFTS - 1) + offset[axis]
            places = _reflected(jnp.where(flipped[axis], places[::-1], places), length)
            image = jnp.take(image, places, axis=axis, mode="clip")
        if transformation.transpose:
            image = image.swapaxes(0, 1)
        factors = jnp.where(permutation[None] == jnp.arange(3)[:, None], color[None], 0)[:, None, None]
        return image[..., 0:1] * factors[0] + image[..., 1:2] * factors[1] + image[..., 2:3] * factors[2]

    parts = (getattr(transformation, field) for field in FIELDS)
    return jax.vmap(one)(images, *(jnp.broadcast_to(part, (n, *part.shape[1:])) for part in parts))


def _reduced(image: Float[Array, "h w 3"], level: int, offset: Int[Array, "2"]) -> Float[Array, "i j 3"]:
    """Averaged over boxes, the first of which begins `offset` before the image."""
    if level == 1:
        return image
    for axis in range(2):
        length = image.shape[axis]
        total = (level - 1 + length + level - 1) // level * level
        image = jnp.take(image, _reflected(jnp.arange(total) - offset[axis], length), axis=axis, mode="clip")
        image = image.reshape(*image.shape[:axis], total // level, level, *image.shape[axis + 1 :]).mean(axis=axis + 1)
    return image


def _reflected(places: Int[Array, " m"], length: int) -> Int[Array, " m"]:
    """Indices of pixels, those outside the axis reflected at its first and last pixel.

    One look-up per axis compiles and runs many times faster than padding, slicing and reversing.
    """
    places = jnp.abs(places)
    return jnp.where(places < length, places, 2 * (length - 1) - places)

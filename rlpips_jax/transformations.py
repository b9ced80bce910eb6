"""The random transformations of E-LPIPS (Kettunen et al. 2019), as a pytree that both images of a pair share.

Images in [0, 1], `(n, h, w, 3)`, are changed in this order:

1. scale level s in 1..L, L = max(1, min(h, w) // 64), P(s) ~ 1 / s^2: reflected at the borders by a random offset (0 to
   s - 1 before; to a total of (s - 1 + n + s - 1) // s * s), then averaged over s x s boxes;
2. reflected by 7 - o before and o after, o in 0..7 along each axis;
3. flipped along x, along y, along both, or not;
4. transposed, with probability 1/2;
5. their colour channels permuted;
6. each channel multiplied by U(0.2, 1).

Scale level and transposition decide shapes: they are static, and one for all images of a batch.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlpips_jax.errors import EnsembleError

SHIFTS = 8
"""Offsets of the second step, along each axis."""
FLIPS = ("x", "y", "both", "none")
PERMUTATIONS = np.array(list(itertools.permutations(range(3))), np.int32)
DARKEST = 0.2
"""The smallest factor of a colour channel."""
PIXELS_A_LEVEL = 64
"""Of the shorter side, for each scale level."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scale_offset", "offset", "flip", "permutation", "color"],
    meta_fields=["scale_level", "transpose"],
)
@dataclass(frozen=True)
class Transformation:
    """What is done to each image of a batch; made by `sample_transformations`.

    Attributes:
        scale_level: s, one for all.
        transpose: one for all.
        scale_offset: `(n, 2)`, rows and columns that are added before, 0 to s - 1.
        offset: `(n, 2)`, o along y and x, 0 to 7.
        flip: `(n,)`, an index into `FLIPS`.
        permutation: `(n, 3)`: channel c becomes what channel `permutation[c]` was.
        color: `(n, 3)`, factors of the channels, in the order after the permutation.
    """

    scale_level: int
    transpose: bool
    scale_offset: Int[Array, "n 2"]
    offset: Int[Array, "n 2"]
    flip: Int[Array, " n"]
    permutation: Int[Array, "n 3"]
    color: Float[Array, "n 3"]


def level_probabilities(height: int, width: int) -> Float[np.ndarray, " levels"]:
    """P(s) of the scale levels 1, 2, ... of images of a size: proportional to 1 / s^2."""
    weights = 1 / np.arange(1, max(1, min(height, width) // PIXELS_A_LEVEL) + 1) ** 2
    return weights / weights.sum()


def transform(images: Float[Array, "n h w 3"], transformation: Transformation) -> Float[Array, "n i j 3"]:
    """Images in [0, 1] after a transformation, in [0, 1] still.

    Raises:
        EnsembleError: the transformation is of another number of images, or they are too small to be reflected.
    """
    n, height, width, _ = images.shape
    if transformation.flip.shape != (n,):
        raise EnsembleError(f"there are {n} images, and transformations of {transformation.flip.shape} of them")
    if min(height, width) < SHIFTS or min(height, width) < transformation.scale_level:
        raise EnsembleError(f"images of {height}x{width} are too small for E-LPIPS; {SHIFTS}x{SHIFTS} is the least")

    def one(image: Float[Array, "h w 3"], *parts: Array) -> Float[Array, "i j 3"]:
        scale_offset, offset, flip, permutation, color = parts
        image = _reduced(image, transformation.scale_level, scale_offset)
        height, width, _ = image.shape
        border = SHIFTS - 1
        image = jnp.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect")
        image = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height + border, width + border, 3))
        image = jnp.where((flip == 0) | (flip == 2), image[:, ::-1], image)
        image = jnp.where((flip == 1) | (flip == 2), image[::-1], image)
        if transformation.transpose:
            image = image.swapaxes(0, 1)
        return jnp.take(image, permutation, axis=-1) * color

    fields = ("scale_offset", "offset", "flip", "permutation", "color")
    return jax.vmap(one)(images, *(getattr(transformation, field) for field in fields))


def _reduced(image: Float[Array, "h w 3"], level: int, offset: Int[Array, "2"]) -> Float[Array, "i j 3"]:
    """Averaged over boxes, whose first begins `offset` before the image."""
    if level == 1:
        return image
    totals = [(level - 1 + length + level - 1) // level * level for length in image.shape[:2]]
    around = [(level - 1, total - length) for total, length in zip(totals, image.shape[:2], strict=True)]
    padded = jnp.pad(image, (*around, (0, 0)), mode="reflect")
    start = (level - 1 - offset[0], level - 1 - offset[1], 0)
    cut = jax.lax.dynamic_slice(padded, start, (*totals, 3))
    boxes = cut.reshape(totals[0] // level, level, totals[1] // level, level, 3)
    return boxes.mean(axis=(1, 3))

"""Distances of pixels to compare perceptual ones with: `--metric benchmarks.pixel_metrics:L2`, or `SSIM`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_images, to_unit

WINDOW = jnp.exp(-0.5 * (jnp.arange(-5, 6) / 1.5) ** 2)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Pixels:
    """Features that are the images themselves, in [0, 1]."""

    name: str
    minimum_size: int = 1

    @property
    def signature(self) -> str:
        return self.name

    def features(self, images: Images, *, value_range: ValueRange = UNIT_RANGE) -> Float[Array, "... h w 3"]:
        (images,) = check_images(value_range, images=images, minimum_size=self.minimum_size, user=self.name)
        return to_unit(images, value_range)


@jax.tree_util.register_static
@dataclass(frozen=True)
class L2(Pixels):
    """The mean squared difference: it orders images as its root does, and has a gradient everywhere."""

    name: str = "pixel-l2"

    def between(self, features: Float[Array, "..."], others: Float[Array, "..."]) -> Float[Array, "..."]:
        """The distance of images; leading axes broadcast."""
        return jnp.mean(jnp.square(features - others), axis=(-3, -2, -1))


@jax.tree_util.register_static
@dataclass(frozen=True)
class SSIM(Pixels):
    """1 - SSIM (Wang et al. 2004), the mean over channels and over positions where the whole window fits.

    The window is Gaussian, 11x11 with sigma 1.5; the constants are .01^2 and .03^2.
    """

    name: str = "ssim"
    minimum_size: int = 11

    def between(self, features: Float[Array, "..."], others: Float[Array, "..."]) -> Float[Array, "..."]:
        """The distance of images; leading axes broadcast."""
        x, y = jnp.broadcast_arrays(features, others)
        means = [_windowed(each) for each in (x, y)]
        squares = [_windowed(each * each) - mean * mean for each, mean in zip((x, y), means, strict=True)]
        covariance = _windowed(x * y) - means[0] * means[1]
        structure = (2 * covariance + 9e-4) / (squares[0] + squares[1] + 9e-4)
        luminance = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
        return jnp.mean(1 - luminance * structure, axis=(-3, -2, -1))


def _windowed(images: Float[Array, "... h w c"]) -> Float[Array, "... i j c"]:
    """The weighted mean of each window: products with two banded matrices, whose gradients are products too."""
    rows, columns = (_bands(length) for length in images.shape[-3:-1])
    return jnp.einsum("ih,jw,...hwc->...ijc", rows, columns, images, precision="highest")


def _bands(length: int) -> Float[Array, "i n"]:
    """The window at each place where it fits, one place a row."""
    weights = WINDOW / WINDOW.sum()
    places = jnp.arange(length)[None] - jnp.arange(length - len(weights) + 1)[:, None]
    return jnp.where((places >= 0) & (places < len(weights)), weights[places % len(weights)], 0)

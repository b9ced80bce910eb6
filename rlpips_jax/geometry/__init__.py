"""The geometry that a distance gives the space of images: averages, and shortest paths.

    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> metric = rl.load("lpips-tiny")
    >>> images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    >>> rl.geometry.average(images, metric, steps=2).image.shape  # one image, near to all
    (32, 32, 3)
    >>> rl.geometry.geodesic(images[0], images[1], 4, metric, steps=2).frames.shape  # from one image to the other
    (4, 32, 32, 3)

Both minimise a sum of squared distances by gradient descent, first on reduced images, then on finer ones.
"""

from rlpips_jax.geometry.average import STARTS, Average, average
from rlpips_jax.geometry.comparison import distances
from rlpips_jax.geometry.descent import BLOCK, LATE, PUBLISHED, STEPS, Progress, Schedule, published_rate
from rlpips_jax.geometry.geodesic import Geodesic, crossfade, geodesic

__all__ = [
    "BLOCK",
    "LATE",
    "PUBLISHED",
    "STARTS",
    "STEPS",
    "Average",
    "Geodesic",
    "Progress",
    "Schedule",
    "average",
    "crossfade",
    "distances",
    "geodesic",
    "published_rate",
]

"""The geometry that a distance gives the space of images: averages, and shortest paths.

    result = rl.geometry.average(images, metric)                   # one image, near to all
    result = rl.geometry.geodesic(a, b, 9, metric)                 # frames that lead from one image to the other

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

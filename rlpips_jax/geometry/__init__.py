"""The geometry that a distance gives the space of images: averages and shortest paths.

    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> metric = rl.load("lpips-tiny")
    >>> images = np.random.default_rng(0).random((3, 32, 32, 3), np.float32)
    >>> descent = rl.geometry.Descent(steps=2)
    >>> rl.geometry.average(images, metric, descent=descent).image.shape  # one image close to all of them
    (32, 32, 3)
    >>> rl.geometry.geodesic(images[0], images[1], 4, metric, descent=descent).frames.shape  # from one to the other
    (4, 32, 32, 3)

Both minimise a sum of squared distances by gradient descent, first on reduced images, then on finer ones.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Two functions have the names of their modules; loaded here, they are not hidden by a later import of these.
for _name in __all__:
    __getattr__(_name)

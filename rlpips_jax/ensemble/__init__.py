"""E-LPIPS: the expectation of a distance over random transformations and dropout (Kettunen et al. 2019).

    d(x, y) = E over T and masks of LPIPS_net(T x, T y)

Both images of a pair, and all images compared with one reference, get the same transformation and the same masks.

    >>> import jax
    >>> import rlpips_jax as rl
    >>> e = rl.load("elpips-tiny")  # as "elpips-squeeze", without a download
    >>> x, y = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3))
    >>> rl.distance(x, y, e, key=jax.random.key(1), samples=8).shape
    (3,)

An image's distances under a network are those of the transposed image under the network with transposed kernels: that
is how transpositions are computed, so that they change no shape. Each scale level has its own sizes, and so its own
program; samples fall on levels in fixed numbers, and only where there are too few of them is a level drawn inside.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

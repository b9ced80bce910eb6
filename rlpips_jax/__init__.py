"""Robust perceptual image distances in JAX: pure functions that jit, grad, vmap and shard.

    >>> import jax
    >>> import rlpips_jax as rl
    >>> x, y = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3))
    >>> m = rl.load("lpips-tiny")  # needs no download; the default metric is "lpips-alex"
    >>> rl.distance(x, y, m).shape
    (3,)
    >>> gradient = jax.grad(lambda y: rl.distance(x, y, m).mean())(y)
    >>> same = rl.distance(2 * x - 1, 2 * y - 1, m, value_range=(-1, 1))  # floats in another range must say so

Images are RGB, channels last, with any leading axes; `rlpips_jax.images` states the convention.
"""

import lazy_loader

from rlpips_jax._version import __version__ as __version__

# JAX takes a second and 100 MB to import: the processes that only read images never do. `__init__.pyi` lists the names.
_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "LPIPS":
        raise AttributeError(
            "rlpips_jax has no LPIPS: a metric is rlpips_jax.load('lpips-alex'), called as m(x, y) on "
            "images (n, h, w, 3) in [0, 1]; docs/coming-from.md has the rest"
        )
    return _attribute(name)

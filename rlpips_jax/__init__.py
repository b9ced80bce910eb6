"""Robust perceptual image distances in JAX: pure functions that jit, grad, vmap and shard.

    import rlpips_jax as rl

    d = rl.distance(x, y)                          # "lpips-alex"
    m = rl.load("lpips-vgg")                       # a Metric: a pytree, parameters inside
    d = rl.distance(x, y, m, value_range=(-1, 1))

Images are RGB, channels last, with any leading axes; `rlpips_jax.images` states the convention.
"""

import lazy_loader

from rlpips_jax._version import __version__ as __version__

# JAX takes a second and 100 MB to import: the processes that only read images never do. `__init__.pyi` lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Attacks: the worst that a bounded change of images can do to a number.

    >>> import jax
    >>> import rlpips_jax as rl
    >>> metric = rl.load("lpips-tiny")
    >>> reference, change = jax.random.uniform(jax.random.key(0), (2, 3, 32, 32, 3))
    >>> closer, farther = 0.8 * reference + 0.2 * change, 0.7 * reference + 0.3 * change
    >>> objective = rl.attacks.ranking(metric, reference, closer, farther)  # above 0: the order is reversed
    >>> result = rl.attacks.pgd(objective, closer, key=jax.random.key(1), epsilon=8 / 255, steps=5)
    >>> bool((result.after > result.before).all()), bool((result.linf < 8.01 / 255).all())
    (True, True)

Every attack is a pure function that maximises an objective, one number for each example. It is compiled to one program,
which is used again for other images, parameters and radii of the same shapes. Radii are in the units of `value_range`;
bounds of the perceptual attacks are perceptual distances, the square roots of a metric's. `ATTACKS` lists them all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
# Importing a module binds its name, which many functions share, in this package: the functions are bound over that.
for _name in __all__:
    __getattr__(_name)

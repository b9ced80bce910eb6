"""How well a metric agrees with judgments, and how far it can be trusted.

    >>> import functools
    >>> import jax
    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> metric = rl.load("lpips-tiny")
    >>> rl.save_image("photograph.png", np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    >>> triplets = rl.evaluation.ordinal(".", 4, size=32)  # from a folder of photographs; or read(...), crossed(...)
    >>> attack = functools.partial(rl.attacks.pgd, steps=2)
    >>> natural, attacked = rl.evaluation.evaluate(metric, triplets, attack, [2 / 255], batch=4)
    >>> attacked.scores.two_afc.mean <= natural.scores.two_afc.mean
    True
    >>> smoothing = rl.evaluation.Smoothing(sigma=0.1, samples=20)
    >>> proof = rl.evaluation.certify_triplets(metric, triplets, smoothing, key=jax.random.key(0))

`sources` says where judged triplets come from, `triplets` and `triplet_files` make, read and write them, `scores` are
pure functions of distances and judgments, `measurement` attacks, `certification` proves, and triplets are made with
`distortions` and `patches`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Distances of sets of image files of any size.

    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    >>> for folder, image in zip(("originals", "decoded"), images):
    ...     rl.save_image(f"{folder}/a.png", image)
    >>> pairs = rl.scoring.pairs_in_folders("originals", "decoded")
    >>> metric = rl.load("lpips-tiny")
    >>> for result in rl.scoring.score(pairs, metric, out="scores.jsonl", workers=1):
    ...     print(result.image, result.distance > 0, result.error)
    a.png True None

Run again after an interruption, `score` goes on with the file where it stood.
"""

import lazy_loader

# The processes that read files import `readers` and nothing that needs JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

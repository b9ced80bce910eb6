"""Distances of sets of image files of any size.

    pairs = rl.scoring.pairs_in_folders("originals", "decoded")
    for result in rl.scoring.score(pairs, rl.load("lpips-alex"), out="scores.jsonl"):
        print(result.image, result.distance, result.error)

Run again after an interruption, `score` goes on with the file where it stood.
"""

import lazy_loader

# The processes that read files import `readers` and nothing that needs JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

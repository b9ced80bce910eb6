"""How well a metric agrees with judgments, and how far it can be trusted.

    >>> import functools
    >>> import jax
    >>> import numpy as np
    >>> import rlpips_jax as rl
    >>> metric = rl.load("lpips-tiny")
    >>> rl.save_image("photograph.png", np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    >>> triplets = rl.evaluation.ordinal(".", 4, size=32)  # of a folder of photographs; or read(...), crossed(...)
    >>> attack = functools.partial(rl.attacks.pgd, steps=2)
    >>> natural, attacked = rl.evaluation.evaluate(metric, triplets, attack, [2 / 255], batch=4)
    >>> attacked.scores.two_afc.mean <= natural.scores.two_afc.mean
    True
    >>> proof = rl.evaluation.certify_triplets(metric, triplets, key=jax.random.key(0), sigma=0.1, samples=20)

`triplets` and `triplet_files` make, read and write judged triplets, `scores` are pure functions of distances and
judgments, `measurement` attacks, `certification` proves, `distortions` and `patches` are what triplets are made of.
"""

from rlpips_jax.evaluation.certification import (
    Certificate,
    abstention_rate,
    certified_accuracy,
    certify,
    certify_triplets,
)
from rlpips_jax.evaluation.measurement import Evaluation, Score, Scores, evaluate, shift_robustness
from rlpips_jax.evaluation.placement import over_all_devices
from rlpips_jax.evaluation.scores import (
    best_two_afc_score,
    bootstrap_interval,
    flip_rate,
    jnd_average_precision,
    majority_accuracy,
    two_afc_score,
)
from rlpips_jax.evaluation.sources import read
from rlpips_jax.evaluation.triplet_files import read_bapps, read_judgments, read_npz, write_bapps, write_npz
from rlpips_jax.evaluation.triplets import IndexedTriplets, Triplets, crossed, ordinal, triplet_distances

__all__ = [
    "Certificate",
    "Evaluation",
    "IndexedTriplets",
    "Score",
    "Scores",
    "Triplets",
    "abstention_rate",
    "best_two_afc_score",
    "bootstrap_interval",
    "certified_accuracy",
    "certify",
    "certify_triplets",
    "crossed",
    "evaluate",
    "flip_rate",
    "jnd_average_precision",
    "majority_accuracy",
    "ordinal",
    "over_all_devices",
    "read",
    "read_bapps",
    "read_judgments",
    "read_npz",
    "shift_robustness",
    "triplet_distances",
    "two_afc_score",
    "write_bapps",
    "write_npz",
]

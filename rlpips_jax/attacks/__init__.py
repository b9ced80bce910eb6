"""Attacks: the worst that a bounded change of images can do to a number.

    objective = rl.attacks.ranking(metric, reference, closer, farther)       # above 0: the order is reversed
    result = rl.attacks.pgd(objective, closer, key=jax.random.key(0), epsilon=2 / 255, steps=20)
    result.adversarial, result.success

Every attack is a pure function that maximises an objective, a number for each example, compiled as one program that is
used again for other images, parameters and radii of the same shapes. Radii are in the units of `value_range`; bounds of
the perceptual attacks are perceptual distances, square roots of a metric's.
"""

from rlpips_jax.attacks.apgd import apgd
from rlpips_jax.attacks.combination import Attack, worst_case, worst_of
from rlpips_jax.attacks.distort import distort
from rlpips_jax.attacks.expectations import EnsembleObjective, Randomness, expected_distance_from, expected_ranking
from rlpips_jax.attacks.impostor import ImpostorResult, impostor
from rlpips_jax.attacks.lagrangian import fast_lagrangian, lagrangian
from rlpips_jax.attacks.noise import noise
from rlpips_jax.attacks.objectives import (
    ATTACKED,
    STILL,
    Classification,
    DistanceFrom,
    Negated,
    Objective,
    Randomised,
    Ranking,
    attacked_images,
    classification,
    distance_from,
    negated,
    randomised,
    ranking,
    ranking_of_features,
    with_moved,
)
from rlpips_jax.attacks.perceptual_bound import (
    PerceptualAttackResult,
    perceptual_distance,
    project_perceptual,
)
from rlpips_jax.attacks.perceptual_pgd import perceptual_pgd
from rlpips_jax.attacks.pgd import pgd
from rlpips_jax.attacks.result import AttackResult
from rlpips_jax.attacks.semantic import SemanticSimilarity, semantic, semantic_similarity
from rlpips_jax.attacks.spatial import SpatialResult, spatial
from rlpips_jax.attacks.square import square
from rlpips_jax.attacks.triplets import TripletAttackResult, TripletDistances, attack_triplets

__all__ = [
    "ATTACKED",
    "STILL",
    "Attack",
    "AttackResult",
    "Classification",
    "DistanceFrom",
    "EnsembleObjective",
    "ImpostorResult",
    "Negated",
    "Objective",
    "PerceptualAttackResult",
    "Randomised",
    "Randomness",
    "Ranking",
    "SemanticSimilarity",
    "SpatialResult",
    "TripletAttackResult",
    "TripletDistances",
    "apgd",
    "attack_triplets",
    "attacked_images",
    "classification",
    "distance_from",
    "distort",
    "expected_distance_from",
    "expected_ranking",
    "fast_lagrangian",
    "impostor",
    "lagrangian",
    "negated",
    "noise",
    "perceptual_distance",
    "perceptual_pgd",
    "pgd",
    "project_perceptual",
    "randomised",
    "ranking",
    "ranking_of_features",
    "semantic",
    "semantic_similarity",
    "spatial",
    "square",
    "with_moved",
    "worst_case",
    "worst_of",
]

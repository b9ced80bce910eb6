from .apgd import apgd as apgd
from .attack_triplets import (
    TripletAttackResult as TripletAttackResult,
    TripletDistances as TripletDistances,
    attack_triplets as attack_triplets,
)
from .distort import distort as distort
from .expectations import (
    EnsembleObjective as EnsembleObjective,
    Randomness as Randomness,
    expected_distance_from as expected_distance_from,
    expected_ranking as expected_ranking,
)
from .fast_lagrangian import fast_lagrangian as fast_lagrangian
from .first_reversal import first_reversal as first_reversal
from .impostor import (
    ImpostorResult as ImpostorResult,
    impostor as impostor,
)
from .keys import Key as Key
from .lagrangian import lagrangian as lagrangian
from .minimum import (
    MinimumResult as MinimumResult,
    minimum as minimum,
)
from .noise import noise as noise
from .objectives import (
    ATTACKED as ATTACKED,
    STILL as STILL,
    Classification as Classification,
    Directed as Directed,
    DistanceFrom as DistanceFrom,
    Objective as Objective,
    Randomised as Randomised,
    Ranking as Ranking,
    attacked_images as attacked_images,
    classification as classification,
    directed as directed,
    distance_from as distance_from,
    negated as negated,
    randomised as randomised,
    ranking as ranking,
    ranking_of_features as ranking_of_features,
    with_moved as with_moved,
)
from .perceptual_pgd import perceptual_pgd as perceptual_pgd
from .pgd import pgd as pgd
from .procedure import (
    Evaluation as Evaluation,
    InBall as InBall,
    Point as Point,
    Procedure as Procedure,
)
from .project_perceptual import (
    PerceptualAttackResult as PerceptualAttackResult,
    perceptual_distance as perceptual_distance,
    project_perceptual as project_perceptual,
)
from .recolor import (
    RecolorResult as RecolorResult,
    recolor as recolor,
)
from .result import AttackResult as AttackResult
from .search import search as search
from .semantic import (
    SemanticSimilarity as SemanticSimilarity,
    semantic as semantic,
    semantic_similarity as semantic_similarity,
)
from .shift import (
    ShiftResult as ShiftResult,
    shift as shift,
)
from .spatial import (
    SpatialResult as SpatialResult,
    spatial as spatial,
)
from .square import square as square
from .table import (
    ATTACKS as ATTACKS,
    AttackEntry as AttackEntry,
    union as union,
)
from .worst_case import (
    Attack as Attack,
    worst_case as worst_case,
)
from .worst_of import worst_of as worst_of

from .ensemble import (
    ESTIMATORS as ESTIMATORS,
    Ensemble as Ensemble,
    EnsembleDraws as EnsembleDraws,
    FeaturesOf as FeaturesOf,
    KEEP as KEEP,
    SAMPLES as SAMPLES,
    check_samples as check_samples,
    distance_under as distance_under,
    distances as distances,
)
from .inference import Comparison as Comparison, Estimate as Estimate, compare as compare, estimate as estimate
from .transformations import (
    Transformation as Transformation,
    level_probabilities as level_probabilities,
    sample_transformations as sample_transformations,
    transform as transform,
)

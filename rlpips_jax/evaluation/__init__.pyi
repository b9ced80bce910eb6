from . import distortions as distortions, sources as sources
from .certification import (
    Certificate as Certificate,
    Smoothing as Smoothing,
    abstention_rate as abstention_rate,
    certified_accuracy as certified_accuracy,
    certify as certify,
    certify_triplets as certify_triplets,
    draws_needed as draws_needed,
)
from .certify_distance import DistanceCertificate as DistanceCertificate, certify_distance as certify_distance
from .judged_pairs import JudgedPairs as JudgedPairs
from .measurement import (
    Conditions as Conditions,
    Evaluation as Evaluation,
    Score as Score,
    Scores as Scores,
    evaluate as evaluate,
    shift_robustness as shift_robustness,
)
from .nights import read_nights as read_nights
from .pair_measurement import (
    PairEvaluation as PairEvaluation,
    evaluate_pairs as evaluate_pairs,
)
from .pair_sources import read_pairs as read_pairs
from .placement import over_all_devices as over_all_devices
from .reversal_radii import (
    Radii as Radii,
    RadiusSummary as RadiusSummary,
    reversal_radii as reversal_radii,
    summarise as summarise,
)
from .scores import (
    best_two_afc_score as best_two_afc_score,
    bootstrap_interval as bootstrap_interval,
    credit_interval as credit_interval,
    flip_rate as flip_rate,
    jnd_average_precision as jnd_average_precision,
    majority_accuracy as majority_accuracy,
    two_afc_score as two_afc_score,
)
from .sources import read as read
from .triplet_files import (
    read_bapps as read_bapps,
    read_judgments as read_judgments,
    read_npz as read_npz,
    write_bapps as write_bapps,
    write_npz as write_npz,
)
from .triplets import (
    IndexedTriplets as IndexedTriplets,
    Triplets as Triplets,
    crossed as crossed,
    ordinal as ordinal,
    triplet_distances as triplet_distances,
)

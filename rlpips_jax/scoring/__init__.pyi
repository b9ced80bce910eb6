from .all_pairs import AllPairs as AllPairs
from .clusters import Resources as Resources, score_dataset as score_dataset, score_on_cluster as score_on_cluster
from .estimates import Sampling as Sampling
from .file_scores import Scoring as Scoring, score as score
from .mean import Mean as Mean, Summary as Summary, filled as filled
from .pairs import (
    Pair as Pair,
    Result as Result,
    pairs_in_folders as pairs_in_folders,
    pairs_in_list as pairs_in_list,
    pairs_of_frames as pairs_of_frames,
)
from .readers import Reading as Reading

__all__: list[str]

from .all_pairs import AllPairs as AllPairs
from .file_scores import score as score
from .mean import Mean as Mean, Summary as Summary, filled as filled
from .pairs import (
    Pair as Pair,
    Result as Result,
    pairs_in_folders as pairs_in_folders,
    pairs_in_list as pairs_in_list,
)

__all__: list[str]

from . import (
    attacks as attacks,
    backbones as backbones,
    distances as distances,
    ensemble as ensemble,
    evaluation as evaluation,
    exported as exported,
    files as files,
    geometry as geometry,
    images as images,
    judgment as judgment,
    loading as loading,
    ops as ops,
    reports as reports,
    scoring as scoring,
    weights as weights,
)
from ._version import __version__ as __version__
from .distances.distance import (
    distance as distance,
    distance_map as distance_map,
    layer_distances as layer_distances,
)
from .distances.embedding import Embedding as Embedding
from .distances.lpips import Lpips as Lpips
from .distances.pairwise import pairwise as pairwise
from .distances.protocol import Metric as Metric, RandomMetric as RandomMetric
from .ensemble.ensemble import Ensemble as Ensemble
from .ensemble.inference import (
    Comparison as Comparison,
    Estimate as Estimate,
    compare as compare,
    estimate as estimate,
)
from .errors import (
    AttackError as AttackError,
    CertificateError as CertificateError,
    DistortionError as DistortionError,
    EnsembleError as EnsembleError,
    GeometryError as GeometryError,
    ImageError as ImageError,
    ImageFileError as ImageFileError,
    ImageFileWarning as ImageFileWarning,
    MetricError as MetricError,
    RlpipsError as RlpipsError,
    SnapshotError as SnapshotError,
    TripletsError as TripletsError,
    UnknownMetric as UnknownMetric,
    UnsafeCheckpoint as UnsafeCheckpoint,
    ValueRangeWarning as ValueRangeWarning,
    WeightsCorrupt as WeightsCorrupt,
    WeightsError as WeightsError,
    WeightsMismatch as WeightsMismatch,
    WeightsNotFound as WeightsNotFound,
)
from .files.decoding import load_image as load_image
from .files.image_files import (
    image_paths as image_paths,
    save_animation as save_animation,
    save_image as save_image,
)

__all__: list[str]

from .loading import load as load, save as save

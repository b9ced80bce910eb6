"""Robust perceptual image distances in JAX: pure functions that jit, grad, vmap and shard.

    import rlpips_jax as rl

    d = rl.distance(x, y)                          # "lpips-alex"
    m = rl.load("lpips-vgg")                       # a Metric: a pytree, parameters inside
    d = rl.distance(x, y, m, value_range=(-1, 1))

Images are RGB, channels last, with any leading axes; `rlpips_jax.images` states the convention.
"""

__version__ = "0.1.0"

from rlpips_jax.errors import (
    DistortionError,
    ImageError,
    ImageFileError,
    ImageFileWarning,
    MetricError,
    RlpipsError,
    UnknownMetric,
    UnsafeCheckpoint,
    ValueRangeWarning,
    WeightsCorrupt,
    WeightsError,
    WeightsMismatch,
    WeightsNotFound,
)
from rlpips_jax.image_files import image_paths, load_image, save_image
from rlpips_jax.metric import Metric, distance, distance_map, layer_distances, load, pairwise

__all__ = [
    "DistortionError",
    "ImageError",
    "ImageFileError",
    "ImageFileWarning",
    "Metric",
    "MetricError",
    "RlpipsError",
    "UnknownMetric",
    "UnsafeCheckpoint",
    "ValueRangeWarning",
    "WeightsCorrupt",
    "WeightsError",
    "WeightsMismatch",
    "WeightsNotFound",
    "__version__",
    "distance",
    "distance_map",
    "image_paths",
    "layer_distances",
    "load",
    "load_image",
    "pairwise",
    "save_image",
]

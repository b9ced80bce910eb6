"""Robust perceptual image distances in JAX: pure functions that jit, grad, vmap and shard.

    import rlpips_jax as rl

    d = rl.distance(x, y)                          # "lpips-alex"
    m = rl.load("lpips-vgg")                       # a Metric: a pytree, parameters inside
    d = rl.distance(x, y, m, value_range=(-1, 1))

Images are RGB, channels last, with any leading axes; `rlpips_jax.images` states the convention.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from rlpips_jax.errors import (
    AttackError,
    CertificateError,
    DistortionError,
    EnsembleError,
    GeometryError,
    ImageError,
    ImageFileError,
    ImageFileWarning,
    MetricError,
    RlpipsError,
    SnapshotError,
    TripletsError,
    UnknownMetric,
    UnsafeCheckpoint,
    ValueRangeWarning,
    WeightsCorrupt,
    WeightsError,
    WeightsMismatch,
    WeightsNotFound,
)

if TYPE_CHECKING:
    from rlpips_jax.decoding import load_image
    from rlpips_jax.ensemble import Ensemble
    from rlpips_jax.estimation import Comparison, Estimate, compare, estimate
    from rlpips_jax.image_files import image_paths, save_animation, save_image
    from rlpips_jax.loading import load
    from rlpips_jax.metric import Metric, distance, distance_map, layer_distances, pairwise

__all__ = [
    "AttackError",
    "CertificateError",
    "Comparison",
    "DistortionError",
    "Ensemble",
    "EnsembleError",
    "Estimate",
    "GeometryError",
    "ImageError",
    "ImageFileError",
    "ImageFileWarning",
    "Metric",
    "MetricError",
    "RlpipsError",
    "SnapshotError",
    "TripletsError",
    "UnknownMetric",
    "UnsafeCheckpoint",
    "ValueRangeWarning",
    "WeightsCorrupt",
    "WeightsError",
    "WeightsMismatch",
    "WeightsNotFound",
    "__version__",
    "compare",
    "distance",
    "distance_map",
    "estimate",
    "image_paths",
    "layer_distances",
    "load",
    "load_image",
    "pairwise",
    "save_animation",
    "save_image",
]

_HOMES = {
    "decoding": ("load_image",),
    "ensemble": ("Ensemble",),
    "estimation": ("Comparison", "Estimate", "compare", "estimate"),
    "image_files": ("image_paths", "save_animation", "save_image"),
    "loading": ("load",),
    "metric": ("Metric", "distance", "distance_map", "layer_distances", "pairwise"),
}
"""Where the public names live that are imported at their first use.

JAX takes a second and 100 MB to import: the processes that read images for `rlpips distance` never do.
"""


_MODULES = (*_HOMES, "attacks", "backbones", "convolution", "evaluation", "geometry", "images", "reports", "weights")
"""Modules that are attributes without being imported by name."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})

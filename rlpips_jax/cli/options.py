"""Arguments that several subcommands share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Shaped

from rlpips_jax.distances.lpips import DEFAULT, Metric, RandomDistance
from rlpips_jax.errors import EnsembleError, RlpipsError
from rlpips_jax.images import UNIT_RANGE, check_images
from rlpips_jax.loading import load

Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Which metric."""

    metric: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT
    """Name of a metric ('rlpips weights list' shows all), or path of a .safetensors file of your own."""

    weights_dir: Folder = None
    """Folder to look for weights in first."""

    def load(self) -> Metric:
        """A metric that is not random.

        Raises:
            EnsembleError: it is an ensemble.
        """
        metric = self.load_any()
        if isinstance(metric, RandomDistance):
            raise EnsembleError(
                f"{self.metric} is random; 'rlpips compare', evaluate, average and geodesic take it, and in Python "
                "rlpips_jax.distance and estimate do"
            )
        return metric

    def load_any(self) -> Any:
        """A Metric or an Ensemble."""
        if problem := device_problem():
            raise RlpipsError(problem)
        return load(self.metric, weights_dir=self.weights_dir)


def check_files(metric: Any, images: Mapping[Path, Shaped[np.ndarray, "..."]]) -> None:
    """Checks that images from files can be compared; names the files if not.

    Raises:
        ImageError: they differ in size, or are too small for the metric.
    """
    # Quotation marks keep the name of a file from being taken for that of an option.
    named = {f"'{path}'": image for path, image in images.items()}
    check_images(UNIT_RANGE, minimum_size=metric.minimum_size, user=metric.name, **named)


def device_problem() -> str | None:
    """Why JAX has nothing to compute on; None if it has."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        cause = str(error) or "the platform is not installed, or has no device"
        return "JAX finds no device to compute on" + (f" with JAX_PLATFORMS={asked}" if asked else "") + f": {cause}"
    return None

"""A family of metrics: the names it has, the files they need, and how one is put together."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlpips_jax.distances.options import Options
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.weights import store
from rlpips_jax.weights.parameters import Parameters
from rlpips_jax.weights.registry import Recipe


@dataclass(frozen=True)
class Family:
    """A family of metrics. One entry of `rlpips_jax.loading.FAMILIES` makes its metrics known everywhere.

    Attributes:
        recipes: by the name that `rlpips_jax.load` takes: which network and which weight files a metric is made of.
        build: makes a metric of a recipe, its parameters and the options of `rlpips_jax.load`.
        kind: the class of its metrics.
        symmetric: whether the order of two images makes no difference; otherwise the first is the reference.
    """

    recipes: Mapping[str, Recipe]
    build: Callable[[Recipe, Parameters, Options], Metric | RandomMetric]
    kind: type
    symmetric: bool = True


def read_parameters(
    recipe: Recipe, parameters: Parameters | None = None, weights_dir: str | os.PathLike[str] | None = None
) -> Parameters:
    """All parameters of a recipe, from the places where weights are sought.

    Args:
        recipe: which files are needed.
        parameters: those that are at hand already, as from a metric's own file.
        weights_dir: a folder to look into first.

    Raises:
        WeightsNotFound: they are not on this machine and cannot be downloaded.
        WeightsCorrupt: a weight file is damaged.
        WeightsMismatch: a weight file is of another network.
    """
    found: Parameters = dict(parameters or {})
    for part in recipe.parts:
        if not set(part.holds) <= found.keys():
            found = store.obtain(part, weights_dir)[0] | found
    return found

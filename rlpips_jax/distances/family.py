"""A family of metrics: the names it has, the files they need, and how one is put together."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlpips_jax.distances.options import Options
from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import WeightsNotFound
from rlpips_jax.weights import store
from rlpips_jax.weights.parameters import Parameters, digest
from rlpips_jax.weights.registry import Part, Recipe


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

    def __post_init__(self) -> None:
        _NAMED.update(self.recipes)


_NAMED: dict[str, Recipe] = {}
"""The recipes of all families, so that a metric, which no family need have made, can be held to its name."""


def pinned(name: str, parameters: Parameters) -> str:
    """What a signature says of parameters: their hash, and whether a name of this library stands for others.

    Raises:
        MetricError: the parameters are traced or abstract, and so have no values to hash.
    """
    text = f"parameters={digest(parameters)[:12]}"
    return text if name not in _NAMED or _published(_NAMED[name], parameters) else f"{text} unofficial"


def _published(recipe: Recipe, parameters: Parameters) -> bool:
    """Whether no part of the parameters is known to differ from the published one.

    A part of which an earlier one has taken a group's place cannot be told: only the hash of the whole is known.
    """
    earlier: set[str] = set()
    for part in recipe.parts:
        holds = set(part.holds)
        others = {group for other in recipe.parts if other is not part for group in other.holds} - holds
        groups = {path.partition(".")[0] for path in part.layout.shapes} - others
        held = {group: each for group, each in parameters.items() if group in groups}
        if not holds & earlier and part.parameters_sha256 not in (None, digest(held)):
            return False
        earlier |= holds
    return True


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
            try:
                found = store.obtain(part, weights_dir)[0] | found
            except WeightsNotFound as error:
                if part.official is None:
                    raise
                others = recipe.parts[recipe.parts.index(part) + 1 :]
                raise WeightsNotFound(f"{error}{_advice(recipe.name, others, weights_dir)}") from None
    return found


def _advice(name: str, others: Sequence[Part], weights_dir: str | os.PathLike[str] | None) -> str:
    """What else is missing, and what needs no download."""
    needed = [other.official for other in others if other.official and store.locate(other, weights_dir) is None]
    also = "".join(f"; {one.url} is needed too (sha256 {one.sha256}, {one.size} bytes)" for one in needed)
    kind = next((kind for kind in ("rlpips", "elpips") if name.startswith(kind)), "lpips")
    return f"{also}; '{kind}-tiny' needs no download"

"""Metrics by name and by file: the table of families, `load` and `save`."""

import difflib
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

from jax.typing import DTypeLike

from rlpips_jax.distances import dists, embedding, lpips, lpips_plus, stlpips
from rlpips_jax.distances.dists import Dists
from rlpips_jax.distances.embedding import Embedding
from rlpips_jax.distances.family import Family, read_parameters
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.distances.lpips_plus import LpipsPlus
from rlpips_jax.distances.named import DEFAULT
from rlpips_jax.distances.options import Options
from rlpips_jax.distances.protocol import Metric, RandomMetric, is_random
from rlpips_jax.distances.tiles import bounded
from rlpips_jax.ensemble import ensemble
from rlpips_jax.ensemble.ensemble import Ensemble
from rlpips_jax.errors import MetricError, UnknownMetric, WeightsMismatch, WeightsNotFound
from rlpips_jax.weights import native
from rlpips_jax.weights.registry import Part, Recipe

FAMILIES: dict[str, Family] = {
    "lpips": lpips.FAMILY,
    "lpips+": lpips_plus.FAMILY,
    "dists": dists.FAMILY,
    "elpips": ensemble.FAMILY,
    "stlpips": stlpips.FAMILY,
    "embedding": embedding.FAMILY,
}
"""Every family of metrics. What stands here is loaded by name, listed, tested and offered by the command line."""

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin")
"""Suffixes of PyTorch's files, which `load` does not take."""

PREFIX = "ensemble:"
"""Before the name of any metric, puts it under E-LPIPS's transformations."""

EmbeddingName = Literal[
    "clip-vit-b16",
    "clip-vit-b32",
    "convnext-b",
    "dreamsim-clip-vit-b32",
    "dreamsim-openclip-vit-b32",
    "openclip-convnext-b",
    "openclip-vit-b16",
    "openclip-vit-b32",
]
EnsembleName = Literal["elpips-alex", "elpips-squeeze", "elpips-vgg", "elpips-tiny"]
LpipsPlusName = Literal["lpips+-alex", "lpips+-vgg"]


class LoadOptions(TypedDict, total=False):
    """The options of `load`, which documents them."""

    weights_dir: str | os.PathLike[str] | None
    unweighted: bool
    dtype: DTypeLike
    precision: str
    max_batch: int | None
    max_memory: int | None
    remat: bool
    forward_mode: bool
    frozen: bool


# The names of a Literal are strings too, and come first.
@overload
def load(name: EnsembleName, **options: Unpack[LoadOptions]) -> Ensemble: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def load(name: EmbeddingName, **options: Unpack[LoadOptions]) -> Embedding: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def load(name: Literal["dists"], **options: Unpack[LoadOptions]) -> Dists: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def load(name: LpipsPlusName, **options: Unpack[LoadOptions]) -> LpipsPlus: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def load(name: str | os.PathLike[str] = DEFAULT, **options: Unpack[LoadOptions]) -> Lpips: ...


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    unweighted: bool = False,
    dtype: DTypeLike = "float32",
    precision: str = "highest",
    max_batch: int | None = None,
    max_memory: int | None = None,
    remat: bool = False,
    forward_mode: bool = False,
    frozen: bool = False,
) -> Any:
    """Loads a metric by name, or from a weight file by its path: a `Metric`, or of E-LPIPS an `Ensemble`.

    Weights are sought in `weights_dir`, `$RLPIPS_WEIGHTS_DIR`, the user cache, PyTorch's cache, and are
    downloaded from their authors otherwise. Safe under tracing: the parameters are concrete arrays.

    Args:
        name: such as "lpips-alex", "lpips-vgg@0.0", "baseline-squeeze", "elpips-squeeze", "lpips-tiny" (`rlpips weights
            list` shows all), or the path of a `.safetensors` file made by training or by `python -m convert`. After
            "ensemble:", as in "ensemble:rlpips-alex", any of them under E-LPIPS's transformations.
        weights_dir: a folder to look into first.
        unweighted: set every weight of the heads to 1; floors stay.
        dtype: what the network computes in: float32, bfloat16, or float64 (which needs `jax_enable_x64`).
        precision: of the convolutions: "highest" gives the same number on every platform; "default" is faster
            where a GPU has TF32 or a TPU bfloat16.
        max_batch: most images in the network at once: bounds memory, not results. The gradient recomputes each
            block, so it is bounded too.
        max_memory: bytes that activations may take in a distance and its gradient, roughly, beside images, parameters
            and results. Fewer pairs are computed at once then, and images that are too large alone are cut into tiles
            that overlap by as much as the network sees: the number stays the same (1e-6), a gradient too. For LPIPS,
            R-LPIPS, ST-LPIPS and DISTS over networks of convolutions; `features`, maps and masks need whole images.
        remat: recompute activations in the gradient instead of keeping those between taps (VGG16 at 512x512 on CPU:
            0.64 of the memory). On CPU without effect under `vmap` or within blocks of `max_batch`.
        forward_mode: make `jax.jvp`, `jax.jacfwd` and `jax.linearize` work, which the convolutions' own backward rule
            forbids ("can't apply forward-mode differentiation ..."). On CPU gradients get slower.
        frozen: stop gradients by the metric's parameters: for a metric that is a field of a model which is trained.

    Returns:
        A metric of its family's class: an `Lpips`, `LpipsPlus`, `Dists`, `Embedding`, or an `Ensemble`, which is random
        and needs a key.

    Raises:
        UnknownMetric: no metric of this name.
        WeightsNotFound: no weights on this machine, and no download; says what to put where.
        WeightsCorrupt: a weight file is damaged.
        WeightsMismatch: a weight file is of another network, incomplete, or has negative heads or floors.
        MetricError: an option that makes no sense.
    """
    options = Options(
        unweighted=unweighted,
        dtype=dtype,
        precision=precision,
        max_batch=max_batch,
        max_memory=max_memory,
        remat=remat,
        forward_mode=forward_mode,
        frozen=frozen,
    )
    if not isinstance(name, str | os.PathLike):
        raise MetricError(f"a metric is named by a string or by a file's path, got {name!r}")
    if isinstance(name, str) and name.startswith(PREFIX):
        return bounded(
            under_transformations(_load(name.removeprefix(PREFIX), weights_dir, options)), options.max_memory
        )
    return bounded(_load(name, weights_dir, options), options.max_memory)


def under_transformations(metric: Metric | RandomMetric) -> RandomMetric:
    """Any metric under E-LPIPS's transformations; one that is random stays as it is."""
    return metric if is_random(metric) else Ensemble(cast(Metric, metric))


def _load(
    name: str | os.PathLike[str], weights_dir: str | os.PathLike[str] | None, options: Options
) -> Metric | RandomMetric:
    if Path(name).suffix in CHECKPOINTS:
        raise MetricError(
            f"{os.fspath(name)} is a PyTorch checkpoint; 'python -m convert --checkpoint {os.fspath(name)} --name "
            "lpips-alex --out weights', in a checkout of this project, makes a weight file of it, which load takes "
            "('rlpips weights import' keeps official files)"
        )
    if isinstance(name, os.PathLike) or name.endswith(native.SUFFIX):
        path = Path(name)
        if not path.is_file():
            raise WeightsNotFound(f"no weight file {os.fspath(path)!r}")
        metadata = native.read_metadata(path)
        if "metric" not in metadata:
            raise WeightsMismatch(
                f"{path} is one part of a metric, not a whole one; load the metric by name, with "
                f"weights_dir={path.parent}"
            )
        family, recipe = written(metadata["metric"], metadata.get("architecture", ""))
        at_hand, recipe = native.read(path, recipe.layout)[0], replace(recipe, name=path.stem)
    else:
        (family, recipe), at_hand = _find(name), None
    return family.build(recipe, read_parameters(recipe, at_hand, weights_dir), options)


def save(metric: Metric | RandomMetric, path: str | os.PathLike[str], *, licence: str | None = None) -> None:
    """Writes a whole metric, backbone included, to a file that `load` reads back by its path.

    Options such as `dtype` are not part of the file; `load` takes them.

    Args:
        metric: of a family that `load` knows, such as an `Lpips` whose heads were trained.
        path: where to; must end in `.safetensors`.
        licence: under which the parameters may be used, kept in the file.

    Raises:
        MetricError: the path has another suffix; or no named metric has this network, taps and version, so that `load`
            would not know how to put the file together.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != native.SUFFIX:
        raise MetricError(f"a metric is written to a file with the suffix {native.SUFFIX}, got {os.fspath(path)!r}")
    families = [family for family in FAMILIES.values() if family.kind is type(metric)]
    if not families:
        kinds = ", ".join(dict.fromkeys(family.kind.__name__ for family in FAMILIES.values()))
        raise MetricError(f"only metrics of a family have a file format ({kinds}), got {type(metric).__name__}")
    parameters = _parametrised(metric).parameters
    alike = {
        recipe.name: recipe
        for family in families
        for recipe in family.recipes.values()
        if _facts(family.build(recipe, parameters, Options())) == _facts(metric)
    }
    if not alike:
        raise MetricError(
            f"{metric.name} has a network, taps or a version that no named metric has, so its file could not be read "
            "back; flax.serialization.to_bytes keeps its parameters"
        )
    recipe = alike.get(metric.name) or next(iter(alike.values()))
    native.write(path, parameters, recipe.layout, metric=recipe.name, **({"licence": licence} if licence else {}))


def _parametrised(metric: Any) -> Any:
    """The metric that has the parameters: that of an ensemble, or the metric itself."""
    return metric.metric if isinstance(metric, Ensemble) else metric


def _facts(metric: Any) -> tuple[type, dict[str, Any]]:
    """What tells a metric from others: its class and fields, but for name, parameters and options."""
    metric = _parametrised(metric)
    others = {"name", "parameters", *(field.name for field in fields(Options))}
    return type(metric), {
        field.name: getattr(metric, field.name) for field in fields(metric) if field.name not in others
    }


def recipes() -> dict[str, Recipe]:
    """The recipe of every metric that has a name."""
    return {name: recipe for family in FAMILIES.values() for name, recipe in family.recipes.items()}


def parts() -> dict[str, Part]:
    """Every weight file that a metric with a name is made of, by its name."""
    return {part.name: part for recipe in recipes().values() for part in recipe.parts}


def find(name: str) -> Recipe:
    """The recipe of a metric; `@0.1`, the current version, may be written out.

    Raises:
        UnknownMetric: no such metric; names the nearest.
    """
    return _find(name)[1]


def written(name: str, network: str) -> tuple[Family, Recipe]:
    """What a file holds that says it is this metric: the version of it with the file's network, or the current one.

    Raises:
        UnknownMetric: no such metric; names the nearest.
    """
    family, recipe = _find(name)
    versions = (other for known, other in family.recipes.items() if known.startswith(f"{recipe.name}@"))
    return family, next((one for one in (recipe, *versions) if one.backbone.name == network), recipe)


def _find(name: str) -> tuple[Family, Recipe]:
    for known in (name, name.removesuffix("@0.1") if name.count("@") == 1 else name):
        for family in FAMILIES.values():
            if known in family.recipes:
                return family, family.recipes[known]
    names = list(recipes())
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
    raise UnknownMetric(f"no metric is called {name!r}; {advice} A trained metric is loaded by its file's path")

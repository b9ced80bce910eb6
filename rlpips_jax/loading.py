"""Metrics by name: of a weight file, of the official ones, or under E-LPIPS's transformations."""

import os
from typing import Any, Literal, overload

from jax.typing import DTypeLike

from rlpips_jax.distances.lpips import DEFAULT, Lpips, assemble
from rlpips_jax.distances.options import Options
from rlpips_jax.ensemble import Ensemble

PREFIX = "ensemble:"
"""Of the name of any metric, puts it under E-LPIPS's transformations."""

EnsembleName = Literal["elpips-alex", "elpips-squeeze", "elpips-vgg", "elpips-tiny"]


@overload
def load(
    name: EnsembleName,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    unweighted: bool = False,
    dtype: DTypeLike = "float32",
    precision: str = "highest",
    max_batch: int | None = None,
    remat: bool = False,
    forward_mode: bool = False,
    frozen: bool = False,
) -> Ensemble: ...


@overload
def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    unweighted: bool = False,
    dtype: DTypeLike = "float32",
    precision: str = "highest",
    max_batch: int | None = None,
    remat: bool = False,
    forward_mode: bool = False,
    frozen: bool = False,
) -> Lpips: ...


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    unweighted: bool = False,
    dtype: DTypeLike = "float32",
    precision: str = "highest",
    max_batch: int | None = None,
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
        remat: recompute activations in the gradient instead of keeping those between taps (VGG16 at 512x512 on CPU:
            0.64 of the memory). On CPU without effect under `vmap` or within blocks of `max_batch`.
        forward_mode: make `jax.jvp`, `jax.jacfwd` and `jax.linearize` work, which the convolutions' own backward rule
            forbids ("can't apply forward-mode differentiation ..."). On CPU gradients get slower.
        frozen: stop gradients by the metric's parameters: for a metric that is a field of a model which is trained.

    Raises:
        UnknownMetric: no metric of this name.
        WeightsNotFound: no weights on this machine, and no download; says what to put where.
        WeightsCorrupt: a weight file is damaged.
        WeightsMismatch: a weight file is of another network, incomplete, or has negative heads or floors.
        MetricError: an option that makes no sense.
    """
    ensemble = isinstance(name, str) and name.startswith(PREFIX)
    if ensemble:
        name = str(name).removeprefix(PREFIX)
    options = Options(
        unweighted=unweighted,
        dtype=dtype,
        precision=precision,
        max_batch=max_batch,
        remat=remat,
        forward_mode=forward_mode,
        frozen=frozen,
    )
    recipe, metric = assemble(name, weights_dir, options)
    return Ensemble(metric) if ensemble or recipe.ensemble else metric

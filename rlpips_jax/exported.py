"""A metric as a program that runs where this library is not installed: `save`, and `load` where it is.

    >>> import jax
    >>> import rlpips_jax as rl
    >>> rl.exported.save(rl.load("lpips-tiny"), "tiny.safetensors")
    >>> program = rl.exported.load("tiny.safetensors")
    >>> x, y = jax.random.uniform(jax.random.key(0), (2, 5, 32, 40, 3))
    >>> program(x, y).shape
    (5,)

The file is a safetensors file: the metric's parameters, the program as `jax.export` writes it (StableHLO) in the tensor
`program`, and the metric's signature in the metadata. `docs/export.md` has the ten lines that run it without this
library.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from rlpips_jax.arguments import whole_number
from rlpips_jax.distances.distance import check_metric, distance
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import MetricError, RlpipsError, WeightsCorrupt
from rlpips_jax.files.atomic import replacing
from rlpips_jax.images import UNIT_RANGE, Images, ValueRange, check_value_range
from rlpips_jax.weights.native import encoded

__all__ = ["FORMAT", "PLATFORMS", "PROGRAM", "Platform", "Program", "load", "save"]

Platform = Literal["cpu", "cuda", "tpu"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
FORMAT = "rlpips-jax program/1"
PROGRAM = "program"
"""The tensor that holds the program."""


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """An exported metric; call it with images.

    Attributes:
        signature: that of the metric, which pins its numbers.
        value_range: black and white of the images.
        exported: the program, of the parameters and two batches of images.
        parameters: by their names.
    """

    signature: str
    value_range: ValueRange
    exported: export.Exported
    parameters: dict[str, Array]

    def __call__(self, x: Images, y: Images) -> Any:
        """The distance of each pair; with the gradient of each by `y` if the program was exported so.

        Args:
            x: `(n, h, w, 3)`, float32 in `value_range`, of a size that the program was exported for.
            y: of the same shape.

        Raises:
            ValueError: JAX's own: another shape or type.
        """
        return self._call(self.parameters, x, y)

    @functools.cached_property
    def _call(self) -> Callable[..., Any]:
        return jax.jit(self.exported.call)

    def __repr__(self) -> str:
        return f"Program({self.signature!r}, value_range={self.value_range}, images={self.exported.in_avals[-1]})"


def save(
    metric: Metric,
    path: str | os.PathLike[str],
    *,
    batch: int | None = None,
    height: int | None = None,
    width: int | None = None,
    value_range: ValueRange = UNIT_RANGE,
    with_gradient: bool = False,
    platforms: Sequence[Platform] = PLATFORMS,
) -> None:
    """Writes a metric as a program of two batches of images.

    Args:
        metric: any that is not random (of an ensemble, `Ensemble.under(key)`).
        path: where to.
        batch: number of pairs; None for any.
        height: of the images, in pixels; None for any from `metric.minimum_size` on.
        width: of the images, likewise.
        value_range: black and white of the images, which are float32.
        with_gradient: the program gives the gradient of each distance by the second image too.
        platforms: some of "cpu", "cuda" and "tpu".

    Raises:
        MetricError: the network does not allow images of any size: give height and width. Or a platform or a length
            makes no sense.
        ImageError: `height` or `width` is less than the metric's smallest.
        OSError: the file cannot be written.
    """
    metric = check_metric(metric)
    value_range = check_value_range(value_range)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise MetricError(f"platforms must be some of {', '.join(PLATFORMS)}, got {platforms!r}")
    images = _images(metric.minimum_size, n=batch, h=height, w=width)
    leaves, structure = jax.tree_util.tree_flatten_with_path(metric)
    names = [jax.tree_util.keystr(place, simple=True, separator=".") for place, _ in leaves]

    def distances(parameters: dict[str, Array], x: Array, y: Array) -> Any:
        whole = jax.tree.unflatten(structure, [parameters[name] for name in names])

        def total(y: Array) -> tuple[Array, Array]:
            found = distance(x, y, whole, value_range=value_range)
            return jnp.sum(found), found

        if not with_gradient:
            return total(y)[1]
        gradient, found = jax.grad(total, has_aux=True)(y)
        return found, gradient

    parameters = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    try:
        program = export.export(jax.jit(distances), platforms=tuple(platforms))(parameters, images, images)
    except (TypeError, ValueError, NotImplementedError, jax.errors.InconclusiveDimensionOperation) as error:
        if isinstance(error, RlpipsError) or None not in (height, width):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise MetricError(
            f"{metric.name} can only be exported for images of one size: give height and width (JAX: {reason})"
        ) from error
    metadata = {
        "format": FORMAT,
        "signature": metric.signature,
        "value_range": json.dumps(value_range),
        "returns": "distances, gradients" if with_gradient else "distances",
    }
    content = encoded({**parameters, PROGRAM: np.frombuffer(program.serialize(), np.uint8)}, metadata)
    with replacing(Path(path), durable=True) as file:
        file.write(content)


def _images(minimum: int, **lengths: int | None) -> jax.ShapeDtypeStruct:
    """Batches `(n, h, w, 3)` whose lengths are given, or any by the names of their axes."""
    axes = {
        axis: axis if length is None else whole_number(axis, length, error=MetricError)
        for axis, length in lengths.items()
    }
    least = [f"{axis} >= {minimum}" for axis in ("h", "w") if lengths[axis] is None]
    shape = export.symbolic_shape(", ".join(map(str, (*axes.values(), 3))), constraints=least)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def load(path: str | os.PathLike[str]) -> Program:
    """Reads what `save` or `rlpips export` wrote.

    Raises:
        WeightsCorrupt: not such a file.
        OSError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise WeightsCorrupt(f"{os.fspath(path)} holds no exported program; rlpips_jax.load reads weights")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsCorrupt(f"{os.fspath(path)} holds no exported program: {error}") from error
    exported = export.deserialize(bytearray(tensors.pop(PROGRAM).tobytes()))
    black, white = json.loads(metadata["value_range"])
    return Program(metadata["signature"], (black, white), exported, jax.tree.map(jnp.asarray, tensors))

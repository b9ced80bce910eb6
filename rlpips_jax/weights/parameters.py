"""The parameter tree of a metric, and the names of the same tensors in PyTorch's checkpoints.

A metric's parameters are
`{"backbone": {layer: {"kernel": (h, w, in, out), "bias": (out,)}}, "heads": (w_0, ...)}`
where the tree below "backbone" is the network's own (a fire module nests its three convolutions), and `w_l` has one
weight >= 0 per channel of tap l. Either half may be absent in a file: official backbones come without heads, official
heads without a backbone. There may also be `"floors": (c_0, ...)`, one number >= 0 per tap, of shape (), which
PyTorch's checkpoints cannot hold.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rlpips_jax.backbones import Backbone, Sequential
from rlpips_jax.errors import WeightsMismatch
from rlpips_jax.weights.pickle_reader import printable

Parameters = dict[str, PyTree]
Tensors = Mapping[str, np.ndarray]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

_PER_TAP = ("heads", "floors")
"""The groups of parameters that have one tensor per tap."""

_HEAD = re.compile(r"lin(?:s\.)?(\d+)\.model\.\d+\.weight")
_SLICE = re.compile(r"net\.slice\d+\.")


class Named(NamedTuple):
    """A tensor of a checkpoint, and its name there."""

    original: str
    tensor: np.ndarray


def flatten(parameters: Parameters) -> Iterator[tuple[str, Any]]:
    """Dotted name and array of each parameter, in a fixed order.

    Raises:
        WeightsMismatch: there is another entry than the backbone, the heads and the floors.
    """
    if others := sorted(parameters.keys() - {"backbone", *_PER_TAP}):
        raise WeightsMismatch(
            f"parameters are a 'backbone', 'heads' and perhaps 'floors'; {_list(others)} cannot be stored"
        )
    yield from _flatten("backbone", parameters.get("backbone") or {})
    for group in _PER_TAP:
        for index, tensor in enumerate(parameters.get(group) or ()):
            yield f"{group}.{index}", tensor


def _flatten(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in sorted(tree):
        path = f"{prefix}.{name}"
        if isinstance(tree[name], Mapping):
            yield from _flatten(path, tree[name])
        else:
            yield path, tree[name]


def unflatten(tensors: Tensors, architecture: Backbone, source: str) -> Parameters:
    """Inverse of `flatten`, for the groups that are there; float32.

    Args:
        tensors: arrays by dotted name.
        architecture: the backbone that they must fit completely.
        source: what to call the file in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative heads or
            floors.
    """
    if not tensors:
        raise WeightsMismatch(f"{source} holds no tensors; a metric needs a backbone, or heads, or both")
    shapes: dict[str, tuple[int, ...]] = {f"backbone.{name}": shape for name, shape in architecture.shapes.items()}
    shapes |= {f"heads.{tap}": (channels,) for tap, channels in enumerate(architecture.channels)}
    shapes |= {f"floors.{tap}": () for tap in range(len(architecture.channels))}
    groups = {_group(name) for name in tensors}
    expected = {name: shape for name, shape in shapes.items() if _group(name) in groups}
    _check_names({name: name for name in expected}, {name: name for name in tensors}, architecture, source)
    return _assemble((name, _checked(name, tensors[name], shape, source)) for name, shape in expected.items())


def from_pytorch(tensors: Tensors, architecture: Backbone, source: str) -> Parameters:
    """Parameters from a PyTorch checkpoint: a torchvision network, LPIPS heads, or a whole LPIPS; float32.

    Understands `features.0.weight` (torchvision), `net.slice1.0.weight` (inside an LPIPS),
    `lin0.model.1.weight` and its alias `lins.0.model.1.weight` (heads; also E-LPIPS's, which are channels
    last), each also after `module.`. Leaves out what the backbone does not use, such as torchvision's classifier, and
    LPIPS's scaling layer once checked.

    Args:
        tensors: the checkpoint, arrays by name, kernels (out, in, h, w).
        architecture: the backbone that the checkpoint must fit completely.
        source: what to call the checkpoint in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative heads.
    """
    needed = {name: tensor for name, tensor in tensors.items() if is_needed(name, [architecture])}
    named = canonical(needed, source)
    halves = of_backbone, of_heads = architecture.pytorch_shapes, _head_shapes(architecture)
    if not any(named.keys() & half.keys() for half in halves):
        found = _list(item.original for item in named.values()) or "nothing else either"
        raise WeightsMismatch(
            f"{source} holds no tensor of the backbone '{architecture.name}' and none of its heads, but "
            f"{found}; expected such names as {_list([*of_backbone][:1])} and {_list([*of_heads][:1])}"
        )
    expected = {name: shape for half in halves if named.keys() & half.keys() for name, shape in half.items()}
    in_slices = any("net.slice" in item.original for item in named.values())
    slices = _slice_names(architecture) if in_slices else {}
    _check_names(
        {name: slices.get(name, name) for name in expected},
        {name: item.original for name, item in named.items()},
        architecture,
        source,
    )
    checked = {
        name: _checked(named[name].original, named[name].tensor, shape, source) for name, shape in expected.items()
    }
    native: dict[str, np.ndarray] = {}
    if checked.keys() & of_backbone.keys():
        native |= {f"backbone.{name}": tensor for name, tensor in architecture.from_pytorch(checked).items()}
    native |= {f"heads.{tap}": checked[name] for tap, name in enumerate(of_heads) if name in checked}
    return _assemble(native.items())


def is_needed(name: str, backbones: Iterable[Backbone]) -> bool:
    """Whether to keep a tensor of a PyTorch checkpoint, by its name there, for a metric with one of these backbones.

    Classifiers are most of some files: what one backbone leaves unused is dropped, unless another one has it.
    """
    name, backbones = name.removeprefix("module."), tuple(backbones)
    return not any(re.match(backbone.unused, name) for backbone in backbones) or any(
        name in backbone.pytorch_shapes for backbone in backbones
    )


def canonical(tensors: Tensors, source: str) -> dict[str, Named]:
    """A checkpoint's tensors under one name each: `features.0.weight`, `lin0.model.1.weight` (flat).

    The scaling layer is checked and dropped; unknown names stay as they are.

    Raises:
        WeightsMismatch: two names of one tensor have different values, a head is not a vector, or the scaling layer is
            not LPIPS's.
    """
    named: dict[str, Named] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix("module.")
        if name in ("scaling_layer.shift", "scaling_layer.scale"):
            _check_scaling(name, tensor, source)
            continue
        if head := _HEAD.fullmatch(name):
            if tensor.size != max(tensor.shape, default=0):
                raise WeightsMismatch(
                    f"{source}: {printable(original)} has shape {tensor.shape}, but a head is one weight per channel"
                )
            name, tensor = f"lin{int(head[1])}.model.1.weight", tensor.reshape(-1)
        elif piece := _SLICE.match(name):
            name = f"features.{name[piece.end() :]}"
        twin = named.get(name)
        if twin is None:
            named[name] = Named(original, tensor)
        elif twin.tensor.shape != tensor.shape or twin.tensor.tobytes() != tensor.tobytes():
            raise WeightsMismatch(
                f"{source}: {printable(twin.original)} and {printable(original)} are names of the same tensor, "
                "but their values differ; the checkpoint is inconsistent"
            )
    return named


def pytorch_shapes(architecture: Backbone) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a fitting checkpoint, by its canonical name."""
    return dict(architecture.pytorch_shapes) | _head_shapes(architecture)


def to_pytorch(parameters: Parameters, architecture: Backbone) -> dict[str, np.ndarray]:
    """A whole LPIPS as the `lpips` package names it, if it has such networks; inverse of `from_pytorch`.

    Raises:
        WeightsMismatch: the parameters have floors, without which their distances would be others.
    """
    if parameters.get("floors"):
        raise WeightsMismatch(
            "the metric has floors, f / sqrt(|f|^2 + c^2), and the lpips package always computes f / (|f| + 1e-10): "
            "no checkpoint gives its distances there. Only a metric without floors can be written for that package"
        )
    tensors: dict[str, np.ndarray] = {}
    if parameters.get("backbone") and parameters.get("heads"):
        tensors["scaling_layer.shift"] = np.array(SHIFT, np.float32).reshape(1, 3, 1, 1)
        tensors["scaling_layer.scale"] = np.array(SCALE, np.float32).reshape(1, 3, 1, 1)
    flat = {name: np.asarray(tensor) for name, tensor in flatten(parameters)}
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    if backbone:
        names = _slice_names(architecture)
        tensors |= {names.get(name, name): tensor for name, tensor in architecture.to_pytorch(backbone).items()}
    for tap, name in enumerate(_head_shapes(architecture)):
        if f"heads.{tap}" in flat:
            head = flat[f"heads.{tap}"].reshape(1, -1, 1, 1)
            tensors[name] = tensors[f"lins.{tap}.model.1.weight"] = head
    return tensors


def check_heads(heads: tuple[Any, ...], architecture: Backbone, source: str) -> None:
    """Raises `WeightsMismatch` unless there is one non-negative, finite weight per tapped channel."""
    unflatten({f"heads.{index}": np.asarray(head) for index, head in enumerate(heads)}, architecture, source)


def digest(parameters: Parameters) -> str:
    """sha256 over names, shapes and float32 values of all parameters."""
    return digest_tensors(dict(flatten(parameters)))


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """The `digest` of flat parameters: arrays by dotted name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(np.asarray(tensors[name]), dtype="<f4", order="C")
        total.update(f"{name}{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def _head_shapes(architecture: Backbone) -> dict[str, tuple[int, ...]]:
    """Shape of each head of a fitting checkpoint, flat, by its canonical name."""
    return {f"lin{tap}.model.1.weight": (channels,) for tap, channels in enumerate(architecture.channels)}


def _slice_names(architecture: Backbone) -> dict[str, str]:
    """The names of a backbone's tensors in the lpips package, whose slices end at the taps, by torchvision's names."""
    if not isinstance(architecture, Sequential):
        return {}
    slices = {layer.index: number for number, stage in enumerate(architecture.stages(), start=1) for layer in stage}
    names: dict[str, str] = {}
    for name in architecture.pytorch_shapes:
        _, index, _ = name.split(".", 2)
        names[name] = name.replace("features", f"net.slice{slices[int(index)]}", 1)
    return names


def _group(native: str) -> str:
    """ "backbone", "heads" or "floors", for the name of one of its tensors."""
    return native.partition(".")[0]


def _assemble(flat: Iterable[tuple[str, np.ndarray]]) -> Parameters:
    """The tree of named arrays; heads and floors are in the order of the taps already."""
    parameters: Parameters = {}
    for name, tensor in flat:
        if (group := _group(name)) in _PER_TAP:
            parameters[group] = (*parameters.get(group, ()), tensor)
            continue
        *path, leaf = name.split(".")
        node = parameters
        for step in path:
            node = node.setdefault(step, {})
        node[leaf] = tensor
    return parameters


def _check_names(expected: Mapping[str, str], found: Mapping[str, str], architecture: Backbone, source: str) -> None:
    """Raises `WeightsMismatch`, which shows the values, unless the keys are the same."""
    missing = [shown for name, shown in expected.items() if name not in found]
    left_over = [shown for name, shown in found.items() if name not in expected]
    if missing or left_over:
        faults = [f"missing {_list(missing)}"] if missing else []
        faults += [f"left over {_list(left_over)}"] if left_over else []
        raise WeightsMismatch(
            f"{source} fits the network '{architecture.name}' only in part, so none of it was loaded: "
            f"{'; '.join(faults)}. Is it a checkpoint of another network, or incomplete?"
        )


def _checked(name: str, tensor: np.ndarray, shape: tuple[int, ...], source: str) -> np.ndarray:
    """The tensor as float32, once its shape, type and values are checked; names tell heads and floors."""
    if tensor.shape != shape:
        raise WeightsMismatch(f"{source}: {printable(name)} has shape {tensor.shape}, but this network needs {shape}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise WeightsMismatch(f"{source}: {printable(name)} has dtype {tensor.dtype}, but weights are floating point")
    with np.errstate(over="ignore"):
        tensor = np.asarray(tensor, np.float32, order="C")
    if not np.isfinite(tensor).all():
        raise WeightsMismatch(f"{source}: {printable(name)} contains NaN, infinity, or more than float32 can hold")
    is_head = name.startswith("heads.") or _HEAD.fullmatch(name.removeprefix("module."))
    if is_head and tensor.min() < 0:
        raise WeightsMismatch(
            f"{source}: {printable(name)} has negative weights (smallest {tensor.min():.3g}); a distance "
            "needs heads >= 0: clip them in training, after each step"
        )
    if _group(name) == "floors" and tensor < 0:
        raise WeightsMismatch(
            f"{source}: {printable(name)} is {float(tensor):.3g}, but a floor is >= 0: clip it in training, after "
            "each step"
        )
    return tensor


def _check_scaling(name: str, tensor: np.ndarray, source: str) -> None:
    expected = SHIFT if name.endswith("shift") else SCALE
    rounding = float(jnp.finfo(tensor.dtype).eps) if jnp.issubdtype(tensor.dtype, jnp.floating) else 0.0
    # A checkpoint in half precision holds the nearest half-precision numbers.
    if tensor.size != 3 or not np.allclose(tensor.astype(np.float64).reshape(-1), expected, rtol=rounding, atol=1e-6):
        raise WeightsMismatch(f"{source}: {name} is {tensor.reshape(-1)[:4].tolist()}, but LPIPS's is {expected}")


def _list(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    listed = ", ".join(printable(name) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"

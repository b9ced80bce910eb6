"""The parameter tree of a metric, and the names of the same tensors in PyTorch's checkpoints.

A metric's parameters are a dictionary of groups. The group "backbone" is the network's own tree
`{layer: {"kernel": (h, w, in, out), "bias": (out,)}}` (a fire module nests its three convolutions). What stands beside
it is the family's: LPIPS has `"heads": (w_0, ...)`, where `w_l` has one weight >= 0 per channel of tap l, and perhaps
`"floors": (c_0, ...)`, one number >= 0 per tap, of shape (), which PyTorch's checkpoints cannot hold. A `Layout` lists
all of them. A file holds a group whole or not at all: official backbones come without heads, official heads without a
backbone.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from rlpips_jax.backbones import Backbone, RenamedBackbone, Sequential
from rlpips_jax.errors import MetricError, WeightsMismatch
from rlpips_jax.weights.pickle_reader import printable

Parameters = dict[str, PyTree]
Tensors = Mapping[str, np.ndarray]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

_HEAD = re.compile(r"lin(?:s\.)?(\d+)\.model\.\d+\.weight")
_SLICE = re.compile(r"net\.slice\d+\.")


@dataclass(frozen=True)
class Weight:
    """A parameter of a metric beside those of its backbone.

    Attributes:
        path: its dotted path in the tree: "heads.0" is the first of the tuple of heads.
        shape: its shape.
        pytorch: its name in PyTorch's checkpoints, where it may have further axes of length 1; None where these cannot
            hold it.
        signed: whether it may be negative.
    """

    path: str
    shape: tuple[int, ...]
    pytorch: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class Layout:
    """The parameters of a metric: those of a backbone, and what stands beside it.

    Attributes:
        backbone: the network, with its taps.
        weights: the parameters beside it.
    """

    backbone: Backbone
    weights: tuple[Weight, ...] = ()

    @property
    @functools.cache
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its dotted path."""
        shapes = {f"backbone.{name}": shape for name, shape in self.backbone.shapes.items()}
        return shapes | {weight.path: weight.shape for weight in self.weights}

    @property
    @functools.cache
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of a fitting PyTorch checkpoint, by its canonical name."""
        return dict(self.backbone.pytorch_shapes) | {
            weight.pytorch: weight.shape for weight in self.weights if weight.pytorch
        }


def with_heads(backbone: Backbone) -> Layout:
    """The layout of LPIPS: per tap one weight per channel, and perhaps a floor."""
    heads = (
        Weight(f"heads.{tap}", (channels,), f"lin{tap}.model.1.weight")
        for tap, channels in enumerate(backbone.channels)
    )
    floors = (Weight(f"floors.{tap}", ()) for tap in range(len(backbone.channels)))
    return Layout(backbone, (*heads, *floors))


class Subtree(NamedTuple):
    """A metric, or a part of it, among the tensors of a checkpoint.

    Attributes:
        prefix: what the names of its tensors begin with.
        names: the rest of these names, as `from_pytorch` understands them, by the names in the checkpoint.
        fitting: how many of its tensors have a name and a shape of the layout.
        groups: those groups of parameters that are complete.
    """

    prefix: str
    names: dict[str, str]
    fitting: int
    groups: tuple[str, ...]


class Named(NamedTuple):
    """A tensor of a checkpoint, and its name there."""

    original: str
    tensor: np.ndarray


def flatten(parameters: Parameters) -> Iterator[tuple[str, Any]]:
    """Dotted path and array of each parameter, in a fixed order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def unflatten(tensors: Tensors, layout: Layout, source: str) -> Parameters:
    """Inverse of `flatten`, for the groups that are there; float32.

    Args:
        tensors: arrays by dotted path.
        layout: what they must fit.
        source: what to call the file in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative where they must not be.
    """
    if not tensors:
        raise WeightsMismatch(f"{source} holds no tensors; a metric needs a backbone, or heads, or both")
    groups = {_group(name) for name in tensors}
    expected = {name: shape for name, shape in layout.shapes.items() if _group(name) in groups}
    _check_names({name: name for name in expected}, {name: name for name in tensors}, layout.backbone, source)
    signs = {weight.path: weight.signed for weight in layout.weights}
    return _assemble(
        (name, _checked(name, tensors[name], shape=shape, signed=signs.get(name, True), source=source))
        for name, shape in expected.items()
    )


def from_pytorch(tensors: Tensors, layout: Layout, source: str) -> Parameters:
    """Parameters from a PyTorch checkpoint: a torchvision network, what stands beside it, or both; float32.

    Understands `features.0.weight` (torchvision), `net.slice1.0.weight` (inside an LPIPS),
    `lin0.model.1.weight` and its alias `lins.0.model.1.weight` (heads; also E-LPIPS's, which are channels
    last), each also after `module.`. Leaves out what the backbone does not use, such as torchvision's classifier, and
    LPIPS's scaling layer once checked.

    Args:
        tensors: the checkpoint, arrays by name, kernels (out, in, h, w).
        layout: what the checkpoint must fit; it may lack whole groups.
        source: what to call the checkpoint in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative where they must not be.
    """
    backbone = layout.backbone
    if isinstance(backbone, RenamedBackbone):
        tensors = backbone.renamed(tensors)
    is_needed = needed_by([backbone])
    needed = {name: tensor for name, tensor in tensors.items() if is_needed(name)}
    named = canonical(needed, source)
    beside = {weight.pytorch: weight for weight in layout.weights if weight.pytorch}
    groups = dict.fromkeys(backbone.pytorch_shapes, "backbone") | {
        name: _group(weight.path) for name, weight in beside.items()
    }
    there = {groups[name] for name in named if name in groups}
    if not there:
        found = _list(item.original for item in named.values()) or "nothing else either"
        examples = [next(name for name in groups if groups[name] == group) for group in dict.fromkeys(groups.values())]
        beside_it = " and none of what stands beside it" if beside else ""
        raise WeightsMismatch(
            f"{source} holds no tensor of the backbone '{backbone.name}'{beside_it}, but {found}; expected such names "
            f"as {_list(examples)}"
        )
    expected = {name: shape for name, shape in layout.pytorch_shapes.items() if groups[name] in there}
    in_slices = any("net.slice" in item.original for item in named.values())
    slices = _slice_names(backbone) if in_slices else {}
    _check_names(
        {name: slices.get(name, name) for name in expected},
        {name: item.original for name, item in named.items()},
        backbone,
        source,
    )
    checked = {}
    for name, shape in expected.items():
        original, tensor = named[name]
        if name in beside and [length for length in tensor.shape if length != 1] == [n for n in shape if n != 1]:
            tensor = tensor.reshape(shape)
        signed = name not in beside or beside[name].signed
        checked[name] = _checked(original, tensor, shape=shape, signed=signed, source=source)
    native: dict[str, np.ndarray] = {}
    if "backbone" in there:
        native |= {f"backbone.{name}": tensor for name, tensor in backbone.from_pytorch(checked).items()}
    native |= {weight.path: checked[name] for name, weight in beside.items() if name in checked}
    return _assemble(native.items())


def subtrees(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> list[Subtree]:
    """Where the tensors of a layout are in a checkpoint: under which prefixes some of its names and shapes are found.

    A prefix is any beginning of a name that ends in a dot, or nothing: `state_dict.module.`, `loss.perceptual_loss.`.
    The names of a backbone may lack a first component that they share, as in a state dict of torchvision's `features`
    alone. What else is under the prefix, such as a classifier, is left out; what is named like the layout's own
    tensors stays, for `from_pytorch` to refuse if it does not fit.

    Args:
        shapes: of the tensors by their names.
        layout: what to look for.

    Returns:
        One for each prefix, those with most fitting tensors first. Of several that have the same tensors, the one with
        the shortest prefix.
    """
    wanted = layout.pytorch_shapes
    shared = {name.partition(".")[0] for name in layout.backbone.pytorch_shapes}
    shared_first = f"{shared.pop()}." if len(shared) == 1 else ""
    own = {_kind(name) for name in wanted} | {"scaling_layer"}
    bare = {_kind(name.removeprefix(shared_first)) for name in layout.backbone.pytorch_shapes if shared_first}
    found: dict[str, dict[str, str]] = {}
    fitting: dict[str, set[str]] = {}
    for original, shape in shapes.items():
        parts = original.split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            prefix = original.removesuffix(rest)
            for name in (rest, *([shared_first + rest] if _kind(rest) in bare else [])):
                plain = _plain_name(name)
                if _kind(plain) in own:
                    found.setdefault(prefix, {}).setdefault(original, name)
                if plain in wanted and [n for n in shape if n != 1] == [n for n in wanted[plain] if n != 1]:
                    found[prefix][original] = name
                    fitting.setdefault(prefix, set()).add(plain)
    members = {weight.pytorch: _group(weight.path) for weight in layout.weights if weight.pytorch}
    groups = {name: members.get(name, "backbone") for name in wanted}
    results: list[Subtree] = []
    for prefix in sorted(fitting, key=lambda prefix: (-len(fitting[prefix]), len(prefix))):
        lacking = {groups[name] for name in wanted if name not in fitting[prefix]}
        whole = tuple(group for group in dict.fromkeys(groups.values()) if group not in lacking)
        if not any(found[prefix].keys() <= other.names.keys() for other in results):
            results.append(Subtree(prefix, found[prefix], len(fitting[prefix]), whole))
    return results


def _kind(name: str) -> str:
    """The first component of a name without its number: "features", "layer", "lin"."""
    return name.partition(".")[0].rstrip("0123456789")


def _plain_name(name: str) -> str:
    """The name that a tensor of a backbone or a head has by itself, if it has one inside an LPIPS."""
    if head := _HEAD.fullmatch(name):
        return f"lin{int(head[1])}.model.1.weight"
    return f"features.{name[piece.end() :]}" if (piece := _SLICE.match(name)) else name


def needed_by(backbones: Iterable[Backbone]) -> Callable[[str], bool]:
    """Tells by the name of a tensor in a PyTorch checkpoint whether a metric with one of these backbones needs it.

    Classifiers are most of some files: what one backbone leaves unused is dropped, unless another one has it.
    """
    backbones = tuple(backbones)
    unused = [re.compile(backbone.unused) for backbone in backbones]
    used = {name for backbone in backbones for name in backbone.pytorch_shapes}

    def is_needed(name: str) -> bool:
        name = name.removeprefix("module.")
        return name in used or not any(pattern.match(name) for pattern in unused)

    return is_needed


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
        if _HEAD.fullmatch(name):
            if tensor.size != max(tensor.shape, default=0):
                raise WeightsMismatch(
                    f"{source}: {printable(original)} has shape {tensor.shape}, but a head is one weight per channel"
                )
            tensor = tensor.reshape(-1)
        name = _plain_name(name)
        twin = named.get(name)
        if twin is None:
            named[name] = Named(original, tensor)
        elif twin.tensor.shape != tensor.shape or twin.tensor.tobytes() != tensor.tobytes():
            raise WeightsMismatch(
                f"{source}: {printable(twin.original)} and {printable(original)} are names of the same tensor, "
                "but their values differ; the checkpoint is inconsistent"
            )
    return named


def to_pytorch(parameters: Parameters, backbone: Backbone) -> dict[str, np.ndarray]:
    """A whole LPIPS as the `lpips` package names it, if it has such networks; inverse of `from_pytorch`.

    Raises:
        WeightsMismatch: the parameters have floors, without which their distances would be others.
    """
    if parameters.get("floors"):
        raise WeightsMismatch(
            "the metric has floors, f / sqrt(|f|^2 + c^2), and the lpips package always computes f / (|f| + 1e-10): "
            "no checkpoint gives its distances there. Only a metric without floors, such as rlpips-alex or "
            "rlpips-squeeze@1, can be written for that package"
        )
    tensors: dict[str, np.ndarray] = {}
    if parameters.get("backbone") and parameters.get("heads"):
        tensors["scaling_layer.shift"] = np.array(SHIFT, np.float32).reshape(1, 3, 1, 1)
        tensors["scaling_layer.scale"] = np.array(SCALE, np.float32).reshape(1, 3, 1, 1)
    flat = {name: np.asarray(tensor) for name, tensor in flatten(parameters)}
    prefix = "backbone."
    kernels = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    if kernels:
        names = _slice_names(backbone)
        tensors |= {names.get(name, name): tensor for name, tensor in backbone.to_pytorch(kernels).items()}
    for tap in range(len(backbone.channels)):
        if f"heads.{tap}" in flat:
            head = flat[f"heads.{tap}"].reshape(1, -1, 1, 1)
            tensors[f"lin{tap}.model.1.weight"] = tensors[f"lins.{tap}.model.1.weight"] = head
    return tensors


def digest(parameters: Parameters) -> str:
    """sha256 over names, shapes and float32 values of all parameters.

    Raises:
        MetricError: the parameters are traced or abstract, and so have no values.
    """
    leaves = dict(flatten(parameters))
    known = (jax.Array, np.ndarray, np.generic)
    if not all(isinstance(leaf, known) and not isinstance(leaf, Tracer) for leaf in leaves.values()):
        raise MetricError("a signature needs the parameters' values: take it outside jit, grad and eval_shape")
    return digest_tensors(leaves)


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """The `digest` of flat parameters: arrays by dotted name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(np.asarray(tensors[name]), dtype="<f4", order="C")
        total.update(f"{name}{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def _slice_names(backbone: Backbone) -> dict[str, str]:
    """The names of a backbone's tensors in the lpips package, whose slices end at the taps, by torchvision's names."""
    if not isinstance(backbone, Sequential):
        return {}
    slices = {layer.index: number for number, stage in enumerate(backbone.stages(), start=1) for layer in stage}
    names: dict[str, str] = {}
    for name in backbone.pytorch_shapes:
        _, index, _ = name.split(".", 2)
        names[name] = name.replace("features", f"net.slice{slices[int(index)]}", 1)
    return names


def _group(path: str) -> str:
    """The group of a parameter, such as "backbone" or "heads", by its dotted path."""
    return path.partition(".")[0]


def _assemble(flat: Iterable[tuple[str, np.ndarray]]) -> Parameters:
    """The tree of named arrays; those of a tuple, such as the heads, are in order already."""
    parameters: Parameters = {}
    for name, tensor in flat:
        *path, leaf = name.split(".")
        if len(path) == 1 and leaf.isdigit():
            parameters[path[0]] = (*parameters.get(path[0], ()), tensor)
            continue
        node = parameters
        for step in path:
            node = node.setdefault(step, {})
        node[leaf] = tensor
    return parameters


def _check_names(expected: Mapping[str, str], found: Mapping[str, str], backbone: Backbone, source: str) -> None:
    """Raises `WeightsMismatch`, which shows the values, unless the keys are the same."""
    missing = [shown for name, shown in expected.items() if name not in found]
    left_over = [shown for name, shown in found.items() if name not in expected]
    if missing or left_over:
        faults = [f"missing {_list(missing)}"] if missing else []
        faults += [f"left over {_list(left_over)}"] if left_over else []
        raise WeightsMismatch(
            f"{source} fits the network '{backbone.name}' only in part, so none of it was loaded: "
            f"{'; '.join(faults)}. Is it a checkpoint of another network, or incomplete?"
        )


def _checked(name: str, tensor: np.ndarray, *, shape: tuple[int, ...], signed: bool, source: str) -> np.ndarray:
    """The tensor as float32, once its shape, type and values are checked."""
    if tensor.shape != shape:
        raise WeightsMismatch(f"{source}: {printable(name)} has shape {tensor.shape}, but this network needs {shape}")
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise WeightsMismatch(f"{source}: {printable(name)} has dtype {tensor.dtype}, but weights are floating point")
    with np.errstate(over="ignore"):
        tensor = np.asarray(tensor, np.float32, order="C")
    if not np.isfinite(tensor).all():
        raise WeightsMismatch(f"{source}: {printable(name)} contains NaN, infinity, or more than float32 can hold")
    if not signed and tensor.min() < 0:
        raise WeightsMismatch(
            f"{source}: {printable(name)} has negative values (smallest {tensor.min():.3g}), but must be >= 0: clip it "
            "in training, after each step"
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

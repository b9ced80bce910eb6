"""The parameter tree of a metric, and how PyTorch's checkpoints name the same tensors.

A metric's parameters are
`{"backbone": {layer: {"kernel": (h, w, in, out), "bias": (out,)}}, "heads": (w_0, ...)}`
where a fire module nests its three convolutions, and `w_l` has one weight >= 0 a channel of tap l. Either
half may be absent in a file: official backbones come without heads, official heads without a backbone. Beside them
may be `"floors": (c_0, ...)`, one number >= 0 a tap, of shape (), which PyTorch's checkpoints have no place for.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlpips_jax.backbones import Architecture
from rlpips_jax.errors import WeightsMismatch
from rlpips_jax.weights.pickle_reader import printable

Parameters = dict[str, Any]
Tensors = Mapping[str, np.ndarray]

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

_A_TAP = ("heads", "floors")
"""The groups of parameters that have one tensor a tap."""

_HEAD = re.compile(r"lin(?:s\.)?(\d+)\.model\.\d+\.weight")
_SLICE = re.compile(r"net\.slice\d+\.")


class Named(NamedTuple):
    """A tensor of a checkpoint, and what it is called there."""

    original: str
    tensor: np.ndarray


class _Place(NamedTuple):
    """Where a tensor of a checkpoint belongs, and the shape it has in PyTorch (a head: flat)."""

    native: str
    shape: tuple[int, ...]


def flatten(parameters: Parameters) -> Iterator[tuple[str, Any]]:
    """Dotted name and array of each parameter, in a fixed order.

    Raises:
        WeightsMismatch: there is something beside the backbone, the heads and the floors.
    """
    if others := sorted(parameters.keys() - {"backbone", *_A_TAP}):
        raise WeightsMismatch(
            f"parameters are a 'backbone', 'heads' and perhaps 'floors'; there is no place for {_list(others)}"
        )
    yield from _flatten("backbone", parameters.get("backbone") or {})
    for group in _A_TAP:
        for index, tensor in enumerate(parameters.get(group) or ()):
            yield f"{group}.{index}", tensor


def _flatten(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in sorted(tree):
        path = f"{prefix}.{name}"
        if isinstance(tree[name], Mapping):
            yield from _flatten(path, tree[name])
        else:
            yield path, tree[name]


def unflatten(tensors: Tensors, architecture: Architecture, source: str) -> Parameters:
    """Inverse of `flatten`, for whichever groups are there; float32.

    Args:
        tensors: arrays by dotted name.
        architecture: the table they must fit completely.
        source: what to call the file in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative heads or
            floors.
    """
    if not tensors:
        raise WeightsMismatch(f"{source} holds no tensors; a metric needs a backbone, or heads, or both")
    shapes = {place.native: _native_shape(place.shape) for place in _places(architecture).values()}
    shapes |= {f"floors.{tap}": () for tap in range(len(architecture.taps))}
    groups = {_group(name) for name in tensors}
    expected = {name: shape for name, shape in shapes.items() if _group(name) in groups}
    _check_names({name: name for name in expected}, {name: name for name in tensors}, architecture, source)
    return _assemble((name, _checked(name, tensors[name], shape, source)) for name, shape in expected.items())


def from_pytorch(tensors: Tensors, architecture: Architecture, source: str) -> Parameters:
    """Parameters from a PyTorch checkpoint: a torchvision network, LPIPS heads, or a whole LPIPS; float32.

    Understands `features.0.weight` (torchvision), `net.slice1.0.weight` (inside an LPIPS),
    `lin0.model.1.weight` and its alias `lins.0.model.1.weight` (heads; also E-LPIPS's, which are channels
    last), each also after `module.`. Ignores torchvision's classifier, which no metric uses, and LPIPS's
    scaling layer once checked.

    Args:
        tensors: the checkpoint, arrays by name, kernels (out, in, h, w).
        architecture: the table the checkpoint must fit completely.
        source: what to call the checkpoint in errors.

    Raises:
        WeightsMismatch: tensors missing, left over or of another shape, not finite, or negative heads.
    """
    named = canonical(tensors, source)
    places = _places(architecture)
    if not named.keys() & places.keys():
        found = _list(item.original for item in named.values()) or "nothing else either"
        raise WeightsMismatch(
            f"{source} holds no tensor of the backbone '{architecture.name}' and none of its heads, but "
            f"{found}; expected 'features.*' (torchvision), or 'net.slice*' and 'lin*' (LPIPS)"
        )
    groups = {_group(places[name].native) for name in named if name in places}
    expected = {name: place for name, place in places.items() if _group(place.native) in groups}
    in_slices = any("net.slice" in item.original for item in named.values())
    slices = _lpips_names(architecture) if in_slices else {}
    _check_names(
        {name: slices.get(name, name) for name in expected},
        {name: item.original for name, item in named.items()},
        architecture,
        source,
    )
    return _assemble(
        (
            place.native,
            _native_layout(_checked(named[name].original, named[name].tensor, place.shape, source)),
        )
        for name, place in expected.items()
    )


def canonical(tensors: Tensors, source: str) -> dict[str, Named]:
    """A checkpoint's tensors under one name each: `features.0.weight`, `lin0.model.1.weight` (flat).

    What a metric does not need is dropped, and names that mean nothing here stay as they are.

    Raises:
        WeightsMismatch: two tensors of one meaning differ, a head is no vector, or the scaling layer is not
            LPIPS's.
    """
    named: dict[str, Named] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix("module.")
        if name.startswith("classifier."):
            continue
        if name in ("scaling_layer.shift", "scaling_layer.scale"):
            _check_scaling(name, tensor, source)
            continue
        if head := _HEAD.fullmatch(name):
            if tensor.size != max(tensor.shape, default=0):
                raise WeightsMismatch(
                    f"{source}: {printable(original)} has shape {tensor.shape}, but a head is one weight a channel"
                )
            name, tensor = f"lin{int(head[1])}.model.1.weight", tensor.reshape(-1)
        elif piece := _SLICE.match(name):
            name = f"features.{name[piece.end() :]}"
        twin = named.get(name)
        if twin is None:
            named[name] = Named(original, tensor)
        elif twin.tensor.shape != tensor.shape or twin.tensor.tobytes() != tensor.tobytes():
            raise WeightsMismatch(
                f"{source}: {printable(twin.original)} and {printable(original)} stand for the same tensor, "
                "but differ; the checkpoint is inconsistent"
            )
    return named


def pytorch_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint that fits, by its canonical name."""
    return {name: place.shape for name, place in _places(architecture).items()}


def to_pytorch(parameters: Parameters, architecture: Architecture) -> dict[str, np.ndarray]:
    """A whole LPIPS as the `lpips` package names it; inverse of `from_pytorch`.

    Raises:
        WeightsMismatch: the parameters have floors, without which their distances would be others.
    """
    if parameters.get("floors"):
        raise WeightsMismatch(
            "the metric has floors, f / sqrt(|f|^2 + c^2), and the lpips package always computes f / (|f| + 1e-10): "
            "no checkpoint of PyTorch's gives its distances. Only a metric without floors can be put in its terms"
        )
    flat = dict(flatten(parameters))
    names = _lpips_names(architecture)
    tensors: dict[str, np.ndarray] = {}
    if parameters.get("backbone") and parameters.get("heads"):
        tensors["scaling_layer.shift"] = np.array(SHIFT, np.float32).reshape(1, 3, 1, 1)
        tensors["scaling_layer.scale"] = np.array(SCALE, np.float32).reshape(1, 3, 1, 1)
    for name, place in _places(architecture).items():
        if place.native not in flat:
            continue
        tensor = np.asarray(flat[place.native])
        if _group(place.native) == "heads":
            index = place.native.removeprefix("heads.")
            tensors[name] = tensors[f"lins.{index}.model.1.weight"] = tensor.reshape(1, -1, 1, 1)
        else:
            tensors[names[name]] = np.ascontiguousarray(tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor)
    return tensors


def check_heads(heads: tuple[Any, ...], architecture: Architecture, source: str) -> None:
    """Raises `WeightsMismatch` unless there is one non-negative, finite weight a tapped channel."""
    unflatten({f"heads.{index}": np.asarray(head) for index, head in enumerate(heads)}, architecture, source)


def digest(parameters: Parameters) -> str:
    """sha256 over names, shapes and float32 values of all parameters."""
    return digest_tensors(dict(flatten(parameters)))


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """The `digest` of parameters that are flat."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(np.asarray(tensors[name]), dtype="<f4", order="C")
        total.update(f"{name}{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def _places(architecture: Architecture) -> dict[str, _Place]:
    """What a checkpoint that fits consists of, by canonical name."""
    places: dict[str, _Place] = {}
    for path, (height, width, inputs, outputs) in architecture.convolutions():
        name = _torchvision_name(path)
        native = ".".join(("backbone", *path))
        places[f"{name}.weight"] = _Place(f"{native}.kernel", (outputs, inputs, height, width))
        places[f"{name}.bias"] = _Place(f"{native}.bias", (outputs,))
    for tap, channels in enumerate(architecture.channels):
        places[f"lin{tap}.model.1.weight"] = _Place(f"heads.{tap}", (channels,))
    return places


def _lpips_names(architecture: Architecture) -> dict[str, str]:
    """How an LPIPS names a backbone's tensors, whose slices end at the taps, by their canonical names."""
    slices = {
        f"features.{layer.index}.": f"net.slice{number}.{layer.index}."
        for number, stage in enumerate(architecture.stages(), start=1)
        for layer in stage
    }
    names: dict[str, str] = {}
    for name in _places(architecture):
        if match := re.match(r"features\.\d+\.", name):
            names[name] = slices[match[0]] + name[match.end() :]
    return names


def _torchvision_name(path: tuple[str, ...]) -> str:
    return ".".join(path).replace("features_", "features.")


def _group(native: str) -> str:
    """ "backbone", "heads" or "floors", for the name of one of its tensors."""
    return native.partition(".")[0]


def _native_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape


def _native_layout(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)) if tensor.ndim == 4 else tensor


def _assemble(flat: Iterable[tuple[str, np.ndarray]]) -> Parameters:
    """The tree of named arrays, heads and floors in the order they come."""
    parameters: Parameters = {}
    for name, tensor in flat:
        if (group := _group(name)) in _A_TAP:
            parameters[group] = (*parameters.get(group, ()), tensor)
            continue
        *path, leaf = name.split(".")
        node = parameters
        for step in path:
            node = node.setdefault(step, {})
        node[leaf] = tensor
    return parameters


def _check_names(
    expected: Mapping[str, str], found: Mapping[str, str], architecture: Architecture, source: str
) -> None:
    """Compares the keys, and speaks of them by the values."""
    missing = [shown for name, shown in expected.items() if name not in found]
    left_over = [shown for name, shown in found.items() if name not in expected]
    if missing or left_over:
        faults = [f"missing {_list(missing)}"] if missing else []
        faults += [f"left over {_list(left_over)}"] if left_over else []
        raise WeightsMismatch(
            f"{source} fits the network '{architecture.name}' only in part, so nothing of it was loaded: "
            f"{'; '.join(faults)}. Is it a checkpoint of another network, or cut short?"
        )


def _checked(name: str, tensor: np.ndarray, shape: tuple[int, ...], source: str) -> np.ndarray:
    """The tensor as float32, if it is what it should be; heads and floors go by their names."""
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

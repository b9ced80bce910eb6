"""LPIPS in PyTorch, written from its definition alone, as a reference for the library's numbers.

It shares no table and no arithmetic with the library. Networks are spelt out as torchvision's `features`, so
that the index of a module is its index there; everything is computed in float64.
"""

# PyTorch is not a dependency of the development environment.
# pyright: reportMissingImports=false

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlpips_jax.weights.pytorch import read_checkpoint

INPUT = -1

Tensors = dict[str, torch.Tensor]
"""Tensors of a checkpoint: `features.0.weight` (out, in, h, w), as torchvision names it, and `lin0` (channels)."""


class Fire(nn.Module):
    """SqueezeNet's fire module."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def alex() -> nn.Sequential:
    """`features` of torchvision's AlexNet."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def vgg(depths: tuple[int, ...] = (2, 2, 3, 3, 3), *, average: bool = False) -> nn.Sequential:
    """`features` of torchvision's VGG16, or of another depth; E-LPIPS pools by averages."""
    modules: list[nn.Module] = []
    inputs = 3
    for depth, channels in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            modules += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            inputs = channels
        modules.append(nn.AvgPool2d(2, 2) if average else nn.MaxPool2d(2, 2))
    return nn.Sequential(*modules)


def squeeze(*, ceil: bool = True) -> nn.Sequential:
    """`features` of torchvision's SqueezeNet 1.1; E-LPIPS drops windows that hang over the edge."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=ceil)),
        *(Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=ceil)),
        *(Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=ceil)),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )


class Residual(nn.Module):
    """A block of ResNet-18, or with a bottleneck, of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        channels = (inputs, width, width, outputs) if bottleneck else (inputs, width, width)
        windows, strides = ((1, 3, 1), (1, stride, 1)) if bottleneck else ((3, 3), (stride, 1))
        self.count = len(windows)
        for number, (window, step) in enumerate(zip(windows, strides, strict=True), start=1):
            before, after = channels[number - 1 : number + 1]
            convolution = nn.Conv2d(before, after, window, step, padding=window // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.downsample = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for number in range(1, self.count + 1):
            y = y.relu() if number > 1 else y
            y = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(y))
        return (y + self.downsample(x)).relu()


def resnet(depths: tuple[int, ...], *, bottleneck: bool = False) -> nn.Sequential:
    """torchvision's ResNet of so many blocks, without its classifier, as a sequence."""
    modules = [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    modules.append(nn.MaxPool2d(3, 2, padding=1))
    inputs = 64
    for width, depth in zip((64, 128, 256, 512), depths, strict=True):
        blocks = []
        for index in range(depth):
            stride = 2 if index == 0 and width > 64 else 1
            blocks.append(Residual(inputs, width, stride, bottleneck=bottleneck))
            inputs = 4 * width if bottleneck else width
        modules.append(nn.Sequential(*blocks))
    return nn.Sequential(*modules)


IN_SEQUENCE = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
"""The places of a ResNet's modules in the sequence, by torchvision's names."""


@dataclass(frozen=True)
class Variant:
    """A network as a metric uses it: modules, and the indices of those whose outputs are compared."""

    features: nn.Sequential
    taps: tuple[int, ...]


def variant(metric: str) -> Variant:
    """The network of an LPIPS, by the metric's name or the network's own.

    Raises:
        LookupError: its network is not among those of this module.
    """
    special = {
        "lpips-squeeze@elpips": lambda: Variant(squeeze(ceil=False), (1, 4, 7, 9, 10, 11, 12)),
        "elpips-squeeze": lambda: Variant(squeeze(ceil=False), (INPUT, 1, 3, 4, 6, 7, 9, 10, 11, 12)),
        "elpips-vgg": lambda: Variant(vgg(average=True), (INPUT, 1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)),
    }
    usual = {
        "alex": lambda: Variant(alex(), (1, 4, 7, 9, 11)),
        "vgg": lambda: Variant(vgg(), (3, 8, 15, 22, 29)),
        "squeeze": lambda: Variant(squeeze(), (1, 4, 7, 9, 10, 11, 12)),
        "vgg19": lambda: Variant(vgg((2, 2, 4, 4, 4)), (3, 8, 17, 26, 35)),
        "resnet18": lambda: Variant(resnet((2, 2, 2, 2)), (2, 4, 5, 6, 7)),
        "resnet50": lambda: Variant(resnet((3, 4, 6, 3), bottleneck=True), (2, 4, 5, 6, 7)),
    }
    family, _, backbone = metric.partition("@")[0].rpartition("-")
    make = special.get(metric) or usual.get(backbone)
    if make is None or family not in ("", "lpips", "rlpips", "baseline", "elpips"):
        raise LookupError(f"{metric} is not over one of the networks {', '.join(usual)}")
    return make()


class Reference:
    """LPIPS with given weights.

    Args:
        variant: the network.
        tensors: its weights and the heads; names or shapes that do not fit are errors.
        scaled: whether the channels of the image are scaled first (version 0.1).
        unweighted: whether all heads are 1, and need not be there.
    """

    # Rounded to single precision, as the `lpips` package holds them in every precision.
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().reshape(1, 3, 1, 1)

    def __init__(self, variant: Variant, tensors: Tensors, *, scaled: bool, unweighted: bool = False) -> None:
        self.features, self.taps, self.scaled = variant.features.double().eval(), variant.taps, scaled
        prefix = "features."
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        self.features.load_state_dict(weights)
        self.features.requires_grad_(False)
        self.heads = [
            torch.ones(1) if unweighted else tensors[f"lin{index}"].double().reshape(1, -1, 1, 1)
            for index in range(len(self.taps))
        ]

    def activations(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Unit-normalised activations at the taps, of images (n, 3, h, w) in [-1, 1]."""
        if self.scaled:
            x = (x - self.shift) / self.scale
        found = [x] if INPUT in self.taps else []
        for index, module in enumerate(self.features):
            if index > max(self.taps):
                break
            x = module(x)
            if index in self.taps:
                found.append(x)
        return [f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10) for f in found]

    def layers(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The share of each tap in the distance, (n, layers)."""
        parts = [
            (head * (f - g) ** 2).sum(dim=1).mean(dim=(1, 2))
            for f, g, head in zip(self.activations(x), self.activations(y), self.heads, strict=True)
        ]
        return torch.stack(parts, dim=1)

    def compare(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Layers (layers,) of the distance of two images (h, w, 3) in [-1, 1]; its gradient in the second."""
        second = to_torch(y).requires_grad_()
        layers = self.layers(to_torch(x), second)[0]
        layers.sum().backward()
        assert second.grad is not None
        return layers.detach().numpy(), second.grad[0].permute(1, 2, 0).numpy()


def to_torch(image: np.ndarray) -> torch.Tensor:
    """An image (h, w, 3) as a batch (1, 3, h, w) in float64."""
    return torch.from_numpy(np.asarray(image, np.float64)).permute(2, 0, 1)[None].contiguous()


def read(path: Path, names: Mapping[str, str] | None = None) -> Tensors:
    """Tensors of a checkpoint, read by PyTorch; the formats that PyTorch does not read are read by the library.

    Args:
        path: the file.
        names: what each tensor is called alone, by its name in the file, dotted where dictionaries are nested;
            None where that is the same.
    """
    if path.suffix in (".npy", ".safetensors"):
        contents = {name: torch.from_numpy(array) for name, array in read_checkpoint(path).items()}
    else:
        contents = dict(_flat(torch.load(path, map_location="cpu", weights_only=True)))
    return rename(contents if names is None else {name: contents[original] for original, name in names.items()})


def _flat(contents: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in contents.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def rename(contents: Mapping[str, Any]) -> Tensors:
    """The tensors that a metric needs, under the names this module gives them."""
    tensors: Tensors = {}
    for name, value in contents.items():
        if match := re.fullmatch(r"(?:module\.)?lin(?:s\.)?(\d+)\.model\.\d\.weight", name):
            tensors[f"lin{match[1]}"] = value.detach().flatten()
        elif match := re.fullmatch(r"(?:module\.)?(?:features|net\.slice\d)\.(.+)", name):
            tensors[f"features.{match[1]}"] = value.detach()
        elif match := re.fullmatch(rf"(?:module\.)?({'|'.join(IN_SEQUENCE)})\.(.+)", name):
            tensors[f"features.{IN_SEQUENCE[match[1]]}.{match[2]}"] = value.detach()
    return tensors


class Package:
    """The `lpips` package as it is installed, with given weights.

    Raises:
        Exception: it is not installed, or cannot be imported, or has no such network.
    """

    def __init__(self, net: str, version: str, tensors: Tensors) -> None:
        import lpips

        self.module = lpips.LPIPS(
            net=net, version=version, pretrained=False, pnet_rand=True, use_dropout=True, verbose=False
        )
        state = self.module.state_dict()
        wanted = rename({name: value for name, value in state.items() if not name.startswith("scaling_layer")})
        if wanted.keys() != tensors.keys():
            raise LookupError(f"the package's network has other tensors: {_differing(wanted, tensors)}")
        filled = {
            name: tensors[key].reshape(value.shape) for name, value in state.items() for key in rename({name: value})
        }
        self.module.load_state_dict(state | filled)
        self.module.double()

    def layers(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The share of each tap in the distance of two images (h, w, 3) in [-1, 1]."""
        with torch.no_grad():
            _, layers = self.module(to_torch(x), to_torch(y), retPerLayer=True)
        return np.array([float(layer) for layer in layers])


def _differing(names: Iterable[str], others: Iterable[str]) -> str:
    return ", ".join(sorted(set(names) ^ set(others))[:6])

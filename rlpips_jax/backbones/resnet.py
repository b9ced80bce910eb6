"""Residual networks (torchvision's `resnet18`, `resnet50`), tapped after the stem's ReLU and after each stage.

Batch normalisation is folded into the convolution before it when a PyTorch file is read: with its weight g, bias b,
running mean m and running variance v, the kernel becomes k g / sqrt(v + 1e-5), and the bias b - m g / sqrt(v + 1e-5).
"""

import functools
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rlpips_jax.backbones import axes
from rlpips_jax.backbones.dropout import Dropout, dropped
from rlpips_jax.backbones.locality import Locality, Window, locality_of
from rlpips_jax.backbones.protocol import IMAGENET, Computation, Scaling, taps_of_stages
from rlpips_jax.errors import WeightsMismatch
from rlpips_jax.files.official import Official, torchvision
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.pooling import Pooling

EPSILON = 1e-5
"""Of PyTorch's batch normalisation."""

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages, before a block's multiples."""

POOLING = Pooling("max", 3, 2)
"""After the stem, with a padding of one pixel."""

BASIC = ((3, 1), (3, 1))
"""A block's convolutions: their windows, and their channels as multiples of the stage's width."""

BOTTLENECK = ((1, 1), (3, 1), (1, 4))
"""The block of deeper networks."""

ROBUSTNESS = r"^(module\.)?model\.(?=conv1\.|bn1\.|layer\d\.|fc\.)"
ROBUSTNESS_UNUSED = r"(module\.)?(attacker|normalizer)\."
"""What the `robustness` library writes before torchvision's names, and what else is in its files."""

_NORMALISATION = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a batch normalisation, by the ends of their names."""


class _Convolution(NamedTuple):
    """A convolution: its path in the parameter tree, PyTorch's names, and its kernel's shape (h, w, in, out)."""

    path: str
    kernel: str
    normalisation: str
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class ResNet:
    """A `StagedBackbone` of residual blocks.

    Attributes:
        name: as it stands in the names of metrics.
        block: the convolutions of every block, `BASIC` or `BOTTLENECK`; its first 3x3 has the block's stride.
        depths: number of blocks in each stage.
        scaling: what its images are scaled by.
        official: the PyTorch file with the published weights.
        unused: the names of further tensors in PyTorch files.
    """

    name: str
    block: tuple[tuple[int, int], ...]
    depths: tuple[int, int, int, int]
    scaling: Scaling = IMAGENET
    # Facts about files, which change no program.
    official: Official | None = field(default=None, compare=False)
    unused: str = field(default=r"fc\.|.*\.num_batches_tracked", compare=False)

    @property
    def tapped(self) -> tuple[str, ...]:
        """torchvision's names of the modules whose outputs are the taps."""
        return ("relu", *(f"layer{stage}" for stage in range(1, len(WIDTHS) + 1)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each tap."""
        return (WIDTHS[0], *(width * self.block[-1][1] for width in WIDTHS))

    @property
    @functools.cache
    def minimum_size(self) -> int:
        """The smallest height and width, in pixels: every window is padded, so one pixel is enough."""
        return 1

    @property
    def locality(self) -> Locality:
        """Which part of the image each tap's activations depend on; what skips a block sees less than its convolutions.

        Inputs of blocks, which are kept beside these, count as further activations.
        """
        stages = [[Window(7, 2, 3, WIDTHS[0])]]
        for stage, (width, depth) in enumerate(zip(WIDTHS, self.depths, strict=True), start=1):
            windows = [Window(POOLING.window, POOLING.stride, 1, WIDTHS[0])] if stage == 1 else []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                for window, multiple in self.block:
                    step = stride if window == 3 else 1
                    stride = 1 if window == 3 else stride
                    windows.append(Window(window, step, window // 2, width * multiple))
                windows.append(Window(1, channels=width * self.block[-1][1]))
            stages.append(windows)
        return locality_of(stages)

    @property
    def signature(self) -> str:
        """What pins the computation in a metric's signature."""
        return f"backbone={self.name} taps={len(self.tapped)}"

    @property
    @functools.cache
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its dotted path."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, _, _, shape in self._convolutions():
            shapes[f"{path}.kernel"], shapes[f"{path}.bias"] = shape, shape[-1:]
        return shapes

    @property
    @functools.cache
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in a PyTorch file, by its name there."""
        shapes: dict[str, tuple[int, ...]] = {}
        for _, kernel, normalisation, (height, width, inputs, outputs) in self._convolutions():
            shapes[f"{kernel}.weight"] = (outputs, inputs, height, width)
            shapes |= {f"{normalisation}.{name}": (outputs,) for name in _NORMALISATION}
        return shapes

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors under torchvision's names, where they have those of the `robustness` library; others as they are.

        Its networks lie below `model`, beside an attacker with a copy of the network, and a normaliser.
        """
        own = {name: tensor for name, tensor in tensors.items() if not re.match(ROBUSTNESS_UNUSED, name)}
        return axes.renamed(own, [(ROBUSTNESS, "")])

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by dotted path, from the tensors that `pytorch_shapes` names.

        Raises:
            WeightsMismatch: a running variance is negative.
        """
        parameters: dict[str, np.ndarray] = {}
        for path, kernel, normalisation, _ in self._convolutions():
            weight, bias, mean, variance = (
                tensors[f"{normalisation}.{name}"].astype(np.float64) for name in _NORMALISATION
            )
            if variance.min() < 0:
                raise WeightsMismatch(f"{normalisation}.running_var is {variance.min():.3g}, but variances are >= 0")
            scale = weight / np.sqrt(variance + EPSILON)
            folded = axes.from_pytorch(tensors[f"{kernel}.weight"]) * scale
            parameters[f"{path}.kernel"] = np.asarray(folded, np.float32, order="C")
            parameters[f"{path}.bias"] = (bias - mean * scale).astype(np.float32)
        return parameters

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors with these parameters, and batch normalisations that only add the bias."""
        tensors: dict[str, np.ndarray] = {}
        for path, kernel, normalisation, _ in self._convolutions():
            bias = parameters[f"{path}.bias"]
            values = np.ones_like(bias), bias, np.zeros_like(bias), np.full_like(bias, 1 - EPSILON)
            tensors[f"{kernel}.weight"] = axes.to_pytorch(parameters[f"{path}.kernel"])
            tensors |= {f"{normalisation}.{name}": value for name, value in zip(_NORMALISATION, values, strict=True)}
        return tensors

    def stages(self) -> tuple[int, ...]:
        """The stem is stage 0."""
        return tuple(range(len(WIDTHS) + 1))

    def stage(
        self,
        stage: Hashable,
        parameters: PyTree[Array],
        x: Float[Array, "n h w c"],
        *,
        computation: Computation,
        sizes: Int[Array, "n 2"] | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "n i j d"], Int[Array, "n 2"] | None]:
        """Runs one stage; arguments and result as in `StagedBackbone`."""
        places = {convolution.path: place for place, convolution in enumerate(self._convolutions())}

        def convolve(path: str, x: Array, sizes: Array | None, stride: int) -> tuple[Array, Array | None]:
            kernel = functools.reduce(lambda tree, key: tree[key], path.split("."), parameters)
            padding = kernel["kernel"].shape[0] // 2
            x = computation.convolve(kernel, dropped(x, dropout, places[path]), stride=stride, padding=padding)
            if sizes is None:
                return x, None
            sizes = (sizes - 1) // stride + 1
            return inside(x, sizes), sizes

        assert isinstance(stage, int)
        if stage == 0:
            x, sizes = convolve("conv1", x, sizes, 2)
            return nn.relu(x), sizes
        if stage == 1:
            # No activation here is below 0, so zeros around them change no maximum.
            x = computation.pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), POOLING)
            if sizes is not None:
                sizes = POOLING.size(sizes + 2)
                x = inside(x, sizes)
        strided = next(number for number, (window, _) in enumerate(self.block) if window == 3)
        for index in range(self.depths[stage - 1]):
            path, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y, extent = x, sizes
            for number in range(len(self.block)):
                y = nn.relu(y) if number else y
                y, extent = convolve(f"{path}.conv{number + 1}", y, extent, stride if number == strided else 1)
            if f"{path}.downsample" in places:
                x, _ = convolve(f"{path}.downsample", x, sizes, stride)
            x, sizes = nn.relu(x + y), extent
        return x, sizes

    def taps(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations, one array per tap."""
        return taps_of_stages(self, parameters, images, computation)

    def _convolutions(self) -> Iterator[_Convolution]:
        """Every convolution, in order."""
        yield _Convolution("conv1", "conv1", "bn1", (7, 7, 3, WIDTHS[0]))
        inputs = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, self.depths, strict=True), start=1):
            for index in range(depth):
                path, first = f"layer{stage}.{index}", inputs
                for number, (window, multiple) in enumerate(self.block, start=1):
                    shape = (window, window, inputs, width * multiple)
                    yield _Convolution(f"{path}.conv{number}", f"{path}.conv{number}", f"{path}.bn{number}", shape)
                    inputs = width * multiple
                if index == 0 and (stage > 1 or first != inputs):
                    path = f"{path}.downsample"
                    yield _Convolution(path, f"{path}.0", f"{path}.1", (1, 1, first, inputs))


CITATION = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016"

RESNET18 = ResNet(
    name="resnet18",
    block=BASIC,
    depths=(2, 2, 2, 2),
    official=torchvision(
        "resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
        size=46_830_571,
        citation=CITATION,
    ),
)

RESNET50 = ResNet(
    name="resnet50",
    block=BOTTLENECK,
    depths=(3, 4, 6, 3),
    official=torchvision(
        "resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        size=102_530_333,
        citation=CITATION,
    ),
)

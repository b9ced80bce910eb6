"""Networks that are a plain sequence of layers, as tables: which convolutions, how they pool, which outputs are taps.

A layer is named by its index in torchvision's `features`, so that every table can be checked against the original by
eye. Pooling and taps are fields of the table: `dataclasses.replace` makes a variant.
"""

import functools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rlpips_jax.backbones import axes
from rlpips_jax.backbones.blurred_convolution import blurred_convolution
from rlpips_jax.backbones.dropout import Dropout, dropped
from rlpips_jax.backbones.locality import Locality, Window, locality_of
from rlpips_jax.backbones.protocol import IMAGENET, Computation, Scaling, taps_of_stages
from rlpips_jax.files.official import Official
from rlpips_jax.ops.blur_pool import AROUND, FILTER, blurred_size
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.pooling import Pooling, Size

PLACES = 3
"""The most convolutions of a layer, each of which has a dropout mask of its own."""

INPUT = -1
"""The tap that stands for the network's (scaled) input itself."""


@dataclass(frozen=True)
class Convolution:
    """A square convolution and a ReLU; if it is blurred, which has stride 1, with a blur pooling between them."""

    index: int
    channels: int
    window: int
    stride: int = 1
    padding: int = 0
    blurred: bool = False

    def size(self, size: Size) -> Size:
        """Output length along an axis of `size` pixels."""
        size = self.unblurred_size(size)
        return blurred_size(size) if self.blurred else size

    def unblurred_size(self, size: Size) -> Size:
        """Length before the blur pooling."""
        return (size + 2 * self.padding - self.window) // self.stride + 1


@dataclass(frozen=True)
class Fire:
    """SqueezeNet's fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side, ReLU after each."""

    index: int
    squeeze: int
    expand: int

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return 2 * self.expand

    def size(self, size: Size) -> Size:
        """Output length along an axis of `size` pixels: unchanged."""
        return size


@dataclass(frozen=True)
class Pool:
    """A place where the table's pooling is applied."""

    index: int


@dataclass(frozen=True)
class BlurPool:
    """A blur pooling."""

    index: int

    def size(self, size: Size) -> Size:
        """Output length along an axis of `size` pixels."""
        return blurred_size(size)


Layer = Convolution | Fire | Pool | BlurPool


@dataclass(frozen=True)
class Sequential:
    """A `StagedBackbone` that is a sequence of layers.

    Attributes:
        name: as it stands in the names of metrics.
        layers: what is computed, in order.
        pooling: what every `Pool` does.
        tapped: indices of the layers whose outputs (after ReLU) are the taps; `INPUT` is the input.
        scaling: what its images are scaled by.
        official: the PyTorch file with the published weights.
        unused: the names of further tensors in PyTorch files.
    """

    name: str
    layers: tuple[Layer, ...]
    pooling: Pooling
    tapped: tuple[int, ...]
    scaling: Scaling = IMAGENET
    # Facts about files, which change no program.
    official: Official | None = field(default=None, compare=False)
    unused: str = field(default=r"classifier\.", compare=False)

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each tap."""
        channels = {INPUT: 3}
        for layer in self.layers:
            if not isinstance(layer, Pool | BlurPool):
                channels[layer.index] = layer.channels
        return tuple(channels[tap] for tap in self.tapped)

    @property
    @functools.cache
    def minimum_size(self) -> int:
        """The smallest height and width, in pixels, for which every activation has at least one pixel."""
        return next(size for size in range(1, 1024) if self.smallest_activation(size) >= 1)

    @property
    def locality(self) -> Locality:
        """Which part of the image each tap's activations depend on."""
        stages: list[list[Window]] = []
        channels = 3
        for stage in self.stages():
            stages.append([])
            for layer in stage:
                if not isinstance(layer, Pool | BlurPool):
                    channels = layer.channels
                stages[-1] += self._windows(layer, channels)
        return locality_of(stages, 3)

    @property
    def signature(self) -> str:
        """What pins the computation in a metric's signature."""
        return f"backbone={self.name} pooling={self.pooling} taps={len(self.tapped)}"

    @property
    @functools.cache
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its dotted path."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, shape in self.convolutions():
            name = ".".join(path)
            shapes[f"{name}.kernel"], shapes[f"{name}.bias"] = shape, shape[-1:]
        return shapes

    @property
    @functools.cache
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in a PyTorch file, by its name there."""
        return {_pytorch_name(name): axes.of_pytorch(shape) for name, shape in self.shapes.items()}

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by dotted path, from the tensors that `pytorch_shapes` names."""
        return {name: axes.from_pytorch(tensors[_pytorch_name(name)]) for name in self.shapes}

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `from_pytorch`."""
        return {_pytorch_name(name): axes.to_pytorch(tensor) for name, tensor in parameters.items()}

    def convolutions(self) -> Iterator[tuple[tuple[str, ...], tuple[int, int, int, int]]]:
        """Path of each convolution in the parameter tree, and the shape (h, w, in, out) of its kernel."""
        channels = 3
        for layer in self.layers:
            if isinstance(layer, Pool | BlurPool):
                continue
            name = layer_name(layer)
            if isinstance(layer, Fire):
                yield (name, "squeeze"), (1, 1, channels, layer.squeeze)
                yield (name, "expand1x1"), (1, 1, layer.squeeze, layer.expand)
                yield (name, "expand3x3"), (3, 3, layer.squeeze, layer.expand)
            else:
                yield (name,), (layer.window, layer.window, channels, layer.channels)
            channels = layer.channels

    def smallest_activation(self, size: int) -> int:
        """The shortest any activation gets along an axis of `size` pixels; 0 or less where the image is too small."""
        smallest = size
        for layer in self.layers:
            size = self.pooling.size(size) if isinstance(layer, Pool) else layer.size(size)
            smallest = min(smallest, size)
            if smallest < 1:
                break
        return smallest

    def _windows(self, layer: Layer, channels: int) -> list[Window]:
        """What a layer with so many channels sees of its input, step by step."""
        blur = Window(len(FILTER), 2, AROUND["reflected"], channels)
        if isinstance(layer, BlurPool):
            return [blur]
        if isinstance(layer, Pool):
            padding = AROUND["zero"] if self.pooling.kind == "l2" else 0
            return [Window(self.pooling.window, self.pooling.stride, padding, channels)]
        if isinstance(layer, Fire):
            return [Window(1, channels=layer.squeeze), Window(3, padding=1, channels=channels)]
        convolution = Window(layer.window, layer.stride, layer.padding, channels)
        return [convolution, blur] if layer.blurred else [convolution]

    def stages(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers from each tap to the next, one group per tap (empty for `INPUT`); none after the last tap."""
        stages: list[tuple[Layer, ...]] = [()] if INPUT in self.tapped else []
        stage: list[Layer] = []
        for layer in self.layers:
            stage.append(layer)
            if layer.index in self.tapped:
                stages.append(tuple(stage))
                stage = []
        return tuple(stages)

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
        """Runs the layers of one stage; arguments and result as in `StagedBackbone`."""
        for layer in cast(tuple[Layer, ...], stage):
            if isinstance(layer, Pool):
                x = computation.pool(x, self.pooling)
            elif isinstance(layer, Fire):
                x = _fire(
                    layer, parameters[layer_name(layer)], x, computation=computation, sizes=sizes, dropout=dropout
                )
            elif isinstance(layer, BlurPool):
                x = computation.blur_pool(x, sizes)
            else:
                x = dropped(x, dropout, PLACES * layer.index)
                x = _convolution(layer, parameters[layer_name(layer)], x, computation=computation, sizes=sizes)
            if sizes is not None:
                sizes = self.pooling.size(sizes) if isinstance(layer, Pool) else layer.size(sizes)
                x = inside(x, sizes)
        return x, sizes

    def taps(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations, one array per tap."""
        return taps_of_stages(self, parameters, images, computation)


def layer_name(layer: Layer) -> str:
    """Name of a layer in the parameter tree."""
    return f"features_{layer.index}"


def _pytorch_name(name: str) -> str:
    """What torchvision calls a parameter, by its dotted path."""
    return name.replace("features_", "features.").replace("kernel", "weight")


def _convolution(
    layer: Convolution,
    parameters: PyTree[Array],
    x: Float[Array, "n h w c"],
    *,
    computation: Computation,
    sizes: Int[Array, "n 2"] | None,
) -> Float[Array, "n i j d"]:
    if layer.blurred and sizes is None:
        return nn.relu(blurred_convolution(parameters, x, padding=layer.padding, computation=computation))
    x = computation.convolve(parameters, x, stride=layer.stride, padding=layer.padding)
    if layer.blurred and sizes is not None:
        sizes = layer.unblurred_size(sizes)
        x = computation.blur_pool(inside(x, sizes), sizes)
    return nn.relu(x)


def _fire(
    layer: Fire,
    parameters: PyTree[Array],
    x: Float[Array, "n h w c"],
    *,
    computation: Computation,
    sizes: Int[Array, "n 2"] | None,
    dropout: Dropout | None,
) -> Float[Array, "n h w d"]:
    place = PLACES * layer.index
    x = nn.relu(computation.convolve(parameters["squeeze"], dropped(x, dropout, place)))
    if sizes is not None:
        x = inside(x, sizes)
    expanded = (
        nn.relu(computation.convolve(parameters["expand1x1"], dropped(x, dropout, place + 1))),
        nn.relu(computation.convolve(parameters["expand3x3"], dropped(x, dropout, place + 2), padding=1)),
    )
    return jnp.concatenate(expanded, axis=-1)

"""Feature extractors as tables: which convolutions, how they pool, where the activations are tapped.

A layer is named by its index in torchvision's `features`, so that every table can be checked against the
original by eye. Pooling and taps are fields of the table: another variant is `dataclasses.replace` away.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.inside import inside
from rlpips_jax.ops.pooling import Pooling, Size, pool

PLACES = 3
"""Most convolutions of a layer, each with a mask of its own."""

INPUT = -1
"""The tap that stands for the network's (scaled) input itself."""


@dataclass(frozen=True)
class Convolution:
    """A square convolution and a ReLU."""

    index: int
    channels: int
    window: int
    stride: int = 1
    padding: int = 0

    def size(self, size: Size) -> Size:
        """Output length along an axis of `size` pixels."""
        return (size + 2 * self.padding - self.window) // self.stride + 1


@dataclass(frozen=True)
class Fire:
    """SqueezeNet's fire module: a 1x1 squeeze, then 1x1 and 3x3 expansions side by side, ReLU after each."""

    index: int
    squeeze: int
    expand: int

    @property
    def channels(self) -> int:
        return 2 * self.expand

    def size(self, size: Size) -> Size:
        """Output length along an axis of `size` pixels: unchanged."""
        return size


@dataclass(frozen=True)
class Pool:
    """A place where the table's pooling is applied."""

    index: int


Layer = Convolution | Fire | Pool


@dataclass(frozen=True)
class Architecture:
    """A feature extractor.

    Attributes:
        name: short name, as it stands in metric names.
        layers: what is computed, in order.
        pooling: what every `Pool` does.
        taps: indices of the layers whose outputs (after ReLU) are the features; `INPUT` is the input.
    """

    name: str
    layers: tuple[Layer, ...]
    pooling: Pooling
    taps: tuple[int, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels at each tap."""
        channels = {INPUT: 3}
        for layer in self.layers:
            if not isinstance(layer, Pool):
                channels[layer.index] = layer.channels
        return tuple(channels[tap] for tap in self.taps)

    def convolutions(self) -> Iterator[tuple[tuple[str, ...], tuple[int, int, int, int]]]:
        """Path of each convolution in the parameter tree, and the shape (h, w, in, out) of its kernel."""
        channels = 3
        for layer in self.layers:
            if isinstance(layer, Pool):
                continue
            name = layer_name(layer)
            if isinstance(layer, Fire):
                yield (name, "squeeze"), (1, 1, channels, layer.squeeze)
                yield (name, "expand1x1"), (1, 1, layer.squeeze, layer.expand)
                yield (name, "expand3x3"), (3, 3, layer.squeeze, layer.expand)
            else:
                yield (name,), (layer.window, layer.window, channels, layer.channels)
            channels = layer.channels

    def stages(self) -> tuple[tuple[Layer, ...], ...]:
        """The layers between one tap and the next, a group a tap (empty for `INPUT`); nothing after the last."""
        stages: list[tuple[Layer, ...]] = [()] if INPUT in self.taps else []
        stage: list[Layer] = []
        for layer in self.layers:
            stage.append(layer)
            if layer.index in self.taps:
                stages.append(tuple(stage))
                stage = []
        return tuple(stages)

    def smallest_activation(self, size: int) -> int:
        """The shortest any activation gets along an axis of `size` pixels; 0 or less where the image is too small."""
        smallest = size
        for layer in self.layers:
            size = self.pooling.size(size) if isinstance(layer, Pool) else layer.size(size)
            smallest = min(smallest, size)
            if smallest < 1:
                break
        return smallest

    @property
    def minimum_size(self) -> int:
        """The smallest height and width, in pixels, for which every activation has at least one pixel."""
        return next(size for size in range(1, 1024) if self.smallest_activation(size) >= 1)


def layer_name(layer: Layer) -> str:
    """Name of a layer in the parameter tree."""
    return f"features_{layer.index}"


@functools.partial(jax.tree_util.register_dataclass, data_fields=["seeds"], meta_fields=["keep"])
@dataclass(frozen=True)
class Dropout:
    """Masks on the input of every convolution, rescaled so that its expectation stays.

    Attributes:
        seeds: `(m, 2)`, random: of a batch of n images, each n / m in a row have one mask.
        keep: the share of the inputs that is kept.
    """

    seeds: UInt32[Array, "m 2"]
    keep: float

    def __call__(self, x: Float[Array, "n h w c"], place: int) -> Float[Array, "n h w c"]:
        """Activations under the masks of a place in the network."""
        index = jnp.arange(np.prod(x.shape[1:]), dtype=jnp.uint32).reshape(x.shape[1:])
        first, second = _mixed(self.seeds + np.uint32(place * 0x9E3779B9 % 2**32)).T[..., None, None, None]
        kept = _mixed(_mixed(index + first) ^ second) < np.uint32(self.keep * 2**32)
        grouped = x.reshape(kept.shape[0], -1, *x.shape[1:])
        return jnp.where(kept[:, None], grouped * np.array(1 / self.keep, x.dtype), 0).reshape(x.shape)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the 32-bit numbers that looks random (Wellons, "Prospecting for hash functions", lowbias32).

    The bits of `jax.random` for as many masks take several times as long to compile as the network itself.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropped(
    x: Float[Array, "n h w c"], dropout: Dropout | None, layer: Layer, convolution: int = 0
) -> Float[Array, "n h w c"]:
    """The input of one of a layer's convolutions, under its masks if there are any."""
    return x if dropout is None else dropout(x, PLACES * layer.index + convolution)


class FireModule(nn.Module):
    """The computation of a `Fire`, of which `make` makes the convolutions."""

    layer: Fire
    make: Callable[..., nn.Conv]

    def setup(self) -> None:
        self.squeeze = self.make(self.layer.squeeze, (1, 1), padding=0)
        self.expand1x1 = self.make(self.layer.expand, (1, 1), padding=0)
        self.expand3x3 = self.make(self.layer.expand, (3, 3), padding=1)

    def __call__(
        self, x: Float[Array, "n h w c"], sizes: Int[Array, "n 2"] | None = None, dropout: Dropout | None = None
    ) -> Float[Array, "n h w d"]:
        x = nn.relu(self.squeeze(dropped(x, dropout, self.layer, 0)))
        if sizes is not None:
            x = inside(x, sizes)
        expanded = (
            nn.relu(self.expand1x1(dropped(x, dropout, self.layer, 1))),
            nn.relu(self.expand3x3(dropped(x, dropout, self.layer, 2))),
        )
        return jnp.concatenate(expanded, axis=-1)


class Backbone(nn.Module):
    """The network an `Architecture` describes: image in, activations at its taps out.

    Attributes:
        architecture: the table.
        dtype: what is computed in; parameters stay float32.
        precision: that of the convolutions, as `jax.lax.Precision` names it.
        forward_mode: use derivatives that `jax.jvp` can take, which are slower on CPU.
    """

    architecture: Architecture
    dtype: DTypeLike = jnp.float32
    precision: str = "highest"
    forward_mode: bool = False

    def setup(self) -> None:
        make = functools.partial(
            nn.Conv,
            dtype=self.dtype,
            precision=self.precision,
            conv_general_dilated=None if self.forward_mode else convolution,
        )
        for layer in self.architecture.layers:
            if isinstance(layer, Fire):
                setattr(self, layer_name(layer), FireModule(layer, make))
            elif isinstance(layer, Convolution):
                module = make(layer.channels, (layer.window, layer.window), layer.stride, padding=layer.padding)
                setattr(self, layer_name(layer), module)

    def stage(
        self,
        x: Float[Array, "n h w c"],
        stage: tuple[Layer, ...],
        sizes: Int[Array, "n 2"] | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "n i j d"], Int[Array, "n 2"] | None]:
        """Runs the layers of one stage.

        Args:
            x: activations that the stage before left, or the image.
            stage: one of the architecture's.
            sizes: height and width of each image, where a batch holds images that zeros at the bottom and right
                have brought to one size.
            dropout: masks on the input of every convolution; None for none.

        Returns:
            The activations, and their sizes. What lies outside is 0 after every layer, as if it were padding.
        """
        for layer in stage:
            if isinstance(layer, Pool):
                x = pool(x, self.architecture.pooling, forward_mode=self.forward_mode)
            elif isinstance(layer, Fire):
                x = getattr(self, layer_name(layer))(x, sizes, dropout)
            else:
                x = nn.relu(getattr(self, layer_name(layer))(dropped(x, dropout, layer)))
            if sizes is not None:
                sizes = self.architecture.pooling.size(sizes) if isinstance(layer, Pool) else layer.size(sizes)
                x = inside(x, sizes)
        return x, sizes

    def __call__(self, x: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations at the taps, in order.

        Args:
            x: images as the network expects them (LPIPS: scaled by channel).
        """
        x = x.astype(self.dtype)
        taps = []
        for stage in self.architecture.stages():
            x, _ = self.stage(x, stage)
            taps.append(x)
        return tuple(taps)


ALEX = Architecture(
    name="alex",
    layers=(
        Convolution(0, 64, 11, stride=4, padding=2),
        Pool(2),
        Convolution(3, 192, 5, padding=2),
        Pool(5),
        Convolution(6, 384, 3, padding=1),
        Convolution(8, 256, 3, padding=1),
        Convolution(10, 256, 3, padding=1),
    ),
    pooling=Pooling("max", 3, 2),
    taps=(0, 3, 6, 8, 10),
)

VGG = Architecture(
    name="vgg",
    layers=(
        Convolution(0, 64, 3, padding=1),
        Convolution(2, 64, 3, padding=1),
        Pool(4),
        Convolution(5, 128, 3, padding=1),
        Convolution(7, 128, 3, padding=1),
        Pool(9),
        Convolution(10, 256, 3, padding=1),
        Convolution(12, 256, 3, padding=1),
        Convolution(14, 256, 3, padding=1),
        Pool(16),
        Convolution(17, 512, 3, padding=1),
        Convolution(19, 512, 3, padding=1),
        Convolution(21, 512, 3, padding=1),
        Pool(23),
        Convolution(24, 512, 3, padding=1),
        Convolution(26, 512, 3, padding=1),
        Convolution(28, 512, 3, padding=1),
    ),
    pooling=Pooling("max", 2, 2),
    taps=(2, 7, 14, 21, 28),
)

SQUEEZE = Architecture(
    name="squeeze",
    layers=(
        Convolution(0, 64, 3, stride=2),
        Pool(2),
        Fire(3, 16, 64),
        Fire(4, 16, 64),
        Pool(5),
        Fire(6, 32, 128),
        Fire(7, 32, 128),
        Pool(8),
        Fire(9, 48, 192),
        Fire(10, 48, 192),
        Fire(11, 64, 256),
        Fire(12, 64, 256),
    ),
    pooling=Pooling("max", 3, 2, ceil=True),
    taps=(0, 4, 7, 9, 10, 11, 12),
)

TINY = Architecture(
    name="tiny",
    layers=(
        Convolution(0, 64, 11, stride=4, padding=2),
        Pool(2),
        Convolution(3, 96, 5, padding=2),
        Pool(5),
        Convolution(6, 128, 3, padding=1),
        Convolution(8, 128, 3, padding=1),
    ),
    pooling=Pooling("max", 3, 2),
    taps=(0, 3, 6, 8),
)

ELPIPS_VGG = replace(
    VGG,
    pooling=Pooling("average", 2, 2),
    taps=(INPUT, 0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
)
"""VGG16 as E-LPIPS uses it: averages instead of maxima, every ReLU output tapped."""

SQUEEZE_FLOOR = replace(SQUEEZE, pooling=Pooling("max", 3, 2))
"""SqueezeNet as E-LPIPS's plain heads use it: windows over the edge are dropped."""

ELPIPS_SQUEEZE = replace(SQUEEZE_FLOOR, taps=(INPUT, 0, 3, 4, 6, 7, 9, 10, 11, 12))
"""SqueezeNet as E-LPIPS uses it: every ReLU output tapped."""

ARCHITECTURES = {architecture.name: architecture for architecture in (ALEX, VGG, SQUEEZE, TINY)}

"""Which part of an image an activation depends on, so that large images can be computed in parts.

Position i of a layer sees its input from `i stride - padding` on, `size` pixels far; so position i of a tap sees the
image from pixel `i stride - before` to pixel `i stride + after`, where `stride` is the product of all strides so far. A
part of the image that begins at a multiple of all strides has the same positions as the whole, and those whose pixels
all lie inside it, or that reach over an edge that it shares with the image, have the same activations.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """What a layer's output sees along an axis of its input, and how many channels the layer leaves there."""

    size: int
    stride: int = 1
    padding: int = 0
    channels: int = 0


class Reach(NamedTuple):
    """Position i of a tap depends on the pixels from `i stride - before` to `i stride + after`, along both axes."""

    stride: int
    before: int
    after: int


class Locality(NamedTuple):
    """What parts of an image a network can be computed in.

    Attributes:
        reaches: one per tap; the last has the largest stride, of which every other is a divisor.
        activations: numbers that all layers leave for each pixel of the image.
    """

    reaches: tuple[Reach, ...]
    activations: float


def locality_of(stages: Sequence[Sequence[Window]], channels: int = 0) -> Locality:
    """The locality of a network that is a sequence of layers.

    Args:
        stages: the layers from each tap to the next, one group per tap; the last ends with a tap.
        channels: of the network's input, if that is kept too.
    """
    stride, before, after, activations = 1, 0, 0, float(channels)
    reaches = []
    for stage in stages:
        for window in stage:
            before += window.padding * stride
            after += (window.size - 1 - window.padding) * stride
            stride *= window.stride
            activations += window.channels / stride**2
        reaches.append(Reach(stride, before, after))
    return Locality(tuple(reaches), activations)

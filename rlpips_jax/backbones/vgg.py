"""VGG16 (torchvision's `vgg16`), tapped at the end of each of its five blocks, and E-LPIPS's variant of it."""

from dataclasses import replace

from rlpips_jax.backbones.sequential import INPUT, Convolution, Pool, Sequential
from rlpips_jax.files.official import torchvision
from rlpips_jax.ops.pooling import Pooling


def block(first: int, count: int, *, channels: int) -> tuple[Convolution, ...]:
    """3x3 convolutions in a row, of which the first has this index in torchvision's `features`."""
    return tuple(Convolution(first + 2 * number, channels, 3, padding=1) for number in range(count))


VGG = Sequential(
    name="vgg",
    layers=(
        *(*block(0, 2, channels=64), Pool(4)),
        *(*block(5, 2, channels=128), Pool(9)),
        *(*block(10, 3, channels=256), Pool(16)),
        *(*block(17, 3, channels=512), Pool(23)),
        *block(24, 3, channels=512),
    ),
    pooling=Pooling("max", 2, 2),
    tapped=(2, 7, 14, 21, 28),
    official=torchvision(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
        parameters_sha256="224ce95bb4bee7c06a9c684fe51355c0db0f496dd624af1e4af02825c20d3175",
        citation="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015",
    ),
)

ELPIPS_VGG = replace(
    VGG,
    pooling=Pooling("average", 2, 2),
    tapped=(INPUT, 0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
)
"""VGG16 as E-LPIPS uses it: averages instead of maxima, every ReLU output tapped."""

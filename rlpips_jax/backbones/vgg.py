"""VGG16 (torchvision's `vgg16`), tapped at the end of each of its five blocks, and E-LPIPS's variant of it."""

from dataclasses import replace

from rlpips_jax.backbones.sequential import INPUT, Convolution, Pool, Sequential
from rlpips_jax.files.official import torchvision
from rlpips_jax.ops.pooling import Pooling

VGG = Sequential(
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
    tapped=(2, 7, 14, 21, 28),
    official=torchvision(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
        citation="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015",
    ),
)

ELPIPS_VGG = replace(
    VGG,
    pooling=Pooling("average", 2, 2),
    tapped=(INPUT, 0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
)
"""VGG16 as E-LPIPS uses it: averages instead of maxima, every ReLU output tapped."""

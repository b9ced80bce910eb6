"""VGG19 (torchvision's `vgg19`), tapped at the end of each of its five blocks."""

from rlpips_jax.backbones.sequential import Pool, Sequential
from rlpips_jax.backbones.vgg import block
from rlpips_jax.files.official import torchvision
from rlpips_jax.ops.pooling import Pooling

VGG19 = Sequential(
    name="vgg19",
    layers=(
        *(*block(0, 2, channels=64), Pool(4)),
        *(*block(5, 2, channels=128), Pool(9)),
        *(*block(10, 4, channels=256), Pool(18)),
        *(*block(19, 4, channels=512), Pool(27)),
        *block(28, 4, channels=512),
    ),
    pooling=Pooling("max", 2, 2),
    tapped=(2, 7, 16, 25, 34),
    official=torchvision(
        "vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        size=574_673_361,
        citation="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015",
    ),
)

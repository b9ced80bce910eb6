"""SqueezeNet 1.1 (torchvision's `squeezenet1_1`), and E-LPIPS's variants of it."""

from dataclasses import replace

from rlpips_jax.backbones.sequential import INPUT, Convolution, Fire, Pool, Sequential
from rlpips_jax.files.official import torchvision
from rlpips_jax.ops.pooling import Pooling

SQUEEZE = Sequential(
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
    tapped=(0, 4, 7, 9, 10, 11, 12),
    official=torchvision(
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        size=4_958_839,
        parameters_sha256="7052a3aee82bfc9fc63f80950470b454f7c9f51b67f96d858686103c2ddd5e5a",
        citation="Iandola et al.: SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv:1602.07360",
    ),
)

SQUEEZE_FLOOR = replace(SQUEEZE, pooling=Pooling("max", 3, 2))
"""SqueezeNet as E-LPIPS's plain heads use it: windows over the edge are dropped."""

ELPIPS_SQUEEZE = replace(SQUEEZE_FLOOR, tapped=(INPUT, 0, 3, 4, 6, 7, 9, 10, 11, 12))
"""SqueezeNet as E-LPIPS uses it: every ReLU output tapped."""

"""The compact network of `lpips-tiny` and `rlpips-tiny`, whose weights ship inside this package."""

from rlpips_jax.backbones.sequential import Convolution, Pool, Sequential
from rlpips_jax.ops.pooling import Pooling

TINY = Sequential(
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
    tapped=(0, 3, 6, 8),
)

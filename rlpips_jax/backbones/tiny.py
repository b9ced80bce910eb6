"""The compact networks of `lpips-tiny` and `rlpips-tiny`, whose weights ship inside this package."""

from rlpips_jax.backbones.sequential import Convolution, Pool, Sequential
from rlpips_jax.ops.pooling import Pooling


def _tiny(name: str, first: int) -> Sequential:
    """A network with so many channels in the first layer."""
    return Sequential(
        name=name,
        layers=(
            Convolution(0, first, 11, stride=4, padding=2),
            Pool(2),
            Convolution(3, 96, 5, padding=2),
            Pool(5),
            Convolution(6, 128, 3, padding=1),
            Convolution(8, 128, 3, padding=1),
        ),
        pooling=Pooling("max", 3, 2),
        tapped=(0, 3, 6, 8),
    )


TINY = _tiny("tiny", 64)
TINY_WIDE = _tiny("tiny-wide", 192)

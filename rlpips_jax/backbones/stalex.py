"""AlexNet made tolerant of shifts (ST-LPIPS): every step of stride 2 is a blur pooling.

Layers have the index that they have in the authors' `features`, whose poolings and blur poolings count too.
"""

from rlpips_jax.backbones.sequential import BlurPool, Convolution, Pool, Sequential
from rlpips_jax.ops.pooling import Pooling

BLUR_FILTERS = r"(net\.slice\d+|features)\.\d+\.filt"
"""The names of the filters of blur poolings in PyTorch files."""

STALEX = Sequential(
    name="stalex",
    layers=(
        Convolution(0, 64, 11, padding=2, blurred=True),
        *(Pool(3), BlurPool(4)),
        Convolution(5, 192, 5, padding=2),
        *(Pool(7), BlurPool(8)),
        Convolution(9, 384, 3, padding=1),
        Convolution(11, 256, 3, padding=1),
        Convolution(13, 256, 3, padding=1),
    ),
    pooling=Pooling("max", 3, 1),
    tapped=(0, 5, 9, 11, 13),
    unused=BLUR_FILTERS,
)

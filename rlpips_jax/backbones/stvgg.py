"""VGG16 made tolerant of shifts (ST-LPIPS): maxima of 2x2 with stride 1, then blur poolings."""

from rlpips_jax.backbones.sequential import BlurPool, Pool, Sequential
from rlpips_jax.backbones.stalex import BLUR_FILTERS
from rlpips_jax.backbones.vgg import block
from rlpips_jax.ops.pooling import Pooling

STVGG = Sequential(
    name="stvgg",
    layers=(
        *(*block(0, 2, channels=64), Pool(4), BlurPool(5)),
        *(*block(6, 2, channels=128), Pool(10), BlurPool(11)),
        *(*block(12, 3, channels=256), Pool(18), BlurPool(19)),
        *(*block(20, 3, channels=512), Pool(26), BlurPool(27)),
        *block(28, 3, channels=512),
    ),
    pooling=Pooling("max", 2, 1),
    tapped=(2, 8, 16, 24, 32),
    unused=BLUR_FILTERS,
)

"""AlexNet (torchvision's `alexnet`), tapped after every convolution's ReLU."""

from rlpips_jax.backbones.sequential import Convolution, Pool, Sequential
from rlpips_jax.files.official import torchvision
from rlpips_jax.ops.pooling import Pooling

ALEX = Sequential(
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
    tapped=(0, 3, 6, 8, 10),
    official=torchvision(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        size=244_408_911,
        parameters_sha256="bbb79afd37e4ac5c7e8fbfe23aef9b0d11ee867eb55be242f1e06e8ad1c66789",
        citation="Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, "
        "NIPS 2012",
    ),
)

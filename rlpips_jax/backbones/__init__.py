"""The networks whose activations are compared, each in a file of its own, and the table of them all."""

from rlpips_jax.backbones.alex import ALEX
from rlpips_jax.backbones.convnext import CONVNEXT_B, OPENCLIP_CONVNEXT_B
from rlpips_jax.backbones.dropout import Dropout
from rlpips_jax.backbones.locality import Locality, Reach, Window, locality_of
from rlpips_jax.backbones.protocol import (
    CLIP,
    IMAGENET,
    Backbone,
    Computation,
    EmbeddingBackbone,
    LocalBackbone,
    RenamedBackbone,
    Scaling,
    StagedBackbone,
)
from rlpips_jax.backbones.resnet import RESNET18, RESNET50
from rlpips_jax.backbones.sequential import INPUT, BlurPool, Convolution, Fire, Layer, Pool, Sequential, layer_name
from rlpips_jax.backbones.squeeze import ELPIPS_SQUEEZE, SQUEEZE, SQUEEZE_FLOOR
from rlpips_jax.backbones.stalex import STALEX
from rlpips_jax.backbones.stvgg import STVGG
from rlpips_jax.backbones.tiny import TINY, TINY_WIDE
from rlpips_jax.backbones.vgg import ELPIPS_VGG, VGG
from rlpips_jax.backbones.vgg19 import VGG19
from rlpips_jax.backbones.vit import CLIP_VIT_B16, CLIP_VIT_B32, OPENCLIP_VIT_B16, OPENCLIP_VIT_B32
from rlpips_jax.ops.pooling import Pooling

BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        ALEX,
        VGG,
        SQUEEZE,
        TINY,
        TINY_WIDE,
        VGG19,
        RESNET18,
        RESNET50,
        STALEX,
        STVGG,
        CLIP_VIT_B32,
        CLIP_VIT_B16,
        OPENCLIP_VIT_B32,
        OPENCLIP_VIT_B16,
        OPENCLIP_CONVNEXT_B,
        CONVNEXT_B,
    )
}
"""Every network by its name. Those whose files others have published give a metric `baseline-{name}`."""

__all__ = [
    "ALEX",
    "BACKBONES",
    "CLIP",
    "CLIP_VIT_B16",
    "CLIP_VIT_B32",
    "CONVNEXT_B",
    "ELPIPS_SQUEEZE",
    "ELPIPS_VGG",
    "IMAGENET",
    "INPUT",
    "OPENCLIP_CONVNEXT_B",
    "OPENCLIP_VIT_B16",
    "OPENCLIP_VIT_B32",
    "RESNET18",
    "RESNET50",
    "SQUEEZE",
    "SQUEEZE_FLOOR",
    "STALEX",
    "STVGG",
    "TINY",
    "TINY_WIDE",
    "VGG",
    "VGG19",
    "Backbone",
    "BlurPool",
    "Computation",
    "Convolution",
    "Dropout",
    "EmbeddingBackbone",
    "Fire",
    "Layer",
    "LocalBackbone",
    "Locality",
    "Pool",
    "Pooling",
    "Reach",
    "RenamedBackbone",
    "Scaling",
    "Sequential",
    "StagedBackbone",
    "Window",
    "layer_name",
    "locality_of",
]

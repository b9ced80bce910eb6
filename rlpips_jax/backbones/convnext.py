"""ConvNeXt (timm's `convnext_base`), alone or as the image tower of an OpenCLIP, tapped after each of its four stages.

A block adds to its input x what a depthwise 7x7 convolution, a layer normalisation, and two linear maps with a GELU
between them make of it, scaled per channel by gamma. Between stages the image is halved. The embedding is the mean over
positions, normalised, and in an OpenCLIP mapped linearly.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rlpips_jax.backbones import axes
from rlpips_jax.backbones.protocol import CLIP, IMAGENET, Computation, Scaling
from rlpips_jax.files.official import Official
from rlpips_jax.ops.patches import patches
from rlpips_jax.ops.resize import resize_bicubic

EPSILON = 1e-6
"""Of its layer normalisations."""

WINDOW = 7
"""Of the depthwise convolutions, in pixels."""

STEM = 4
"""Side of the patches that the image is cut into at first, in pixels; between stages it is cut into patches of 2."""

HUGGING_FACE = (
    (r"(convnext\.)?embeddings\.patch_embeddings\.", "stem.0."),
    (r"(convnext\.)?embeddings\.layernorm\.", "stem.1."),
    (r"(convnext\.)?encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\2.downsample."),
    (r"(convnext\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.dwconv\.", r"stages.\2.blocks.\3.conv_dw."),
    (r"(convnext\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.layernorm\.", r"stages.\2.blocks.\3.norm."),
    (r"(convnext\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.pwconv", r"stages.\2.blocks.\3.mlp.fc"),
    (r"(convnext\.)?encoder\.stages\.(\d)\.layers\.(\d+)\.layer_scale_parameter$", r"stages.\2.blocks.\3.gamma"),
    (r"(^|convnext\.)layernorm\.", "head.norm."),
)
"""timm's names, by those of Hugging Face's `transformers`."""


@dataclass(frozen=True)
class ConvNeXt:
    """An `EmbeddingBackbone` of depthwise convolutions.

    Attributes:
        name: as it stands in the names of metrics.
        widths: channels of each stage.
        depths: number of blocks in each stage.
        dimension: of the embedding of an OpenCLIP's tower; None for a network without such a map.
        size: side of the images that are embedded, in pixels; others are resized. Taps take images as they are.
        scaling: what its images are scaled by.
        official: the PyTorch file with the published weights.
        unused: the names of further tensors in PyTorch files.
    """

    name: str
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    dimension: int | None = None
    size: int = 224
    scaling: Scaling = IMAGENET
    # Facts about files, which change no program.
    official: Official | None = field(default=None, compare=False)
    unused: str = field(default=r"head\.fc\.|classifier\.", compare=False)

    @property
    def tapped(self) -> tuple[str, ...]:
        """timm's names of the modules whose outputs are the taps."""
        return tuple(f"stages.{stage}" for stage in range(len(self.widths)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each tap."""
        return self.widths

    @property
    @functools.cache
    def minimum_size(self) -> int:
        """The smallest height and width, in pixels, for which every activation has at least one pixel."""
        return STEM * 2 ** (len(self.widths) - 1)

    @property
    def signature(self) -> str:
        """What pins the computation in a metric's signature."""
        return f"backbone={self.name} size={self.size} taps={len(self.tapped)}"

    @property
    @functools.cache
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its dotted path."""
        shapes: dict[str, tuple[int, ...]] = {}
        inputs, last = 3, self.widths[-1]
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            cut, norm, side = _cut(stage)
            shapes |= {f"{cut}.kernel": (side, side, inputs, width), f"{cut}.bias": (width,)}
            shapes |= axes.normalisation(norm, inputs if stage else width)
            for index in range(depth):
                path = f"stages.{stage}.blocks.{index}"
                shapes |= {f"{path}.conv_dw.kernel": (WINDOW, WINDOW, 1, width), f"{path}.conv_dw.bias": (width,)}
                shapes |= axes.normalisation(f"{path}.norm", width) | {f"{path}.gamma": (width,)}
                shapes |= axes.dense(f"{path}.mlp.fc1", width, 4 * width)
                shapes |= axes.dense(f"{path}.mlp.fc2", 4 * width, width)
            inputs = width
        shapes |= axes.normalisation("head.norm", last)
        return shapes | ({"proj.kernel": (last, self.dimension)} if self.dimension else {})

    @property
    @functools.cache
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in a PyTorch file, by timm's name, or by OpenCLIP's in the tower."""
        return {self._pytorch_name(name): axes.of_pytorch(shape) for name, shape in self.shapes.items()}

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors under the tower's or timm's names, where they have Hugging Face's; others as they are."""
        return axes.renamed(axes.below(tensors, "visual"), HUGGING_FACE)

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by dotted path, from the tensors that `pytorch_shapes` names."""
        return {name: axes.from_pytorch(tensors[self._pytorch_name(name)]) for name in self.shapes}

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inverse of `from_pytorch`."""
        return {self._pytorch_name(name): axes.to_pytorch(tensor) for name, tensor in parameters.items()}

    def taps(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations, one array per tap: at 1/4, 1/8, 1/16 and 1/32 of the images' size."""
        return tuple(self._stages(parameters, images.astype(computation.dtype), computation))

    def embedding(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> Float[Array, "n _"]:
        """The embedding of each image; arguments as in `taps`."""
        images = resize_bicubic(images, self.size, self.size).astype(computation.dtype)
        *_, last = self._stages(parameters, images, computation)
        pooled = jnp.mean(last.astype(jnp.promote_types(last.dtype, jnp.float32)), axis=(1, 2)).astype(last.dtype)
        pooled = computation.normalise(parameters["head"]["norm"], pooled, epsilon=EPSILON)
        return computation.dense(parameters["proj"], pooled) if self.dimension else pooled

    def _stages(
        self, parameters: PyTree[Array], x: Float[Array, "n h w 3"], computation: Computation
    ) -> Iterator[Float[Array, "n i j c"]]:
        """What each stage gives."""
        for number in range(len(self.widths)):
            stage = parameters["stages"][str(number)]
            if number == 0:
                x = _halved(parameters["stem"]["0"], x, computation, STEM)
                x = computation.normalise(parameters["stem"]["1"], x, epsilon=EPSILON)
            else:
                x = computation.normalise(stage["downsample"]["0"], x, epsilon=EPSILON)
                x = _halved(stage["downsample"]["1"], x, computation, 2)
            for index in range(self.depths[number]):
                block = stage["blocks"][str(index)]
                y = computation.depthwise(block["conv_dw"], x)
                y = computation.normalise(block["norm"], y, epsilon=EPSILON)
                y = jax.nn.gelu(computation.dense(block["mlp"]["fc1"], y), approximate=False)
                x = x + computation.dense(block["mlp"]["fc2"], y) * block["gamma"].astype(x.dtype)
            yield x

    def _pytorch_name(self, name: str) -> str:
        """What timm, or OpenCLIP, calls a parameter, by its dotted path."""
        if name == "proj.kernel":
            return "head.proj.weight"
        return ("trunk." if self.dimension else "") + axes.pytorch_name(name)


def _cut(stage: int) -> tuple[str, str, int]:
    """Where a stage cuts its input into patches: paths of the convolution and of the normalisation, and their side."""
    return (f"stages.{stage}.downsample.1", f"stages.{stage}.downsample.0", 2) if stage else ("stem.0", "stem.1", STEM)


def _halved(
    parameters: PyTree[Array], x: Float[Array, "n h w c"], computation: Computation, side: int
) -> Float[Array, "n i j d"]:
    """A convolution whose stride is its window."""
    kernel = parameters["kernel"]
    return computation.dense(parameters | {"kernel": kernel.reshape(-1, kernel.shape[-1])}, patches(x, side))


CONVNEXT_B = ConvNeXt(name="convnext-b")

OPENCLIP_CONVNEXT_B = ConvNeXt(name="openclip-convnext-b", dimension=640, scaling=CLIP)
"""The tower of OpenCLIP's `convnext_base_w`, on images of 224 pixels as R-CLIP uses it."""

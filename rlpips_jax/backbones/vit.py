"""The image towers of CLIP that are vision transformers, tapped after some of their blocks.

An image is brought to the network's size, cut into patches, each of which becomes a token with its position, beside one
token of the class. A block adds to every token what attention gathers from all of them, and then what a layer of
neurons makes of it. A tap is the grid of patches' tokens; the embedding is a linear map of the class's token.

OpenAI trained its networks with x sigmoid(1.702 x) in place of GELU (`quick_gelu`); most of OpenCLIP's have GELU. Files
do not say which: it belongs to the name of the network.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rlpips_jax.backbones import axes
from rlpips_jax.backbones.protocol import CLIP, Computation, Scaling
from rlpips_jax.files.official import Official
from rlpips_jax.ops.patches import patches
from rlpips_jax.ops.resize import resize_bicubic

EPSILON = 1e-5
"""Of its layer normalisations."""

CITATION = "Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"

HUGGING_FACE = (
    (r"vision_model\.embeddings\.class_embedding$", "class_embedding"),
    (r"vision_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "conv1."),
    (r"vision_model\.pre_layrnorm\.", "ln_pre."),
    (r"vision_model\.post_layernorm\.", "ln_post."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"transformer.resblocks.\1.attn."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
)
"""OpenCLIP's names of a tower, by those that Hugging Face's `transformers` gives it."""

DINO = (
    (r"(^|\.)cls_token$", r"\1class_embedding"),
    (r"(^|\.)pos_embed$", r"\1positional_embedding"),
    (r"(^|\.)patch_embed\.proj\.", r"\1conv1."),
    (r"(^|\.)pos_drop\.", r"\1ln_pre."),
    (r"(^|\.)norm\.", r"\1ln_post."),
    (r"(^|\.)blocks\.(\d+)\.norm([12])\.", r"\1transformer.resblocks.\2.ln_\3."),
    (r"(^|\.)blocks\.(\d+)\.attn\.qkv\.", r"\1transformer.resblocks.\2.attn.in_proj_"),
    (r"(^|\.)blocks\.(\d+)\.attn\.proj\.", r"\1transformer.resblocks.\2.attn.out_proj."),
    (r"(^|\.)blocks\.(\d+)\.mlp\.fc1\.", r"\1transformer.resblocks.\2.mlp.c_fc."),
    (r"(^|\.)blocks\.(\d+)\.mlp\.fc2\.", r"\1transformer.resblocks.\2.mlp.c_proj."),
)
"""And by those of DINO's vision transformer, as which DreamSim and R-CLIP compute a tower."""


@dataclass(frozen=True)
class ViT:
    """An `EmbeddingBackbone` of blocks of attention.

    Attributes:
        name: as it stands in the names of metrics.
        patch: side of a patch, in pixels.
        tapped: numbers of the blocks whose outputs are the taps, from 0.
        width: channels of a token.
        depth: number of blocks.
        heads: of attention, in each block.
        dimension: of the embedding.
        size: side of the images that it takes, in pixels; others are resized.
        quick_gelu: x sigmoid(1.702 x) in place of GELU.
        scaling: what its images are scaled by.
        official: the PyTorch file with the published weights.
        unused: the names of further tensors in PyTorch files.
    """

    name: str
    patch: int
    tapped: tuple[int, ...] = (2, 5, 8, 11)
    width: int = 768
    depth: int = 12
    heads: int = 12
    dimension: int = 512
    size: int = 224
    quick_gelu: bool = False
    scaling: Scaling = CLIP
    # Facts about files, which change no program.
    official: Official | None = field(default=None, compare=False)
    unused: str = field(
        default=r"text_model\.|text_projection|logit_scale|token_embedding\.|ln_final\.|.*position_ids$", compare=False
    )

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each tap."""
        return (self.width,) * len(self.tapped)

    @property
    @functools.cache
    def minimum_size(self) -> int:
        """The smallest height and width, in pixels: images are resized."""
        return 1

    @property
    def signature(self) -> str:
        """What pins the computation in a metric's signature."""
        activation = "quick-gelu" if self.quick_gelu else "gelu"
        return f"backbone={self.name} size={self.size} activation={activation} taps={len(self.tapped)}"

    @property
    @functools.cache
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter, by its dotted path."""
        width, side = self.width, self.size // self.patch
        shapes: dict[str, tuple[int, ...]] = {
            "conv1.kernel": (self.patch, self.patch, 3, width),
            "class_embedding": (width,),
            # Four axes, of which the first two are those of the image, as in a kernel.
            "positional_embedding": (side, side, 1, width),
            **axes.normalisation("ln_pre", width),
        }
        for index in range(self.depth):
            path = f"transformer.resblocks.{index}"
            shapes |= axes.normalisation(f"{path}.ln_1", width)
            shapes |= axes.dense(f"{path}.attn.in_proj", width, 3 * width)
            shapes |= axes.dense(f"{path}.attn.out_proj", width, width)
            shapes |= axes.normalisation(f"{path}.ln_2", width)
            shapes |= axes.dense(f"{path}.mlp.c_fc", width, 4 * width)
            shapes |= axes.dense(f"{path}.mlp.c_proj", 4 * width, width)
        return shapes | axes.normalisation("ln_post", width) | {"proj.kernel": (width, self.dimension)}

    @property
    @functools.cache
    def pytorch_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor in a PyTorch file, by OpenCLIP's name in the tower."""
        shapes = {_openclip(name): axes.of_pytorch(shape) for name, shape in self.shapes.items()}
        tokens = (self.size // self.patch) ** 2 + 1
        return shapes | {"positional_embedding": (tokens, self.width), "proj": (self.width, self.dimension)}

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors under OpenCLIP's names in the tower, where they have Hugging Face's or DINO's; others as they are."""
        named = axes.renamed(axes.below(tensors, "visual"), (*HUGGING_FACE, *DINO))
        for name in list(named):
            if name.endswith((".attn.q_proj.weight", ".attn.q_proj.bias")):
                parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
                if all(part in named for part in parts):
                    fused = np.concatenate([named.pop(part) for part in parts])
                    named[name.replace(".q_proj.", ".in_proj_")] = fused
            elif name.endswith("visual_projection.weight"):
                named[name.removesuffix("visual_projection.weight") + "proj"] = named.pop(name).T
            elif name.endswith("class_embedding"):
                named[name] = _without_ones(named[name], 1)
            elif name.endswith("positional_embedding"):
                named[name] = _without_ones(named[name], 2)
            elif name.endswith("conv1.bias") and not named[name].any():  # A tower of CLIP has no such bias.
                del named[name]
        return named

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by dotted path, from the tensors that `pytorch_shapes` names."""
        special = "class_embedding", "positional_embedding", "proj.kernel"
        parameters = {name: axes.from_pytorch(tensors[_openclip(name)]) for name in self.shapes if name not in special}
        position = tensors["positional_embedding"]
        parameters["class_embedding"] = tensors["class_embedding"] + position[0]
        parameters["positional_embedding"] = position[1:].reshape(self.shapes["positional_embedding"])
        return parameters | {"proj.kernel": tensors["proj"]}

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors with these parameters; the token of the class has no position of its own."""
        tensors = {_openclip(name): axes.to_pytorch(tensor) for name, tensor in parameters.items()}
        position = parameters["positional_embedding"].reshape(-1, self.width)
        tensors["positional_embedding"] = np.concatenate([np.zeros_like(position[:1]), position])
        return tensors | {"proj": parameters["proj.kernel"]}

    def taps(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations, one array per tap: the tokens of the patches, `(n, side, side, width)`."""
        side = self.size // self.patch
        tokens = self._tokens(parameters, images, computation, max(self.tapped) + 1)
        grids = [each[:, 1:].reshape(-1, side, side, self.width) for each in tokens]
        return tuple(grids[tap] for tap in self.tapped)

    def embedding(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> Float[Array, "n _"]:
        """The embedding of each image; arguments as in `taps`."""
        *_, tokens = self._tokens(parameters, images, computation, self.depth)
        token = computation.normalise(parameters["ln_post"], tokens[:, 0], epsilon=EPSILON)
        return computation.dense(parameters["proj"], token)

    def _tokens(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation, depth: int
    ) -> Iterator[Float[Array, "n tokens width"]]:
        """What each of the first blocks gives; the token of the class is the first."""
        images = resize_bicubic(images, self.size, self.size).astype(computation.dtype)
        kernel = {"kernel": parameters["conv1"]["kernel"].reshape(-1, self.width)}
        x = computation.dense(kernel, patches(images, self.patch))
        x = (x + parameters["positional_embedding"][:, :, 0].astype(x.dtype)).reshape(x.shape[0], -1, self.width)
        first = jnp.broadcast_to(parameters["class_embedding"].astype(x.dtype), (x.shape[0], 1, self.width))
        x = computation.normalise(parameters["ln_pre"], jnp.concatenate([first, x], axis=1), epsilon=EPSILON)
        for index in range(depth):
            block = parameters["transformer"]["resblocks"][str(index)]
            y = computation.normalise(block["ln_1"], x, epsilon=EPSILON)
            x = x + self._attention(block["attn"], y, computation)
            y = computation.dense(block["mlp"]["c_fc"], computation.normalise(block["ln_2"], x, epsilon=EPSILON))
            y = y * jax.nn.sigmoid(1.702 * y) if self.quick_gelu else jax.nn.gelu(y, approximate=False)
            x = x + computation.dense(block["mlp"]["c_proj"], y)
            yield x

    def _attention(
        self, parameters: PyTree[Array], x: Float[Array, "n tokens width"], computation: Computation
    ) -> Float[Array, "n tokens width"]:
        """softmax(q k / sqrt(channels of a head)) v, for each head."""
        parts = computation.dense(parameters["in_proj"], x).reshape(*x.shape[:2], 3, self.heads, -1)
        queries, keys, values = (parts[:, :, part] for part in range(3))
        products = jnp.einsum("nqhc,nkhc->nhqk", queries, keys, precision=computation.precision)
        products = products.astype(jnp.promote_types(x.dtype, jnp.float32)) / np.sqrt(self.width // self.heads)
        weights = jax.nn.softmax(products, axis=-1).astype(x.dtype)
        gathered = jnp.einsum("nhqk,nkhc->nqhc", weights, values, precision=computation.precision)
        return computation.dense(parameters["out_proj"], gathered.reshape(x.shape))


def _without_ones(tensor: np.ndarray, ndim: int) -> np.ndarray:
    """The tensor without leading axes of length 1, down to so many axes."""
    return tensor.reshape(tensor.shape[-ndim:]) if tensor.size == np.prod(tensor.shape[-ndim:]) else tensor


def _openclip(name: str) -> str:
    """OpenCLIP's name of a parameter, by its dotted path."""
    return (
        re.sub(r"in_proj\.(weight|bias)$", r"in_proj_\1", axes.pytorch_name(name)) if name != "proj.kernel" else "proj"
    )


CLIP_VIT_B32 = ViT(
    name="clip-vit-b32",
    patch=32,
    quick_gelu=True,
    official=Official(
        "clip-vit-base-patch32/pytorch_model.bin",
        "https://huggingface.co/openai/clip-vit-base-patch32/resolve/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/"
        "pytorch_model.bin",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        605_247_071,
        "MIT",
        CITATION,
    ),
)

CLIP_VIT_B16 = ViT(name="clip-vit-b16", patch=16, quick_gelu=True)

OPENCLIP_VIT_B32 = ViT(name="openclip-vit-b32", patch=32)

OPENCLIP_VIT_B16 = ViT(name="openclip-vit-b16", patch=16)

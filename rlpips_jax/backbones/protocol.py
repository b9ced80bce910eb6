"""What a backbone must be able to do; everything above this room depends on these protocols alone.

A backbone is a network whose activations are compared. It is a hashable value that holds no parameters: two that
compute the same are equal, so that compiled programs are shared. One that also runs part by part is a
`StagedBackbone`, and metrics then recompute activations in the gradient, compare images of different sizes in one
batch, and use dropout. One whose activations each depend on a part of the image is a `LocalBackbone`, and large images
can then be computed in tiles.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rlpips_jax.backbones.dropout import Dropout
from rlpips_jax.backbones.locality import Locality
from rlpips_jax.files.official import Official
from rlpips_jax.ops.blur_pool import blur_pool
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.ops.depthwise import depthwise
from rlpips_jax.ops.pooling import Pooling, pool

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by its name."""


@dataclass(frozen=True)
class Scaling:
    """What a network's images are scaled by, per channel: `(image - mean) / deviation` for images in [0, 1]."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


IMAGENET = Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""That of torchvision's networks. LPIPS's own shift and scale are the same for images in [-1, 1]."""

CLIP = Scaling((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""That of OpenAI's CLIP, which OpenCLIP took over."""


_DIRECT = functools.partial(convolution, filtered=False)


@dataclass(frozen=True)
class Computation:
    """How a network is computed.

    Attributes:
        dtype: of the activations, as NumPy names it; parameters stay float32.
        precision: of the convolutions, as `jax.lax.Precision` names it.
        forward_mode: use derivatives that `jax.jvp` can take, which are slower on CPU.
        bounded: spare memory rather than time.
    """

    dtype: str = "float32"
    precision: str = "highest"
    forward_mode: bool = False
    bounded: bool = False

    def convolve(
        self, parameters: Mapping[str, Array], x: Float[Array, "n h w c"], *, stride: int = 1, padding: int = 0
    ) -> Float[Array, "n i j d"]:
        """A convolution and its bias, as `flax.linen.Conv` computes them.

        Args:
            parameters: `{"kernel": (h, w, c, d), "bias": (d,)}`.
            x: channels last.
            stride: along both axes.
            padding: pixels of zeros on each side.
        """
        height, width, _, channels = parameters["kernel"].shape
        module = nn.Conv(
            channels,
            (height, width),
            stride,
            padding=padding,
            dtype=np.dtype(self.dtype),
            precision=self.precision,
            conv_general_dilated=self.conv_general_dilated,
            parent=None,  # Or a Flax module that computes a distance would take it for its own.
        )
        return cast(Array, module.apply({"params": parameters}, x))

    @property
    def conv_general_dilated(self) -> Callable[..., Array] | None:
        """What `flax.linen.Conv` takes under this name: `rlpips_jax.ops.convolution`, or None for XLA's own."""
        return None if self.forward_mode else _DIRECT if self.bounded else convolution

    def depthwise(self, parameters: Mapping[str, Array], x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """A convolution of each channel by itself, with zeros around: `{"kernel": (h, w, 1, c), "bias": (c,)}`."""
        kernel, bias = (parameters[name].astype(self.dtype) for name in ("kernel", "bias"))
        return depthwise(x, kernel, precision=self.precision, forward_mode=self.forward_mode) + bias

    def dense(self, parameters: Mapping[str, Array], x: Float[Array, "... c"]) -> Float[Array, "... d"]:
        """A linear map of the channels: `{"kernel": (c, d), "bias": (d,)}`, the bias where there is one."""
        kernel = parameters["kernel"].astype(self.dtype)
        y = jnp.matmul(x, kernel, precision=self.precision)
        return y + parameters["bias"].astype(self.dtype) if "bias" in parameters else y

    def normalise(
        self, parameters: Mapping[str, Array], x: Float[Array, "... c"], *, epsilon: float
    ) -> Float[Array, "... c"]:
        """Layer normalisation over channels, (x - mean) / sqrt(variance + epsilon) scale + bias; in float32 or more."""
        wide = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale, bias = (parameters[name].astype(wide.dtype) for name in ("scale", "bias"))
        return (centred * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(self.dtype)

    def pool(self, x: Float[Array, "n h w c"], pooling: Pooling) -> Float[Array, "n i j c"]:
        """A pooling with the derivatives that were asked for."""
        return pool(x, pooling, forward_mode=self.forward_mode)

    def blur_pool(self, x: Float[Array, "n h w c"], sizes: Int[Array, "n 2"] | None = None) -> Float[Array, "n i j c"]:
        """A blur pooling of reflected images with the derivatives that were asked for."""
        return blur_pool(x, sizes=sizes, forward_mode=self.forward_mode)


@runtime_checkable
class Backbone(Protocol):
    """A network that gives activations at several depths."""

    @property
    def name(self) -> str:
        """How metrics name it, as in `baseline-{name}`."""
        ...

    @property
    def tapped(self) -> tuple[int | str, ...]:
        """What the network's own table calls the layers whose outputs are the taps."""
        ...

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of channels of each tap."""
        ...

    @property
    def minimum_size(self) -> int:
        """The smallest height and width of an image, in pixels."""
        ...

    @property
    def scaling(self) -> Scaling:
        """What the network expects its images to be scaled by."""
        ...

    @property
    def signature(self) -> str:
        """What pins the computation in a metric's signature: `backbone=alex pooling=max-3-2-floor taps=5`."""
        ...

    @property
    def shapes(self) -> Shapes:
        """Each parameter's shape by its dotted path in the tree that `taps` takes; kernels are `(h, w, in, out)`."""
        ...

    @property
    def pytorch_shapes(self) -> Shapes:
        """Each tensor's shape in a PyTorch file, by its name there; kernels are `(out, in, h, w)`."""
        ...

    @property
    def unused(self) -> str:
        """A regular expression for the names of further tensors in PyTorch files, which no tap needs."""
        ...

    @property
    def official(self) -> Official | None:
        """The PyTorch file with the published weights; None where there is no such file."""
        ...

    def from_pytorch(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Parameters by dotted path, from the tensors that `pytorch_shapes` names; float32."""
        ...

    def to_pytorch(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors that `pytorch_shapes` names and that give these parameters, up to rounding."""
        ...

    def taps(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> tuple[Float[Array, "n _ _ _"], ...]:
        """Activations, one array per tap.

        Args:
            parameters: a tree of dictionaries with the parameters that `shapes` names.
            images: scaled as the network expects it.
            computation: how to compute.
        """
        ...


@runtime_checkable
class EmbeddingBackbone(Backbone, Protocol):
    """A backbone that also gives one vector for each image."""

    def embedding(
        self, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
    ) -> Float[Array, "n _"]:
        """The vector of each image, which is of any size; arguments as in `taps`."""
        ...


@runtime_checkable
class RenamedBackbone(Backbone, Protocol):
    """A backbone whose tensors are also published under other names, or cut up in other ways."""

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A file's tensors under the names of `pytorch_shapes`, after whatever precedes them; others as they are."""
        ...


@runtime_checkable
class LocalBackbone(Backbone, Protocol):
    """A backbone whose activations depend on a part of the image each, everywhere in the same way but for its edges."""

    @property
    def locality(self) -> Locality:
        """On which part."""
        ...


@runtime_checkable
class StagedBackbone(Backbone, Protocol):
    """A backbone that runs in stages, one per tap, each of which takes what the stage before it left."""

    def stages(self) -> tuple[Hashable, ...]:
        """The stages, in the order of the taps."""
        ...

    def stage(
        self,
        stage: Hashable,
        parameters: PyTree[Array],
        x: Float[Array, "n h w c"],
        *,
        computation: Computation,
        sizes: Int[Array, "n 2"] | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Array, "n i j d"], Int[Array, "n 2"] | None]:
        """Runs one stage.

        Args:
            stage: one of `stages()`.
            parameters: as for `taps`.
            x: activations that the stage before it left, or the images, in the computation's dtype.
            computation: how to compute.
            sizes: height and width of each image, where zeros at the bottom and right have brought images of several
                sizes to one.
            dropout: masks on the input of every convolution; None for no dropout.

        Returns:
            The activations, and their sizes where `sizes` is given. Outside their sizes they are 0 after every layer,
            as if that were padding.
        """
        ...


def taps_of_stages(
    backbone: StagedBackbone, parameters: PyTree[Array], images: Float[Array, "n h w 3"], computation: Computation
) -> tuple[Float[Array, "n _ _ _"], ...]:
    """`taps` of a backbone that runs in stages."""
    taps = []
    x = images.astype(computation.dtype)
    for stage in backbone.stages():
        x, _ = backbone.stage(stage, parameters, x, computation=computation)
        taps.append(x)
    return tuple(taps)

"""What a metric is made of: weight files and their layouts. Each family of metrics states its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlpips_jax.backbones import BACKBONES, Backbone, EmbeddingBackbone
from rlpips_jax.files.official import Official
from rlpips_jax.weights.parameters import Layout

BACKBONE = ("backbone",)
"""The groups of a file that holds a backbone alone."""


@dataclass(frozen=True)
class Part:
    """A weight file.

    Attributes:
        name: its native file is `{name}.safetensors`.
        layout: what it may hold.
        holds: the groups of parameters that it must hold.
        official: the file in which its authors publish it; None for a file inside this package, or a converted one.
        parameters_sha256: `digest` of the parameters as their authors, or this package, publish them; None where it is
            not known. What a file says of itself proves nothing; this does.
        converted: whether `python -m convert` makes it of a file that the user has: several are published.
    """

    name: str
    layout: Layout
    holds: tuple[str, ...]
    official: Official | None = None
    parameters_sha256: str | None = None
    converted: bool = False

    @property
    def backbone(self) -> Backbone:
        """The network that its tensors are of, or whose taps its weights are for."""
        return self.layout.backbone

    @property
    def shipped(self) -> bool:
        """Whether it lies inside this package."""
        return self.official is None and not self.converted


@dataclass(frozen=True)
class Recipe:
    """How a metric is put together.

    Attributes:
        name: as `rlpips_jax.load` takes it.
        layout: its parameters.
        parts: its files, in the order in which they are read; one whose groups an earlier one brought is not needed, as
            heads that come with a backbone of their own.
        settings: fields of the metric, by name, which tell it from others of its family.
    """

    name: str
    layout: Layout
    parts: tuple[Part, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def backbone(self) -> Backbone:
        """The network, with its pooling and taps."""
        return self.layout.backbone


def backbone_part(backbone: Backbone, name: str | None = None) -> Part:
    """The file of a network: the official one, or one under a name of its own that is converted.

    Args:
        backbone: the network.
        name: of the file; by default that of the network.
    """
    official = None if name else backbone.official
    sha256 = official.parameters_sha256 if official else None
    return Part(name or backbone.name, Layout(backbone), BACKBONE, official, sha256, converted=official is None)


BACKBONE_PARTS = {
    name: backbone_part(backbone)
    for name, backbone in BACKBONES.items()
    if backbone.official or isinstance(backbone, EmbeddingBackbone)
}
"""The backbones whose files others have published, by name."""

"""Every metric by name, and every file it is made of."""

from dataclasses import dataclass
from typing import Literal

from rlpips_jax.backbones import (
    ALEX,
    BACKBONES,
    ELPIPS_SQUEEZE,
    ELPIPS_VGG,
    SQUEEZE,
    SQUEEZE_FLOOR,
    TINY,
    VGG,
    Backbone,
)
from rlpips_jax.files.official import Official


@dataclass(frozen=True)
class Part:
    """A weight file: the convolutions of a backbone, the heads of a metric, or both.

    Attributes:
        name: its native file is `{name}.safetensors`.
        architecture: the backbone that the tensors are of, or whose taps the heads are for.
        official: the file in which its authors publish it; None for a file inside this package.
        half: what the file must hold; it may hold the other half too.
    """

    name: str
    architecture: Backbone
    official: Official | None = None
    half: Literal["backbone", "heads"] = "heads"

    @property
    def shipped(self) -> bool:
        """Whether it lies inside this package."""
        return self.official is None


@dataclass(frozen=True)
class Recipe:
    """How a metric is put together.

    Attributes:
        name: as `rlpips_jax.load` takes it.
        architecture: the backbone, with its pooling and taps.
        heads: the file with its heads; None for a baseline, whose weights are all 1. Where this file holds a backbone
            too, that one is used.
        backbone: the file with the official backbone; None where the file with the heads must hold one.
        version: LPIPS version: "0.1" scales the channels of the image first, "0.0" does not.
        ensemble: whether it is that metric under E-LPIPS's random transformations.
    """

    name: str
    architecture: Backbone
    heads: Part | None
    backbone: Part | None
    version: str = "0.1"
    ensemble: bool = False


LPIPS = "Zhang et al.: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018"
ELPIPS = (
    "Kettunen, Härkönen, Lehtinen: E-LPIPS: Robust Perceptual Image Similarity via Random Transformation "
    "Ensembles, arXiv:1906.03973"
)


def _lpips_heads(path: str, sha256: str, size: int) -> Official:
    url = f"https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/{path}"
    return Official(path, url, sha256, size, "BSD-2-Clause", LPIPS)


def _elpips_heads(file: str, sha256: str, size: int) -> Official:
    url = f"https://raw.githubusercontent.com/mkettune/elpips/master/elpips/{file}"
    return Official(f"elpips/{file}", url, sha256, size, "BSD-2-Clause", ELPIPS)


HEADS = {
    part.name: part
    for part in (
        Part(
            "lpips-alex",
            ALEX,
            _lpips_heads("v0.1/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", 6_009),
        ),
        Part(
            "lpips-vgg",
            VGG,
            _lpips_heads("v0.1/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", 7_289),
        ),
        Part(
            "lpips-squeeze",
            SQUEEZE,
            _lpips_heads(
                "v0.1/squeeze.pth", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76", 10_811
            ),
        ),
        Part(
            "lpips-alex@0.0",
            ALEX,
            _lpips_heads("v0.0/alex.pth", "18720f55913d0af89042f13faa7e536a6ce1444a0914e6db9461355ece1e8cd5", 5_455),
        ),
        Part(
            "lpips-vgg@0.0",
            VGG,
            _lpips_heads("v0.0/vgg.pth", "b9e4236260c3dd988fc79d2a48d645d885afcbb21f9fd595e6744cf7419b582c", 6_735),
        ),
        Part(
            "lpips-squeeze@0.0",
            SQUEEZE,
            _lpips_heads(
                "v0.0/squeeze.pth", "c27abd3a0145541baa50990817df58d3759c3f8154949f42af3b59b4e042d0bf", 10_057
            ),
        ),
        Part(
            "lpips-squeeze@elpips",
            SQUEEZE_FLOOR,
            _elpips_heads("squeeze.npy", "9cf7e036dbcac9e8134b45641e5efd32c5e97681f7c3b08b911ab3c78236a4b9", 13_135),
        ),
        Part(
            "lpips-vgg@elpips",
            VGG,
            _elpips_heads("vgg_maxpool.npy", "0466232a296381ec27a580a1e8977dd8bc3bd552f36644b03de41189a8afc03e", 8_542),
        ),
        Part("lpips-tiny", TINY),
        Part("rlpips-alex", ALEX),
        Part("rlpips-vgg", VGG),
        Part("rlpips-squeeze", SQUEEZE),
        Part("rlpips-tiny", TINY),
    )
}
"""The heads of LPIPS and R-LPIPS by name."""

ENSEMBLE_HEADS = {
    part.name: part
    for part in (
        Part(
            "elpips-squeeze",
            ELPIPS_SQUEEZE,
            _elpips_heads(
                "squeeze_full_maxpool.npy",
                "bcaae2eb93410893fb2f97b5fc57854ef9cc8ebb813304a617a5416b68bedc22",
                14_259,
            ),
        ),
        Part(
            "elpips-vgg",
            ELPIPS_VGG,
            _elpips_heads(
                "vgg_full_avg.npy", "2f9171c0fb542223efc240fed40c0e56ad3014d5a9153e4a3fdc00cf7b1bb16e", 23_948
            ),
        ),
    )
}
"""The heads of E-LPIPS by name."""

UNTAPPED = ("alex", "tiny")
"""Networks for which E-LPIPS's authors trained no heads. Their ensembles use LPIPS's heads and taps."""


def _part(backbone: Backbone) -> Part:
    return Part(backbone.name, backbone, backbone.official, half="backbone")


BACKBONE_PARTS = {name: _part(backbone) for name, backbone in BACKBONES.items() if backbone.official is not None}
"""The official backbones by name."""

PARTS = BACKBONE_PARTS | HEADS | ENSEMBLE_HEADS
"""Every weight file by name."""

RECIPES: dict[str, Recipe] = {}
"""Every LPIPS, R-LPIPS and baseline by name."""

ENSEMBLE_RECIPES: dict[str, Recipe] = {}
"""Every E-LPIPS by name."""


def _add_heads(name: str, part: Part, *, ensemble: bool) -> None:
    version = "0.0" if name.endswith("@0.0") else "0.1"
    backbone = BACKBONE_PARTS.get(part.architecture.name)
    table = ENSEMBLE_RECIPES if ensemble else RECIPES
    table[name] = Recipe(name, part.architecture, part, backbone, version, ensemble)


def add_backbone(backbone: Backbone) -> None:
    """Enters a backbone with an official file into the tables: as a part, and as the metric `baseline-{name}`."""
    part = _part(backbone)
    BACKBONE_PARTS[part.name] = PARTS[part.name] = part
    for name, version in ((f"baseline-{part.name}", "0.1"), (f"baseline-{part.name}@0.0", "0.0")):
        RECIPES[name] = Recipe(name, backbone, None, part, version)


for _name, _heads in HEADS.items():
    _add_heads(_name, _heads, ensemble=False)
for _official in BACKBONE_PARTS.values():
    add_backbone(_official.architecture)
for _name, _heads in {**ENSEMBLE_HEADS, **{f"elpips-{name}": HEADS[f"lpips-{name}"] for name in UNTAPPED}}.items():
    _add_heads(_name, _heads, ensemble=True)

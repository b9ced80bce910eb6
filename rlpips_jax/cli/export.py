"""`rlpips export`: a metric as a program that runs where this library is not installed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlpips_jax import exported
from rlpips_jax.cli.options import Flag, MetricOptions

Length = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: any)")]


@dataclass(frozen=True, kw_only=True)
class Export(MetricOptions):
    """Write a metric and its parameters as a program (StableHLO) that runs without this library.

    It takes two batches of images, float32, of any number and size where these are not given.

    Examples:
        rlpips export --metric lpips-alex --out lpips-alex.safetensors
        rlpips export --metric rlpips-tiny --height 256 --width 256 --with-gradient --out tiny.safetensors
    """

    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The file to write, in the format of safetensors."""

    batch: Length = None
    """Number of pairs."""

    height: Length = None
    """Height of the images; some networks need it."""

    width: Length = None
    """Width of the images."""

    value_range: Annotated[tuple[float, float], tyro.conf.arg(metavar="BLACK WHITE")] = (0.0, 1.0)
    """Black and white of the images."""

    with_gradient: Flag = False
    """The program gives the gradient of each distance by the second image too."""

    platforms: tuple[exported.Platform, ...] = exported.PLATFORMS
    """What it runs on."""

    def run(self) -> int:
        exported.save(
            self.load(),
            self.out,
            batch=self.batch,
            height=self.height,
            width=self.width,
            value_range=self.value_range,
            with_gradient=self.with_gradient,
            platforms=self.platforms,
        )
        print(f"{self.out}: {exported.load(self.out)}")
        return 0

"""`rlpips map`: where two images differ, as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from rlpips_jax import reports
from rlpips_jax.cli.options import MetricOptions, ReadingOptions, check_files
from rlpips_jax.distances.distance import distance, distance_map
from rlpips_jax.files.image_files import check_suffix, save_image


@dataclass(frozen=True, kw_only=True)
class Map(MetricOptions, ReadingOptions):
    """Draw where an image differs from a reference: both images, and a heat map beside them.

    Examples:
        rlpips map reference.png a.png --out map.png
        rlpips map reference.png a.png --metric lpips-vgg --maximum 1.5    # one scale for several maps
    """

    reference: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REF")]
    """The reference."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """The image to compare with it."""

    out: Path = Path("map.png")
    """The picture to write: .png, .jpg or .webp."""

    maximum: Annotated[float | None, tyro.conf.arg(metavar="D", help_behavior_hint="(default: the largest value)")] = (
        None
    )
    """The largest value of the colour scale; give one to compare several maps."""

    def run(self) -> int:
        check_suffix(self.out)
        reference, image = self.image_of(self.reference), self.image_of(self.image)
        metric = self.load()
        check_files(metric, {self.reference: reference, self.image: image})
        value = np.asarray(distance(reference, image, metric))
        picture = reports.heat_map(
            reference,
            image,
            np.asarray(distance_map(reference, image, metric)),
            names=(f"reference: {self.reference.name}", f"image: {self.image.name}"),
            title=metric.name,
            notes=(f"distance {reports.plain(value)}", metric.signature),
            maximum=self.maximum,
        )
        save_image(self.out, picture)
        print(f"{self.out}: distance {reports.plain(value)} ({metric.signature})")
        return 0

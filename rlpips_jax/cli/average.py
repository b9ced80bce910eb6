"""`rlpips average`: one picture close to several."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from rlpips_jax import geometry, reports
from rlpips_jax.cli import say
from rlpips_jax.cli.descent_options import DescentOptions
from rlpips_jax.errors import GeometryError
from rlpips_jax.files.image_files import save_image

TILE = 224
"""Pixels of a picture on the sheet."""
COLUMNS = 5


@dataclass(frozen=True, kw_only=True)
class Average(DescentOptions):
    """Find the average of pictures under a metric: the one with the smallest sum of squared distances.

    Writes average.png, sheet.png (with the pictures and the mean of their pixels) and result.json to --out.
    After an interruption the same command continues where it stopped.

    Examples:
        rlpips average a.png b.png c.png --metric rlpips-alex --square 128
        rlpips average a.png b.png --metric elpips-squeeze --start noise --out from-noise/
    """

    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE IMAGE [IMAGE ...]", help_behavior_hint="")
    ]
    """The pictures, of one size."""

    start: Literal["mean", "noise"] = "mean"
    """Begin with the mean of the pixels, or with noise."""

    images_per_step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Pictures, chosen at random, that each step compares: less work with a randomised metric and many pictures."""

    out: Path = Path("average")
    """Folder to write to."""

    def run(self) -> int:
        if len(self.images) < 2:
            raise GeometryError(f"an average needs two pictures or more, got {len(self.images)}")
        metric = self.load_any()
        pictures = np.stack(self.pictures(list(self.images), metric))
        with self.descending(self.out) as arguments:
            result = geometry.average(
                pictures, metric, start=self.start, images_per_step=self.images_per_step, **arguments
            )
        found = np.rint(np.asarray(result.image) * 255).astype(np.uint8)
        mean = np.rint(pictures.mean(axis=0)).astype(np.uint8)
        columns = {
            name: np.asarray(geometry.distances(picture[None], pictures, metric, key=self.key))
            for name, picture in (("average", found), ("mean of pixels", mean))
        }
        worse = {name: float((column.astype(np.float64) ** self.exponent).sum()) for name, column in columns.items()}
        if self.start == "mean" and worse["average"] > worse["mean of pixels"]:  # Rounding to bytes can do this.
            found, columns["average"] = mean, columns["mean of pixels"]
            say("the descent found nothing better than the mean of the pixels; more --steps may")
        save_image(self.out / "average.png", found)
        tiles = [reports.Tile(picture, (path.name,)) for path, picture in zip(self.images, pictures, strict=True)]
        for (name, distances), picture in zip(columns.items(), (found, mean), strict=True):
            tiles.append(reports.Tile(picture, (name, f"mean distance {reports.plain(distances.mean())}")))
        rows = [tiles[at : at + COLUMNS] for at in range(0, len(tiles), COLUMNS)]
        sheet = reports.contact_sheet(rows, title=f"Average under {metric.name}", notes=(metric.signature,), size=TILE)
        save_image(self.out / "sheet.png", sheet)
        self.tell(metric, "distance to", [str(path) for path in self.images], columns)
        self.finish(
            self.out,
            metric,
            {
                "start": self.start,
                "images_per_step": self.images_per_step,
                "distances": [
                    {"image": str(path), "average": columns["average"][place], "mean": columns["mean of pixels"][place]}
                    for place, path in enumerate(self.images)
                ],
            },
        )
        return 0

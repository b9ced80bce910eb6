"""Options that `rlpips average` and `rlpips geodesic` share, and how both read pictures and descend."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from rlpips_jax import reports
from rlpips_jax.cli import interrupts, say
from rlpips_jax.cli.options import MetricOptions, ReadingOptions, check_files
from rlpips_jax.cli.results import write_whole
from rlpips_jax.errors import GeometryError
from rlpips_jax.evaluation.patches import as_uint8
from rlpips_jax.geometry import LATE, STEPS, Descent

BY_START = f"(default: {LATE.begin:g} and {LATE.pace:g} from the mean or a crossfade, 0 and 1 from noise)"
"""Default of `--begin` and `--pace`."""

DESCENT = ("steps", "coarsest", "begin", "pace", "exponent", "samples")
"""Options that are fields of `Descent`."""

Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class DescentOptions(MetricOptions, ReadingOptions):
    """The options of a descent."""

    square: Annotated[int | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: unchanged)")] = None
    """Take the largest square in the middle of each picture, resized to this side. On a CPU 256 takes minutes."""

    steps: int = STEPS
    """Steps of each level of detail; more get nearer."""

    coarsest: Annotated[int, tyro.conf.arg(metavar="PX")] = 64
    """Smallest height or width of the first level; each further level doubles it."""

    begin: Annotated[float | None, tyro.conf.arg(metavar="T", help_behavior_hint=BY_START)] = None
    """Time of the published learning rate at the first step of each level: 0 is its beginning."""

    pace: Annotated[float | None, tyro.conf.arg(metavar="T", help_behavior_hint=BY_START)] = None
    """Time per step: 1 is as published."""

    exponent: float = 2.0
    """Of the distances in the minimised sum: 2 for squares."""

    samples: int = 2
    """For a randomised metric: draws that each step averages."""

    seed: int = 0
    """For all random draws."""

    @property
    def key(self) -> Any:
        return jax.random.key(self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """The options in documents."""
        return {name: getattr(self, name) for name in ("square", *DESCENT, "seed")}

    def pictures(self, paths: list[Path], metric: Any) -> list[Picture]:
        """The pictures, cut if `--square` is given, checked for the metric."""
        if self.square is not None and self.square < 1:
            raise GeometryError(f"--square must be 1 or more pixels, got {self.square}")
        pictures = [as_uint8(self.image_of(path)) for path in paths]
        if self.square is not None:
            pictures = [_square(picture, self.square) for picture in pictures]
        check_files(metric, dict(zip(paths, pictures, strict=True)))
        return pictures

    @contextmanager
    def descending(self, out: Path) -> Iterator[dict[str, Any]]:
        """Gives the arguments of a descent, during which Ctrl-C takes effect between steps."""
        snapshot = out / "snapshot.npz"
        try:
            with interrupts.deferred():
                descent = Descent(
                    **{name: getattr(self, name) for name in DESCENT},
                    snapshot=snapshot,
                    progress=True,
                    watch=lambda progress: interrupts.check(),
                )
                yield {"key": self.key, "descent": descent}
        except KeyboardInterrupt:
            if snapshot.exists():
                say(f"interrupted; the same command goes on from {snapshot}")
            raise

    def tell(self, metric: Any, title: str, labels: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
        """Prints a table of distances, one row per label, and the sum that the descent minimises for each column."""
        print(f"# {metric.signature}")
        rows = zip(labels, *([reports.plain(value) for value in column] for column in columns.values()), strict=True)
        print(reports.table((title, *columns), list(rows)))
        for name, column in columns.items():
            total = (column.astype(np.float64) ** self.exponent).sum()
            print(f"sum of distances to the power of {self.exponent:g}, {name}: {reports.plain(total)}")

    def finish(self, out: Path, metric: Any, document: Mapping[str, Any]) -> None:
        """Writes metric, options and document, after all other files, and removes the snapshot."""
        print(f"results: {out}")
        document = {"signature": metric.signature, "metric": metric.name, **self.settings, **document}
        write_whole(out / "result.json", reports.json_text(document) + "\n")
        (out / "snapshot.npz").unlink(missing_ok=True)


def _square(picture: Picture, side: int) -> UInt8[np.ndarray, "side side 3"]:
    from PIL import Image

    height, width = picture.shape[:2]
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    middle = Image.fromarray(picture[top : top + length, left : left + length])
    return np.array(middle.resize((side, side), Image.Resampling.LANCZOS))

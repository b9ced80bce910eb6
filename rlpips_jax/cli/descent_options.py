"""Arguments that `rlpips average` and `rlpips geodesic` share, and what both do with pictures."""

from collections.abc import Iterator, Mapping
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
from rlpips_jax.cli.options import MetricOptions, check_files
from rlpips_jax.cli.results import write_whole
from rlpips_jax.errors import GeometryError
from rlpips_jax.evaluation.patches import read_uint8
from rlpips_jax.geometry import LATE, STEPS

BY_START = f"(default: {LATE.begin:g} and {LATE.pace:g} from what is near, 0 and 1 from noise)"
"""Of `--begin` and `--pace`."""

DESCENT = ("steps", "coarsest", "begin", "pace", "exponent", "samples", "key")
"""Options that averages and paths take by these names."""

SETTINGS = ("square", "steps", "coarsest", "begin", "pace", "exponent", "samples", "seed")
"""Options that documents name."""

Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class DescentOptions(MetricOptions):
    """How to descend."""

    square: Annotated[int | None, tyro.conf.arg(metavar="PX", help_behavior_hint="(default: as they are)")] = None
    """Take the largest square in the middle of each picture, with so many pixels a side. On a CPU 256 takes minutes."""

    steps: int = STEPS
    """Of each level of detail; more get nearer."""

    coarsest: Annotated[int, tyro.conf.arg(metavar="PX")] = 64
    """Height or width that the first level does not go below; each further one doubles it."""

    begin: Annotated[float | None, tyro.conf.arg(metavar="T", help_behavior_hint=BY_START)] = None
    """Time in the published course of the learning rate at which each level begins: 0 is its beginning."""

    pace: Annotated[float | None, tyro.conf.arg(metavar="T", help_behavior_hint=BY_START)] = None
    """Time that a step takes there: 1 is as published."""

    exponent: float = 2.0
    """Of the distances in what is minimised: 2 for their squares."""

    samples: int = 2
    """Of an ensemble, transformations that each step looks through."""

    seed: int = 0
    """Of what is drawn."""

    @property
    def key(self) -> Any:
        return jax.random.key(self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """For documents."""
        return {name: getattr(self, name) for name in SETTINGS}

    def pictures(self, paths: list[Path], metric: Any) -> list[Picture]:
        """The pictures, cut if asked for, checked for the metric."""
        if self.square is not None and self.square < 1:
            raise GeometryError(f"--square must be 1 or more pixels, got {self.square}")
        pictures = [read_uint8(path) for path in paths]
        if self.square is not None:
            pictures = [_square(picture, self.square) for picture in pictures]
        check_files(metric, dict(zip(paths, pictures, strict=True)))
        return pictures

    @contextmanager
    def descending(self, out: Path) -> Iterator[dict[str, Any]]:
        """Within, Ctrl-C has an effect between steps. Gives the arguments that say how to descend."""
        snapshot = out / "snapshot.npz"
        arguments = {name: getattr(self, name) for name in DESCENT}
        try:
            with interrupts.deferred():
                yield {
                    **arguments,
                    "snapshot": snapshot,
                    "progress": True,
                    "watch": lambda progress: interrupts.check(),
                }
        except KeyboardInterrupt:
            if snapshot.exists():
                say(f"interrupted; the same command goes on from {snapshot}")
            raise

    def finish(self, out: Path, document: Mapping[str, Any]) -> None:
        """Writes the document, after everything else, and removes the snapshot, which nobody needs any more."""
        write_whole(out / "result.json", reports.json_text(document) + "\n")
        (out / "snapshot.npz").unlink(missing_ok=True)


def _square(picture: Picture, side: int) -> UInt8[np.ndarray, "side side 3"]:
    from PIL import Image

    height, width = picture.shape[:2]
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    middle = Image.fromarray(picture[top : top + length, left : left + length])
    return np.array(middle.resize((side, side), Image.Resampling.LANCZOS))

"""`rlpips geodesic`: frames that lead from one picture to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rlpips_jax import geometry, reports
from rlpips_jax.cli.descent_options import DescentOptions
from rlpips_jax.files.image_files import save_animation, save_image

TILE = 160
"""Pixels of a frame on the strip."""
SECONDS, PAUSE = 0.12, 0.8
"""Seconds for which the animations show a frame, and an end."""


@dataclass(frozen=True, kw_only=True)
class Geodesic(DescentOptions):
    """Find the shortest path between two pictures under a metric, as frames.

    It minimises the sum of squared distances between neighbouring frames. Writes the frames,
    strip.png (beside a crossfade), path.gif, path.png (the same animation without loss) and result.json to --out.
    After an interruption the same command continues where it stopped.

    Examples:
        rlpips geodesic a.png b.png --metric rlpips-alex --square 128 --frames 9
    """

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The picture to begin with."""

    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The picture to end with, of the same size."""

    frames: int = 9
    """Frames of the path, including its ends."""

    out: Path = Path("geodesic")
    """Folder to write to."""

    def run(self) -> int:
        metric = self.load_any()
        a, b = self.pictures([self.a, self.b], metric)
        with self.descending(self.out) as arguments:
            result = geometry.geodesic(a, b, self.frames, metric, **arguments)
        straight = geometry.crossfade(a, b, self.frames)
        paths = {
            "geodesic": np.rint(np.asarray(result.frames) * 255).astype(np.uint8),
            "crossfade": np.rint(np.asarray(straight) * 255).astype(np.uint8),
        }
        steps = {
            name: np.asarray(geometry.distances(frames[:-1], frames[1:], metric, key=self.key))
            for name, frames in paths.items()
        }
        self._write(paths, steps, metric)
        self.tell(metric, "frames", [f"{place} to {place + 1}" for place in range(self.frames - 1)], steps)
        self.finish(
            self.out,
            metric,
            {
                "images": [str(self.a), str(self.b)],
                "distances": [
                    {"frame": place, **{name: distances[place] for name, distances in steps.items()}}
                    for place in range(self.frames - 1)
                ],
            },
        )
        return 0

    def _write(self, paths: dict[str, np.ndarray], steps: dict[str, np.ndarray], metric: Any) -> None:
        frames = paths["geodesic"]
        save_frames(self.out / "frames", frames)
        # Forth and back, so that the animation never jumps.
        turn = [*range(self.frames), *range(self.frames - 2, 0, -1)]
        seconds = [PAUSE if place in (0, self.frames - 1) else SECONDS for place in turn]
        for name in ("path.gif", "path.png"):
            save_animation(self.out / name, frames[turn], seconds=seconds)
        rows = [
            [
                reports.Tile(picture, (name if not place else str(place), *_next(steps[name], place)))
                for place, picture in enumerate(pictures)
            ]
            for name, pictures in paths.items()
        ]
        strip = reports.contact_sheet(
            rows, title=f"Shortest path under {metric.name}", notes=(metric.signature,), size=TILE
        )
        save_image(self.out / "strip.png", strip)


def save_frames(folder: Path, frames: np.ndarray) -> None:
    """Writes numbered pictures and removes those of an earlier path; other files stay."""
    for path in folder.glob("*.png"):
        if path.stem.isdecimal():
            path.unlink()
    digits = len(str(len(frames) - 1))
    for number, frame in enumerate(frames):
        save_image(folder / f"{number:0{digits}}.png", frame)


def _next(distances: np.ndarray, place: int) -> tuple[str, ...]:
    """The distance to the next frame, if there is one."""
    return (f"to the next {distances[place]:.4f}",) if place < len(distances) else ()

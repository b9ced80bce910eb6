"""`python -m benchmarks.geometry_gallery PICTURE`: averages and a geodesic of photographs, as pictures.

PICTURE is one of

- shift: the average of ten copies of a photograph, each shifted by up to two pixels along each axis,
- noise: the same with Gaussian noise of 0.07 (both are experiments of Kettunen et al. 2019),
- geodesic: the shortest path between two photographs, beside a crossfade.

The photographs are scikit-image's, or one's own. Distances are of what was found, before it is rounded to 8 bits, by
the metric that it was found under and, for averages, by another that had no part in it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8

import rlpips_jax as rl
from examples.photographs import photographs
from rlpips_jax import geometry
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.reports import Tile, contact_sheet, table

COPIES = 10
SHIFT = 2
"""Pixels."""
SIDE = 200
"""Pixels that a picture is enlarged to, as far as whole numbers of pixels go."""
NARROWEST = 144
"""Pixels that captions of frames need."""
NOISE = 0.07
"""Standard deviation; images in [0, 1]."""

Image = Float[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Gallery:
    """Draw a picture of averages or of a geodesic."""

    picture: Annotated[Literal["shift", "noise", "geodesic"], tyro.conf.Positional]
    """What to draw."""
    out: Path = Path("geometry.png")
    """Picture to write."""
    metrics: tuple[str, ...] = ("lpips-squeeze",)
    """Metrics, a row or a column each."""
    judge: str = "lpips-alex"
    """Another metric that judges averages too."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    images: Path | None = None
    """Folder of photographs of your own."""
    names: tuple[str, str] = ("astronaut", "chelsea")
    """Photographs: of averages the first, of a path both."""
    size: int = 128
    """Height and width that the middle of a photograph is reduced to."""
    frames: int = 7
    """Frames of the path."""
    steps: int = geometry.STEPS
    """Of each level."""
    images_per_step: int | None = None
    """Copies that each step of an average looks at; None for all. One is enough for an ensemble."""
    samples: int = 2
    """Draws of an ensemble in each step, half of them for each of two estimates."""
    seed: int = 0
    """Of copies and draws."""


def main(config: Gallery) -> None:
    """Finds what is asked for, prints numbers, and writes the picture."""
    found = photographs(config.images)
    pictures = [reduced(found[name], config.size) for name in config.names]
    metrics = {name: rl.load(name, weights_dir=config.weights_dir) for name in config.metrics}
    if config.picture == "geodesic":
        sheet = path_sheet(pictures[0], pictures[1], metrics, config)
    else:
        sheet = average_sheet(pictures[0], metrics, config)
    rl.save_image(config.out, sheet)
    print(config.out)


def reduced(photograph: UInt8[np.ndarray, "h w 3"], size: int) -> Image:
    """A square photograph in [0, 1], with so many pixels a side."""
    from PIL import Image as Pillow

    resized = Pillow.fromarray(photograph).resize((size, size), Pillow.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 255


def copies(picture: Image, how: str, seed: int) -> Float[np.ndarray, "n h w 3"]:
    """Copies that are noisy, or shifted by whole pixels and reflected at the border."""
    rng = np.random.default_rng(seed)
    if how == "noise":
        noise = NOISE * rng.standard_normal((COPIES, *picture.shape))
        return np.clip(picture + noise, 0, 1).astype(np.float32)
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    offsets = rng.integers(2 * SHIFT + 1, size=(COPIES, 2))
    return np.stack([padded[top : top + height, left : left + width] for top, left in offsets])


def away(image: Image, original: Image, metric: Any) -> float:
    """The distance to the original."""
    return float(geometry.distances(image[None], original[None], metric, key=jax.random.key(1))[0])


def average_sheet(original: Image, metrics: dict[str, Any], config: Gallery) -> UInt8[np.ndarray, "H W 3"]:
    """Original, a copy, the mean of pixels and every metric's average, with distances to the original."""
    given = copies(original, config.picture, config.seed)
    shown = {"original": original, f"one of {COPIES} copies": given[0], "mean of pixels": given.mean(axis=0)}
    for name, metric in metrics.items():
        started = time.perf_counter()
        # For a metric without draws the features of all copies are computed once.
        per_step = config.images_per_step if is_random(metric) else None
        result = geometry.average(
            given,
            metric,
            images_per_step=per_step,
            key=jax.random.key(config.seed),
            descent=geometry.Descent(steps=config.steps, samples=config.samples, progress=True),
        )
        print(f"{name}: {time.perf_counter() - started:.0f} s")
        shown[f"average by {name}"] = np.asarray(result.image)
    judges = {**metrics, config.judge: rl.load(config.judge, weights_dir=config.weights_dir)}
    distances = {name: [away(image, original, judge) for judge in judges.values()] for name, image in shown.items()}
    rows = [(name, *(f"{value:.4f}" for value in values)) for name, values in distances.items()]
    print(table(("distance to the original", *judges), rows))
    tiles = [
        Tile(image, (name, *(f"{judge} {value:.3f}" for judge, value in zip(judges, distances[name], strict=True))))
        for name, image in shown.items()
    ]
    how = f"noise of {NOISE}" if config.picture == "noise" else f"shifts by up to {SHIFT} pixels"
    return contact_sheet(
        [tiles],
        title=f"Average of {COPIES} copies with {how}",
        notes=("Numbers are distances to the original.",),
        size=config.size * max(1, SIDE // config.size),
    )


def path_sheet(a: Image, b: Image, metrics: dict[str, Any], config: Gallery) -> UInt8[np.ndarray, "H W 3"]:
    """A crossfade, and every metric's path, with the distance from each frame to the next."""
    paths: dict[str, tuple[Any, Any]] = {"crossfade": (np.asarray(geometry.crossfade(a, b, config.frames)), None)}
    for name, metric in metrics.items():
        started = time.perf_counter()
        result = geometry.geodesic(
            a,
            b,
            config.frames,
            metric,
            key=jax.random.key(config.seed),
            descent=geometry.Descent(steps=config.steps, samples=config.samples, progress=True),
        )
        fade = paths["crossfade"][0]
        straight = geometry.distances(fade[:-1], fade[1:], metric, key=jax.random.key(1))
        sums = [float((np.asarray(part) ** 2).sum()) for part in (result.distances, straight)]
        print(
            f"{name}: {time.perf_counter() - started:.0f} s; sum of squared distances {sums[0]:.4f}, "
            f"of the crossfade {sums[1]:.4f}"
        )
        paths[name] = (np.asarray(result.frames), np.asarray(result.distances))
    rows = []
    for name, (frames, distances) in paths.items():
        captions: list[tuple[str, ...]] = [(name if number == 0 else str(number),) for number in range(len(frames))]
        if distances is not None:
            captions[:-1] = [(*caption, f"next {d:.3f}") for caption, d in zip(captions, distances, strict=False)]
        rows.append([Tile(frame, caption) for frame, caption in zip(frames, captions, strict=True)])
    return contact_sheet(
        rows,
        title=f"From {config.names[0]} to {config.names[1]}: a crossfade, and shortest paths",
        size=max(NARROWEST, config.size),
    )


if __name__ == "__main__":
    main(tyro.cli(Gallery, prog="python -m benchmarks.geometry_gallery"))

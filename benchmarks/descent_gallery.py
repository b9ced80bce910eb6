"""`python -m benchmarks.descent_gallery`: where gradient descent on a metric leads, as a picture.

From the same noise, Adam follows the gradient of the distance from a photograph, under each metric. What is left of the
noise is what the metric does not see. The photograph is scikit-image's or one's own. Pixel errors are root mean squares
of differences in [0, 1].
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8
from PIL import Image

import rlpips_jax as rl
from rlpips_jax.distances.protocol import Metric
from rlpips_jax.reports import Tile, contact_sheet

RATE = 0.03
SIDE = 256
"""Pixels that a picture is enlarged to."""


@dataclass(frozen=True)
class Gallery:
    """Draw what descents from noise end in."""

    out: Path = Path("descent.png")
    """Picture to write."""
    metrics: tuple[str, ...] = ("lpips-alex", "rlpips-alex", "rlpips-tiny")
    """Metrics, a column each."""
    weights_dir: Path | None = None
    """Folder with their weights."""
    image: Path | None = None
    """A photograph of your own; None for scikit-image's cat (Stefan van der Walt, CC0)."""
    size: int = 128
    """Height and width that its middle is reduced to."""
    steps: int = 200
    """Of Adam."""
    seed: int = 0
    """Of the noise."""


def main(config: Gallery) -> None:
    """Descends under each metric, prints numbers, and writes the picture."""
    goal = jnp.asarray(photograph(config.image, config.size), jnp.float32) / 255
    noise = jax.random.uniform(jax.random.key(config.seed), goal.shape)
    tiles = [Tile(np.asarray(goal), ("the photograph",)), Tile(np.asarray(noise), ("noise", _error(noise, goal)))]
    for name in config.metrics:
        metric = rl.load(name, weights_dir=config.weights_dir)
        found = descend(noise, goal, metric, config.steps)
        before, after = (float(rl.distance(goal, image, metric)) for image in (noise, found))
        print(f"{name}: distance {before:.3f} -> {after:.3f}, {_error(found, goal)}")
        tiles.append(Tile(np.asarray(found), (f"{name}: {before:.2f} to {after:.2f}", _error(found, goal))))
    title = f"{config.steps} steps of gradient descent from the same noise, under each metric"
    rl.save_image(config.out, contact_sheet([tiles], title=title, size=SIDE))


def photograph(path: Path | None, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle of a photograph, a square, reduced to this size."""
    if path is None:
        package = importlib.util.find_spec("skimage")
        if package is None or package.origin is None:
            raise rl.ImageFileError("pip install scikit-image, which has the photograph, or give --image FILE")
        path = Path(package.origin).parent / "data" / "chelsea.png"
    image = Image.fromarray(rl.load_image(path))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def descend(
    start: Float[Array, "h w 3"], goal: Float[Array, "h w 3"], metric: Metric, steps: int
) -> Float[Array, "h w 3"]:
    """Follows the gradient of the distance from `goal`, by Adam within [0, 1]."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(image: Array, state: Any, goal: Array, metric: Metric) -> tuple[Array, Any]:
        updates, state = optimizer.update(jax.grad(rl.distance, argnums=1)(goal, image, metric), state)
        return jnp.clip(optax.apply_updates(image, updates), 0, 1), state  # pyright: ignore[reportArgumentType]

    image, state = start, optimizer.init(start)
    for _ in range(steps):
        image, state = step(image, state, goal, metric)
    return image


def _error(image: Array, goal: Array) -> str:
    return f"pixel error {float(jnp.sqrt(jnp.mean((image - goal) ** 2))):.3f}"


if __name__ == "__main__":
    main(tyro.cli(Gallery, prog="python -m benchmarks.descent_gallery"))

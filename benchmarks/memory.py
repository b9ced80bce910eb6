"""`python -m benchmarks.memory`: what all pairs of two sets take, and a gradient with and without recomputation."""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlpips_jax as rl
from benchmarks.process import MIB, resident
from rlpips_jax.distances.lpips import Lpips


@dataclass(frozen=True)
class Memory:
    """Measure `pairwise` on drawn bytes, then what the compiler sets aside for a gradient through VGG16."""

    weights_dir: Path | None = None
    """Folder with the weights of lpips-alex and lpips-vgg."""
    images: int = 1000
    """Images in each of the two sets."""
    side: int = 64
    """Their height and width."""
    gradient_side: int = 512
    """Height and width of the image whose gradient is taken."""
    checked: int = 40
    """Pairs that are compared with `distance`."""


def all_pairs(config: Memory) -> None:
    """Time, memory and error of a whole matrix."""
    metric = rl.load("lpips-alex", weights_dir=config.weights_dir)
    rng = np.random.default_rng(0)
    shape = (config.images, config.side, config.side, 3)
    xs, ys = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 256, shape, np.uint8)
    ys[0] = xs[0]
    ys[1] = np.clip(xs[1].astype(int) + rng.integers(-2, 3, xs[1].shape), 0, 255)
    before = resident("VmHWM")
    seconds, matrix = [], np.empty(0)
    for _ in range(2):
        started = time.perf_counter()
        matrix = np.asarray(rl.pairwise(xs, ys, metric))
        seconds.append(time.perf_counter() - started)
    print(
        f"pairwise, {config.images} x {config.images} at {config.side}x{config.side}, lpips-alex: peak "
        f"{resident('VmHWM'):.0f} MiB ({before:.0f} before), {seconds[1]:.1f} s ({seconds[0]:.1f} with compilation)"
    )
    i, j = rng.integers(0, config.images, (2, config.checked))
    i[:2], j[:2] = (0, 1), (0, 1)
    expected = np.asarray(rl.distance(xs[i], ys[j], metric))
    error = np.abs(matrix[i, j] / np.where(expected == 0, 1, expected) - (expected != 0)).max()
    print(f"largest relative difference from `distance` in {config.checked} pairs, one equal, one nearly: {error:.1e}")


def set_aside(metric: Lpips, side: int) -> float:
    """MiB of temporaries that a distance and its gradient take, as the compiler has it."""
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    gradient = jax.jit(jax.value_and_grad(lambda y, x, metric: rl.distance(x, y, metric).sum()))
    memory = gradient.lower(image, image, metric).compile().memory_analysis()
    if memory is None:
        raise RuntimeError("this platform's compiler does not tell")
    return memory.temp_size_in_bytes / MIB


def main(config: Memory) -> None:
    """Measures and prints."""
    all_pairs(config)
    kept, recomputed = (
        set_aside(rl.load("lpips-vgg", weights_dir=config.weights_dir, remat=remat), config.gradient_side)
        for remat in (False, True)
    )
    print(
        f"gradient through lpips-vgg at {config.gradient_side}x{config.gradient_side}: {kept:.0f} MiB of temporaries, "
        f"with remat {recomputed:.0f} MiB, {recomputed / kept:.2f} of it"
    )


if __name__ == "__main__":
    main(tyro.cli(Memory, prog="python -m benchmarks.memory"))

"""`python -m benchmarks.tiny`: how well lpips-tiny follows LPIPS-alex, how fast it is, how easily it is fooled.

Prints the tables of docs/lpips-tiny.md. Photographs and triplets come from the reference data, which neither network
was trained on.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlpips_jax as rl
from benchmarks.timing import side_by_side, slowdown
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.evaluation.distortions import distort, training_kinds
from training.distill import rank_correlation


@dataclass(frozen=True)
class Tiny:
    """Measure lpips-tiny beside LPIPS-alex, pixel L2 and SSIM."""

    shared: Path = Path("../shared")
    """Folder of the reference data: triplets/kodak.npz and images/kodak."""
    metric: str = "lpips-tiny"
    """Lpips to measure; a name or the path of a weight file."""
    weights_dir: Path | None = None
    """Folder with the weights of lpips-alex."""
    repeats: int = 15
    """Timed repetitions of each call."""
    attacked: int = 200
    """Ordinal triplets to attack."""


def pixel_l2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference of each pair, images in [0, 1]."""
    return np.sqrt(np.mean(np.square((np.float64(x) - y) / 255), axis=(1, 2, 3)))


def dissimilarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 - SSIM of each pair."""
    from skimage.metrics import structural_similarity

    similarity = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(x, y, strict=True)]
    return 1 - np.array(similarity, np.float64)


def in_batches(metric: Lpips, x: np.ndarray, y: np.ndarray, batch: int = 50) -> np.ndarray:
    """Distances of many pairs."""
    return np.concatenate(
        [np.asarray(rl.distance(x[i : i + batch], y[i : i + batch], metric)) for i in range(0, len(x), batch)]
    )


def row(name: str, found: np.ndarray, teacher: np.ndarray, sure: np.ndarray) -> str:
    """A line of the table: rank correlation, agreement where the teacher is sure, factor, spread."""
    (d0, d1), (t0, t1) = np.split(found, 2), np.split(teacher, 2)
    agreement = np.mean(((d0 < d1) == (t0 < t1))[sure])
    ratio = np.log(found / teacher)
    factor, spread = np.exp(np.median(ratio)), np.exp(np.quantile(np.abs(ratio - np.median(ratio)), 0.68))
    rank = rank_correlation(found, teacher)
    return f"| {name} | {rank:.3f} | {agreement:.3f} | {factor:.3g} | {spread:.2f} |"


def full_size(folder: Path, metrics: list[Lpips], side: int = 256) -> list[np.ndarray]:
    """Distances on centre crops of photographs, every kind of distortion at three strengths."""
    originals, distorted = [], []
    rng = np.random.default_rng(0)
    for path in rl.image_paths(folder):
        image = rl.load_image(path)
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        crop = image[top : top + side, left : left + side]
        for kind, strength in itertools.product(training_kinds(), (0.15, 0.5, 0.85)):
            originals.append(crop)
            distorted.append(distort(crop, kind, strength, rng))
    return [in_batches(metric, np.stack(originals), np.stack(distorted), 8) for metric in metrics]


def finished(function: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    """The result of a function once it is there."""
    return jax.block_until_ready(function(*arguments))


@jax.jit
def plain(metric: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
    """The distance."""
    return rl.distance(x, y, metric)


@jax.jit
def slope(metric: Lpips, x: jax.Array, y: jax.Array) -> jax.Array:
    """Gradient of the distance by the second image."""
    return jax.grad(lambda y: rl.distance(x, y, metric).sum())(y)


def attacked_accuracy(metric: Lpips, ref: np.ndarray, near: np.ndarray, far: np.ndarray, epsilon: float) -> float:
    """Share of triplets still ranked right after 20 sign steps of epsilon / 8 push the nearer image away.

    epsilon is in units of [0, 1]; one random start.
    """
    x, y, z = (jnp.asarray(image, jnp.float32) / 255 for image in (ref, near, far))
    delta = jax.random.uniform(jax.random.key(0), y.shape, minval=-epsilon, maxval=epsilon)
    for _ in range(20 if epsilon else 0):
        step = epsilon / 8 * jnp.sign(slope(metric, x, jnp.clip(y + delta, 0, 1)))
        delta = jnp.clip(delta + step, -epsilon, epsilon)
    moved = jnp.clip(y + delta, 0, 1)
    return float(jnp.mean(rl.distance(x, moved, metric) < rl.distance(x, z, metric)))


def main(config: Tiny) -> None:
    """Measures and prints."""
    tiny, alex = rl.load(config.metric), rl.load("lpips-alex", weights_dir=config.weights_dir)
    print(f"{tiny.signature}\n{alex.signature}\n{jax.devices()[0].device_kind}, {len(jax.devices())} device(s)\n")

    with np.load(config.shared / "triplets" / "kodak.npz") as file:
        crossed = {key: file[f"crossed/{key}"] for key in ("ref", "p0", "p1", "d0", "d1")}
        ordinal = {key: file[f"ordinal/{key}"][: config.attacked] for key in ("ref", "p0", "p1", "judge")}
    x, y = np.concatenate([crossed["ref"]] * 2), np.concatenate([crossed["p0"], crossed["p1"]])
    teacher = np.concatenate([crossed["d0"], crossed["d1"]])
    sure = np.abs(np.log(crossed["d0"] / crossed["d1"])) > 0.5
    print("| crossed pairs, 64x64 | Spearman | agreement where sure | factor | spread |\n|---|---|---|---|---|")
    for name, found in (
        (config.metric, in_batches(tiny, x, y)),
        ("pixel L2", pixel_l2(x, y)),
        ("1 - SSIM", dissimilarity(x, y)),
    ):
        print(row(name, found, teacher, sure))

    found, expected = full_size(config.shared / "images" / "kodak", [tiny, alex])
    ratio = np.log(found / expected)
    print(
        f"\n256x256 crops, {len(found)} pairs: Spearman {rank_correlation(found, expected):.3f}, "
        f"factor {np.exp(np.median(ratio)):.3g}\n"
    )

    print("| time, lpips-alex / tiny | distance | with gradient |\n|---|---|---|")
    for count, side in ((50, 64), (1, 256), (16, 256)):
        pair = [jax.random.uniform(jax.random.key(seed), (count, side, side, 3)) for seed in (0, 1)]
        ratios = []
        for function in (plain, slope):
            taken = side_by_side(
                {
                    name: functools.partial(finished, function, metric, *pair)
                    for name, metric in (("tiny", tiny), ("alex", alex))
                },
                config.repeats,
            )
            ratios.append(slowdown(taken["alex"], taken["tiny"]).median)
        print(f"| {count} of {side}x{side} | {ratios[0]:.2f} | {ratios[1]:.2f} |")

    first = ordinal["judge"][:, None, None, None] < 0.5
    near, far = np.where(first, ordinal["p0"], ordinal["p1"]), np.where(first, ordinal["p1"], ordinal["p0"])
    print("\n| ordinal triplets ranked right | natural | 1/255 | 2/255 | 4/255 |\n|---|---|---|---|---|")
    for name, metric in ((config.metric, tiny), ("lpips-alex", alex)):
        scores = [attacked_accuracy(metric, ordinal["ref"], near, far, epsilon / 255) for epsilon in (0, 1, 2, 4)]
        print(f"| {name} | " + " | ".join(f"{score:.3f}" for score in scores) + " |")


if __name__ == "__main__":
    main(tyro.cli(Tiny, prog="python -m benchmarks.tiny"))

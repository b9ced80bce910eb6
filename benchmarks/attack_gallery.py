"""`python -m benchmarks.attack_gallery --images DIR --out DIR`: pictures of what attacks do to a metric.

- distances.png: how far `distort` moves photographs by the metric, beside random noise of the same size.
- impostors.png: what `impostor` finds, beside noise that the metric finds as far away.
- flows.png: triplets whose order `spatial` reverses, and by which flow.

All numbers on contact sheets are of the pictures as they are shown, rounded to 8 bits.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8

import rlpips_jax as rl
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.evaluation.distortions import apply, draw
from rlpips_jax.evaluation.patches import list_photographs, read_uint8
from rlpips_jax.reports import Tile, contact_sheet, heat

Pictures = UInt8[np.ndarray, "n h w 3"]

BALLS = (("linf", 0.05, "l-inf 0.05"), ("l2", 1.0, "l2 1.0"))
"""Of R-LPIPS's experiment, images in [0, 1]."""

TRIPLETS = ("noise", "blur", "jpeg", "contrast", "color", "quantize")
"""Kinds of distortion that the attacked triplets have, in turns."""
CLOSER, FARTHER = 0.45, 0.6
"""Their strengths."""

SIDE = 256
"""Pixels that pictures on sheets are enlarged to, as far as whole numbers of pixels go."""

ATTACKED, NOISY = "#c2410c", "#a1a1aa"
"""Colours of the histograms."""


@dataclass(frozen=True)
class Gallery:
    """Attack photographs and save the pictures."""

    images: Path
    """Folder of photographs."""
    out: Path
    """Folder for the pictures."""
    metric: str = "lpips-alex"
    """Lpips to attack; a name or the path of a weight file."""
    weights_dir: Path | None = None
    """Folder with its weights."""
    size: int = 128
    """Height and width that the middle of each photograph is reduced to."""
    count: int = 24
    """Most photographs in the histograms."""
    shown: int = 6
    """Most photographs on the sheets."""
    bound: float = 0.1
    """Distance of the impostors."""
    displacement: float = 0.3
    """Of the flows, in pixels."""
    steps: int = 50
    """Of `distort` and `spatial`; impostors take four times as many."""
    seed: int = 0
    """Of all that is drawn."""


def main(config: Gallery) -> None:
    """Attacks, and writes the pictures."""
    metric = rl.load(config.metric, weights_dir=config.weights_dir)
    photographs = middles(config.images, config.count, config.size)
    config.out.mkdir(parents=True, exist_ok=True)
    for name, paint in (
        ("distances", distances),
        ("impostors", impostors),
        ("flows", flows),
    ):
        path = config.out / f"{name}.png"
        rl.save_image(path, paint(metric, photographs, config))
        print(path, flush=True)


def middles(folder: Path, count: int, size: int) -> Pictures:
    """The largest square in the middle of each photograph, reduced."""
    from PIL import Image

    squares = []
    for path in list_photographs(folder)[:count]:
        image = read_uint8(path)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = Image.fromarray(image[top : top + side, left : left + side])
        squares.append(np.array(square.resize((size, size), Image.Resampling.LANCZOS)))
    return np.stack(squares)


def rounded(images: object) -> Pictures:
    """As a file holds them."""
    return np.rint(np.clip(np.asarray(images), 0, 1) * 255).astype(np.uint8)


def measured(metric: Lpips, x: Pictures, y: Pictures, batch: int = 12) -> Float[np.ndarray, " n"]:
    """Distances of pairs."""
    parts = [rl.distance(x[at : at + batch], y[at : at + batch], metric) for at in range(0, len(x), batch)]
    return np.concatenate([np.asarray(part) for part in parts])


def pixel_l2(x: Pictures, y: Pictures) -> Float[np.ndarray, " n"]:
    """Of each pair, images in [0, 1]."""
    return np.sqrt(np.square((np.float64(x) - y) / 255).sum(axis=(1, 2, 3)))


def enlargement(config: Gallery) -> int:
    """How many pixels of a sheet a pixel is wide."""
    return max(1, SIDE // config.size)


def enlarged(picture: UInt8[np.ndarray, "h w 3"], times: int) -> UInt8[np.ndarray, "H W 3"]:
    """Pixel by pixel."""
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def noise_of(norm: str, epsilon: float, shape: tuple[int, ...], rng: np.random.Generator) -> Float[np.ndarray, "..."]:
    """Noise as large as a ball allows: random signs, or a Gaussian of that length."""
    noise = rng.standard_normal(shape)
    if norm == "linf":
        return epsilon * np.sign(noise)
    return epsilon * noise / np.sqrt(np.square(noise).sum(axis=(1, 2, 3), keepdims=True))


def distances(metric: Lpips, photographs: Pictures, config: Gallery) -> Pictures:
    """Histograms of the distance from the photographs, of noise and of `distort`, both l-inf and l2."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng(config.seed)
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=130)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(f"How far {metric.name} finds {len(photographs)} photographs from themselves, {config.size} pixels")
    for axes, (norm, epsilon, name) in zip(figure.subplots(1, 2), BALLS, strict=True):
        noise = noise_of(norm, epsilon, photographs.shape, rng)
        before = measured(metric, rounded(photographs / 255 + noise), photographs)
        result = rl.attacks.distort(
            metric, photographs, key=jax.random.key(config.seed), epsilon=epsilon, norm=norm, steps=config.steps
        )
        after = np.asarray(result.after)
        # Distances that differ by a factor look equally far apart wherever they lie.
        low, high = 0.8 * min(before.min(), after.min()), 1.25 * max(before.max(), after.max())
        bins = np.geomspace(low, high, 36)
        for values, colour, label in (
            (before, NOISY, "random noise"),
            (after, ATTACKED, f"{config.steps} steps of PGD"),
        ):
            axes.hist(values, bins, color=colour, alpha=0.85, label=f"{label}: median {np.median(values):.3g}")
        axes.set(xscale="log", xlim=(low, high), title=f"{name}, images in [0, 1]", xlabel="distance")
        axes.set_ylabel("photographs")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        print(
            f"distort, {name}: median distance {np.median(after):.4f}, of noise {np.median(before):.4f}; "
            f"{np.median(after / before):.1f} times as far",
            flush=True,
        )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def as_far(
    metric: Lpips, photographs: Pictures, distort: Callable[[Float[np.ndarray, "n 1 1 1"]], Pictures], bound: float
) -> Pictures:
    """Photographs distorted so strongly, from 0 to 1, that they are at the bound."""
    weak, strong = np.zeros(len(photographs)), np.ones(len(photographs))
    for _ in range(10):
        middle = (weak + strong) / 2
        within = measured(metric, distort(middle[:, None, None, None]), photographs) <= bound
        weak, strong = np.where(within, middle, weak), np.where(within, strong, middle)
    return distort(weak[:, None, None, None])


def impostors(metric: Lpips, photographs: Pictures, config: Gallery) -> Pictures:
    """Photographs, their impostors and what is equally far by the metric."""
    photographs = photographs[: config.shown]
    pixels = photographs / 255
    noise = np.random.default_rng(config.seed).standard_normal(photographs.shape)
    lighter = np.where(pixels.mean(axis=(1, 2, 3), keepdims=True) < 0.5, 1, -1)
    columns = {"photograph": photographs}
    times = enlargement(config)
    others = np.roll(photographs, 1, axis=0)
    for name, starts in (("impostor", None), ("impostor from the row above", others)):
        if starts is not None and len(photographs) == 1:
            continue
        result = rl.attacks.impostor(
            metric,
            photographs,
            key=jax.random.key(config.seed),
            # Rounding to 8 bits must not lead out of the bound.
            bound=0.99 * config.bound,
            steps=4 * config.steps,
            starts=starts,
        )
        columns[name] = rounded(result.adversarial)
    columns["noise"] = as_far(metric, photographs, lambda amount: rounded(pixels + amount * noise), config.bound)
    columns["brightness"] = as_far(metric, photographs, lambda amount: rounded(pixels + amount * lighter), config.bound)
    numbers = {}
    for name, pictures in columns.items():
        found, far = measured(metric, pictures, photographs), pixel_l2(pictures, photographs)
        numbers[name] = [(f"{a:.3f}", f"{b:.1f}") for a, b in zip(found, far, strict=True)]
        print(f"{name}: distance {found.mean():.4f} (largest {found.max():.4f}), l2 {far.mean():.1f}", flush=True)
    rows = [
        [
            Tile(
                enlarged(pictures[row], times),
                (
                    name,
                    ""
                    if pictures is photographs
                    else f"{metric.name} {numbers[name][row][0]}, l2 {numbers[name][row][1]}",
                ),
            )
            for name, pictures in columns.items()
        ]
        for row in range(len(photographs))
    ]
    return contact_sheet(
        rows,
        title=f"Impostors: {metric.name} calls all pictures of a row alike",
        notes=(
            f"Distance from the first by the metric, at most {config.bound:g}; l2 of the difference, images in [0, 1].",
            "The second and third were found by an attack; noise and brightness are as strong as the bound allows.",
        ),
        size=times * config.size,
    )


def triplets(photographs: Pictures, seed: int) -> tuple[Pictures, Pictures, Sequence[str]]:
    """Photographs distorted in one way at two strengths; closer, farther, and which way."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, _ in zip(itertools.cycle(TRIPLETS), photographs, strict=False)]
    draws = [draw(kind, photographs.shape[1:], rng) for kind in kinds]
    closer, farther = (
        np.stack(
            [apply(image, kind, strength, field) for image, kind, field in zip(photographs, kinds, draws, strict=True)]
        )
        for strength in (CLOSER, FARTHER)
    )
    return closer, farther, kinds


def flows(metric: Lpips, photographs: Pictures, config: Gallery) -> Pictures:
    """Triplets, the closer image before and after the attack, and how far its pixels moved."""
    photographs = photographs[: config.shown]
    closer, farther, kinds = triplets(photographs, config.seed)
    result = rl.attacks.spatial(
        rl.attacks.ranking(metric, photographs, closer, farther),
        closer,
        key=jax.random.key(config.seed),
        epsilon=config.displacement,
        steps=config.steps,
    )
    attacked, times = rounded(result.adversarial), enlargement(config)
    shift = np.sqrt(np.square(np.asarray(result.flow)).sum(axis=-1))
    far = {
        name: measured(metric, pictures, photographs)
        for name, pictures in (("closer", closer), ("moved", attacked), ("farther", farther))
    }
    reversed_ = far["moved"] > far["farther"]
    print(f"spatial: {reversed_.sum()} of {len(reversed_)} orders reversed by {config.displacement:g} px", flush=True)
    rows = [
        [
            Tile(enlarged(photographs[row], times), ("photograph",)),
            Tile(enlarged(closer[row], times), (f"closer: {kinds[row]}", f"{metric.name} {far['closer'][row]:.3f}")),
            Tile(
                enlarged(attacked[row], times),
                (
                    "closer, moved",
                    f"{metric.name} {far['moved'][row]:.3f}" + (", now farther" if reversed_[row] else ""),
                ),
            ),
            Tile(enlarged(farther[row], times), (f"farther: {kinds[row]}", f"{metric.name} {far['farther'][row]:.3f}")),
            Tile(
                enlarged(heat(shift[row], config.displacement), times),
                ("length of the flow", f"up to {shift[row].max():.2f} px, mean {shift[row].mean():.2f}"),
            ),
        ]
        for row in range(len(photographs))
    ]
    return contact_sheet(
        rows,
        title=f"Smooth flows up to {config.displacement:g} px reverse {reversed_.sum()} of {len(reversed_)} orders",
        notes=("Distances are from the photograph. The flow is pale where it is longest.",),
        size=times * config.size,
    )


if __name__ == "__main__":
    main(tyro.cli(Gallery, prog="python -m benchmarks.attack_gallery"))

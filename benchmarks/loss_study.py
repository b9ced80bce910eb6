"""`python -m benchmarks.loss_study --photographs DIR --validation DIR --out DIR`: one decoder under several losses.

The same small autoencoder, from the same parameters, learns to reconstruct the same photographs in the same order, each
time under another loss. Its decoder enlarges by repeating pixels, so that a grid in what it makes comes from the loss.
A mixture adds pixel L2, each part divided by the length of its gradient at the start. On photographs that were not
learnt from, in `table.txt`: PSNR, SSIM, each metric's distance, and the grid, the energy that the error has at periods
of 2 and 4 pixels, the stride of AlexNet's first layer, as a multiple of the energy at the periods beside them; 1 is no
grid. `sheet.png` shows what each makes of scikit-image's photographs, or one's own. A loss that is done is not trained
again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, UInt8

import rlpips_jax as rl
from examples.photographs import photographs
from rlpips_jax import reports
from rlpips_jax.cli.results import write_whole
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.evaluation.patches import halve, patches
from rlpips_jax.ops.convolution import convolution
from rlpips_jax.reports import Tile, contact_sheet
from rlpips_jax.scoring.pixel_measures import psnr, ssim

L2 = "l2"
MIXED = "+l2"
"""End of the name of a loss to which pixel L2 is added."""
PERIODS = (2, 4)
"""Of the grid, in pixels."""
EVALUATED = 16
"""Photographs compared at once."""

Pictures = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Train a decoder under several losses, and compare what it makes."""

    photographs: Path
    """Folder of photographs to learn from."""
    validation: Path
    """Folder of others, to judge on."""
    out: Path = Path("loss-study")
    """Folder for the results."""
    losses: tuple[str, ...] = (
        *(L2, "lpips-alex", "rlpips-alex", "rlpips-tiny", "dists", "elpips-tiny"),
        *("lpips-alex" + MIXED, "rlpips-tiny" + MIXED),
    )
    """Pixel L2, metrics, and metrics to which pixel L2 is added."""
    weights_dir: Path | None = None
    """Folder to look for weights in first."""
    steps: int = 1000
    """Of Adam."""
    batch: int = 16
    """Photographs per step."""
    rate: float = 1e-3
    """Of Adam; it falls to 0 as a cosine does."""
    size: int = 64
    """Height and width of the patches."""
    count: int = 64
    """Patches to judge on."""
    pictures: Path | None = None
    """Folder of photographs of your own for the picture; by default scikit-image's."""
    shown: int = 3
    """Photographs in the picture."""
    seed: int = 0
    """Of parameters, patches and their order."""


class Autoencoder(nn.Module):
    """Three strided convolutions to a code of 16 channels, an eighth as wide, and back."""

    widths: tuple[int, ...] = (32, 64, 96)
    code: int = 16

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
        """Images in [0, 1], reconstructed."""

        def conv(x: Array, width: int, side: int = 3, stride: int = 1) -> Array:
            options: Any = {"padding": (((side - 1) // 2,) * 2,) * 2, "conv_general_dilated": convolution}
            return nn.Conv(width, (side, side), (stride, stride), **options)(x)

        x = 2 * images - 1
        for width in self.widths:
            x = nn.silu(conv(x, width, side=4, stride=2))
        x = conv(x, self.code)
        for width in reversed(self.widths):
            x = nn.silu(conv(x, width))
            x = nn.silu(conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), width))
        return nn.sigmoid(conv(x, 3))


Loss = Callable[[Array, Array, Any, Array], Array]
"""`made, images, metric, key -> ()`."""


def by_pixels(made: Array, images: Array, metric: Any, key: Array) -> Array:
    """The mean squared difference."""
    return jnp.mean((made - images) ** 2)


def by_metric(made: Array, images: Array, metric: Any, key: Array) -> Array:
    """The mean distance; of a randomised metric under one draw, a new one at each step."""
    return jnp.mean(distances(images, made, metric, key, samples=1))


def distances(x: Any, y: Any, metric: Any, key: Array, *, samples: int | None = None) -> Float[Array, " n"]:
    """Distances of images in [0, 1] by a metric that may be randomised."""
    drawn: Any = {"key": key, "samples": samples} if is_random(metric) else {}
    return rl.distance(x, y, metric, value_range=(0, 1), **drawn)


def parts(name: str) -> tuple[Loss, ...]:
    """What a loss is the sum of."""
    return (by_pixels,) if name == L2 else (by_metric, by_pixels) if name.endswith(MIXED) else (by_metric,)


def trained(name: str, metric: Any, photographs: Pictures, config: Study) -> Any:
    """The parameters of the autoencoder, trained under a loss."""
    from tqdm import tqdm

    network, losses = Autoencoder(), parts(name)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))
    start = network.init(jax.random.key(config.seed), jnp.zeros((1, config.size, config.size, 3)))

    def value(loss: Loss, parameters: Any, images: Array, metric: Any, key: Array) -> Array:
        made: Any = network.apply(parameters, images)
        return loss(made, images, metric, key)

    def batch(number: int) -> Array:
        rows = np.random.default_rng((config.seed, number)).integers(0, len(photographs), config.batch)
        return jnp.asarray(photographs[rows] / np.float32(255))

    weights = jnp.ones(len(losses))
    if len(losses) > 1:
        key = jax.random.key(config.seed)
        gradients = [jax.grad(value, argnums=1)(loss, start, batch(0), metric, key) for loss in losses]
        weights = 1 / jnp.stack([optax.tree.norm(gradient) for gradient in gradients])

    @jax.jit
    def step(parameters: Any, state: Any, images: Array, metric: Any, key: Array) -> tuple[Any, Any, Array]:
        def total(parameters: Any) -> Array:
            values = [value(loss, parameters, images, metric, key) for loss in losses]
            return jnp.dot(weights, jnp.stack(values))

        found, gradient = jax.value_and_grad(total)(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, found

    parameters, state = start, optimizer.init(start)
    for number in tqdm(range(config.steps), desc=name, disable=None):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        parameters, state, found = step(parameters, state, batch(number), metric, key)
        if number % 100 == 0 and not np.isfinite(found):
            raise FloatingPointError(f"the loss {name} is not finite at step {number}")
    return parameters


def grid(made: Pictures, images: Pictures) -> float:
    """The energy of the error at the periods of the grid, as a multiple of that at neighbouring frequencies.

    Along each axis the energies of the other axis's frequencies are summed. The mean over the grid's frequencies is
    divided by the mean over those two and three steps beside them.
    """
    error = (np.float64(made) - images) / 255
    power = np.square(np.abs(np.fft.fft2(error, axes=(1, 2)))).sum(axis=(0, 3))
    size = power.shape[0]
    lines = sorted({size * harmonic // period for period in PERIODS for harmonic in range(1, period // 2 + 1)})
    beside = sorted({(line + step) % size for line in lines for step in (-3, -2, 2, 3)} - set(lines))
    ratios = [along[lines].mean() / along[beside].mean() for along in (power.sum(axis=0), power.sum(axis=1))]
    return float(np.mean(ratios))


compare = jax.jit(distances)
"""Compiled once for all losses."""


def judged(made: Pictures, images: Pictures, metrics: dict[str, Any]) -> dict[str, float]:
    """PSNR, SSIM, the grid and the mean distance by each metric."""
    found = {
        "psnr": float(np.mean([psnr(*pair) for pair in zip(images, made, strict=True)])),
        "ssim": float(np.mean([ssim(*pair) for pair in zip(images, made, strict=True)])),
        "grid": grid(made, images),
    }
    for name, metric in metrics.items():
        rows = [slice(at, at + EVALUATED) for at in range(0, len(images), EVALUATED)]
        unit = [(images[row] / np.float32(255), made[row] / np.float32(255)) for row in rows]
        values = [compare(*pair, metric, jax.random.key(1)) for pair in unit]
        found[name] = float(np.concatenate(values).mean())
    return found


class Made(NamedTuple):
    """Reconstructions of what is judged, and of what is shown."""

    judged: Pictures
    shown: Pictures


def made_under(name: str, metric: Any, learnt: Pictures, others: Made, config: Study) -> Made:
    """The reconstructions of other photographs after training on the learnt ones, from `NAME.npz` if that is there."""
    path = config.out / f"{name}.npz"
    settings = asdict(config) | {"losses": name, "out": "", "weights_dir": "", "shown": 0}
    document = json.dumps(settings | {"signature": getattr(metric, "signature", "")}, sort_keys=True, default=str)
    if path.exists():
        with np.load(path) as file:
            if str(file["settings"]) == document:
                return Made(*(file[part] for part in Made._fields))
    parameters = trained(name, metric, learnt, config)
    make: Any = jax.jit(Autoencoder().apply)

    def reconstructed(pictures: Pictures) -> Pictures:
        rows = [pictures[at : at + EVALUATED] for at in range(0, len(pictures), EVALUATED)]
        made = np.concatenate([make(parameters, images / np.float32(255)) for images in rows])
        return np.rint(255 * made).astype(np.uint8)

    made = Made(*map(reconstructed, others))
    np.savez(path, **made._asdict(), settings=np.array(document))
    return made


def main(config: Study) -> None:
    """Trains, judges, prints and writes the table and the picture."""
    config.out.mkdir(parents=True, exist_ok=True)
    names = {name.removesuffix(MIXED) for name in config.losses} - {L2}
    metrics = {name: rl.load(name, weights_dir=config.weights_dir) for name in sorted(names)}
    learnt, images = (
        patches(folder, count, size=config.size, rng=np.random.default_rng(config.seed))
        for folder, count in ((config.photographs, 4096), (config.validation, config.count))
    )
    shown = np.stack([halve(photograph) for photograph in photographs(config.pictures).values()])
    rows, found = [], {}
    for name in config.losses:
        metric = metrics.get(name.removesuffix(MIXED))
        made = made_under(name, metric, learnt, Made(images, shown), config)
        numbers = judged(made.judged, images, metrics)
        rows.append((name, *(f"{number:.4g}" for number in numbers.values())))
        found[name] = made.shown
        print(*rows[-1], flush=True)
        write_whole(config.out / "table.txt", reports.table(("loss", *numbers), rows) + "\n")
    print((config.out / "table.txt").read_text())
    tiles = [
        [
            Tile(shown[row], ("photograph",)),
            *(Tile(made[row], (name, f"PSNR {psnr(shown[row], made[row]):.1f}")) for name, made in found.items()),
        ]
        for row in range(min(config.shown, len(shown)))
    ]
    title = f"One decoder, {config.steps} steps under each loss"
    rl.save_image(config.out / "sheet.png", contact_sheet(tiles, title=title, size=2 * shown.shape[1]))


if __name__ == "__main__":
    main(tyro.cli(Study, prog="python -m benchmarks.loss_study"))

"""`python -m benchmarks.ensemble`: what E-LPIPS costs, and how far its estimates can be trusted.

Each table is a part that runs alone (`--parts cost`), because a part takes minutes on a small machine.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import rlpips_jax as rl
from benchmarks import report
from benchmarks.images import Size, images
from benchmarks.timing import median, side_by_side, slowdown
from rlpips_jax.backbones import ELPIPS_SQUEEZE, ELPIPS_VGG
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import ESTIMATORS, Ensemble
from rlpips_jax.ensemble.inference import compare
from rlpips_jax.weights.parameters import from_pytorch, with_heads
from rlpips_jax.weights.pytorch import read_checkpoint

NETWORKS = {
    "squeeze": ("squeezenet1_1-features.pth", "squeeze_full_maxpool.npy", ELPIPS_SQUEEZE),
    "vgg": ("vgg16-features.pth", "vgg_full_avg.npy", ELPIPS_VGG),
}

BLOCK = 8
"""Images in the network at once, in the second of two ways to compute plain distances."""


@dataclass(frozen=True, kw_only=True)
class Ensembles:
    """Measure E-LPIPS on photographs."""

    shared: Path = Path("../shared")
    """Folder of reference data, with images/kodak and weights."""
    network: str = "squeeze"
    """squeeze or vgg."""
    parts: tuple[str, ...] = ("variance", "comparison", "cost", "compilation")
    """What to measure."""
    side: int = 256
    """Of the photographs' crops."""
    photographs: int = 4
    """Pairs, each a crop and a noisy copy."""
    samples: int = 32
    """Of a distance."""
    replicates: int = 40
    """Estimates that a variance is told from."""
    repeats: int = 5
    """Rounds of timing."""


def load(config: Ensembles) -> Ensemble:
    """The ensemble with the weights of the reference data."""
    backbone, heads, architecture = NETWORKS[config.network]
    folder = config.shared / "weights"
    parameters = from_pytorch(read_checkpoint(folder / backbone), with_heads(architecture), backbone)
    parameters |= from_pytorch(read_checkpoint(folder / "elpips_heads" / heads), with_heads(architecture), heads)
    return Ensemble(Lpips(jax.tree.map(jnp.asarray, parameters), f"elpips-{config.network}", architecture))


@functools.partial(jax.jit, static_argnums=(4, 5))
def replicates(
    ensemble: Ensemble, x: Float[Array, "n h w 3"], y: Float[Array, "n h w 3"], key: Any, count: int, samples: int
) -> Float[Array, "count n"]:
    """Independent estimates."""

    def one(key: Any) -> Float[Array, " n"]:
        return rl.distance(x, y, ensemble, key=key, samples=samples, value_range=(-1, 1))

    return jax.lax.map(one, jax.random.split(key, count))


def variance(config: Ensembles) -> report.Table:
    """The variance of each estimator against that of independent draws, at equal samples."""
    ensemble = load(config)
    x, y = images(config.shared, Size(config.photographs, config.side))
    rows = []
    base = None
    for place, name in enumerate(ESTIMATORS):
        found = replicates(
            replace(ensemble, estimator=name), x, y, jax.random.key(place), config.replicates, config.samples
        )
        values = np.asarray(found, np.float64)
        spread = values.var(axis=0, ddof=1)
        base = spread if base is None else base
        relative = np.sqrt(spread) / values.mean(axis=0)
        ratios = spread / base
        rows.append(
            (name, f"{np.median(relative):.2%}", f"{ratios.mean():.2f}", f"{ratios.min():.2f}-{ratios.max():.2f}")
        )
    title = (
        f"Estimators of {ensemble.name}: {config.replicates} estimates of {config.samples} samples, "
        f"{Size(config.photographs, config.side)}"
    )
    return report.Table(title, ("estimator", "standard error", "variance / plain", "over pairs"), rows)


def comparison(config: Ensembles) -> report.Table:
    """The standard error of a difference of two distances with and without common random numbers."""
    ensemble = load(config)
    x, y = images(config.shared, Size(config.photographs, config.side))
    rng = np.random.default_rng(1)
    other = np.clip(x + rng.normal(0, 0.09, x.shape), -1, 1).astype(np.float32)
    rows = []
    for place, name in itertools.product(range(config.photographs), ("plain", ensemble.estimator)):
        # It may be sure before the last sample.
        found = compare(
            x[place],
            np.stack([y[place], other[place]]),
            replace(ensemble, estimator=name),
            key=jax.random.key(place),
            confidence=1 - 1e-12,
            max_samples=config.samples * 8,
            value_range=(-1, 1),
        )
        independent = float(np.hypot(*found.standard_errors))
        common = float(found.difference_errors.max())
        numbers = (*found.distances, independent, common)
        cells = (f"{number:.3g}" for number in numbers)
        rows.append((str(place), name, str(found.samples), *cells, f"{independent / common:.1f}"))
    header = (
        "pair",
        "draws",
        "samples",
        "d(a)",
        "d(b)",
        "error of d(a) - d(b), independent",
        "common",
        "times smaller",
    )
    title = f"Common random numbers, {ensemble.name}, {Size(config.photographs, config.side)}"
    return report.Table(title, header, rows)


def cost(config: Ensembles) -> report.Table:
    """A distance of so many samples against as many distances of the same network, batched."""
    ensemble = load(config)
    x, y = (jnp.asarray(each) for each in images(config.shared, Size(1, config.side)))
    copies = tuple(jnp.repeat(each, config.samples, axis=0) for each in (x, y))
    key = jax.random.key(0)

    def timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    def expected(x: Any, y: Any, ensemble: Ensemble, key: Any) -> Any:
        return rl.distance(x, y, ensemble, key=key, samples=config.samples, value_range=(-1, 1)).sum()

    def identity(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def plain(x: Any, y: Any, metric: Lpips) -> Any:
        return rl.distance(x, y, metric, value_range=(-1, 1)).sum()

    blocks = replace(ensemble.metric, max_batch=BLOCK)
    rows: list[Sequence[str]] = []
    for what, by in (("distance", identity), ("with gradient by y", functools.partial(jax.grad, argnums=1))):
        calls = {
            "ensemble": timed(by(expected), x, y, ensemble, key),
            "plain": timed(by(plain), *copies, ensemble.metric),
            "blocks": timed(by(plain), *copies, blocks),
        }
        times = side_by_side(calls, config.repeats)
        fastest = min(("plain", "blocks"), key=lambda name: median(times[name]))
        seconds = [report.seconds(median(times[name])) for name in calls]
        rows.append((what, *seconds, str(slowdown(times["ensemble"], times[fastest]))))
    title = (
        f"{config.samples} samples of {ensemble.name} against as many distances of its network, {Size(1, config.side)}"
    )
    header = ("", "ensemble", "plain, at once", f"plain, {BLOCK} images at a time", "ensemble / faster plain")
    return report.Table(title, header, rows)


def compilation(config: Ensembles) -> report.Table:
    """Seconds from nothing to a program: forward, and with the gradient."""
    ensemble = load(config)
    x, y = images(config.shared, Size(1, config.side))
    rows = []
    for samples in (1, config.samples):

        def call(y: Any, x: Any, ensemble: Ensemble, key: Any, samples: int = samples) -> Any:
            return rl.distance(x, y, ensemble, key=key, samples=samples, value_range=(-1, 1)).sum()

        cells = []
        for function in (call, jax.value_and_grad(call)):
            jax.clear_caches()
            started, busy = time.perf_counter(), time.process_time()
            jax.jit(function).lower(y, x, ensemble, jax.random.key(0)).compile()
            taken = time.perf_counter() - started, time.process_time() - busy
            cells.append(f"{taken[0]:.1f} s ({taken[1]:.1f} s of processor)")
        rows.append((str(samples), *cells))
    return report.Table(
        f"Compilation of {ensemble.name} at {config.side}x{config.side}", ("samples", "distance", "with gradient"), rows
    )


PARTS = {"variance": variance, "comparison": comparison, "cost": cost, "compilation": compilation}


def main() -> None:
    """Measures and prints."""
    config = tyro.cli(Ensembles)
    for part in config.parts:
        print(PARTS[part](config), flush=True)


if __name__ == "__main__":
    main()

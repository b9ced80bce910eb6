"""`python -m benchmarks.autoattack`: APGD and Square here, beside AutoAttack's own, and `minimum` beside bisection.

A triplet is a classifier of two classes for AutoAttack: the logits of "kept" and "reversed" are 0 and the difference of
the two distances. Both libraries attack the same triplets by the same network with as many gradients or queries.
Needs torch and, without its dependencies, pyautoattack 0.2.0.
"""

# pyautoattack is not among what the project is developed with.
# pyright: reportMissingImports=false

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from jaxtyping import Float

import rlpips_jax as rl
from benchmarks.bisection import bisected
from convert.reference import Reference, Variant, rename, variant
from rlpips_jax import attacks, reports
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.weights.parameters import to_pytorch

SHARPNESS = 10.0
"""Factor of the difference of distances, so that cross-entropies are neither flat nor rounded to 0."""


class Ranked(NamedTuple):
    """Triplets, `(n, h, w, 3)` each, in [0, 1]."""

    reference: Float[np.ndarray, "n h w 3"]
    closer: Float[np.ndarray, "n h w 3"]
    farther: Float[np.ndarray, "n h w 3"]


def torch_margin(metric: Lpips, network: Variant, triplets: Ranked) -> Callable[[torch.Tensor], torch.Tensor]:
    """d(reference, closer) - d(reference, farther) by PyTorch, as a function of the closer images (n, 3, h, w)."""
    weights = to_pytorch(metric.parameters, metric.backbone)
    tensors = rename({name: torch.from_numpy(np.array(weight)) for name, weight in weights.items()})
    judge = Reference(network, tensors, scaled=metric.version == "0.1")
    reference, farther = (2 * as_batch(images).double() - 1 for images in (triplets.reference, triplets.farther))
    limit = judge.layers(reference, farther).sum(dim=1).detach()
    return lambda images: judge.layers(reference, 2 * images.double() - 1).sum(dim=1) - limit


def theirs(margin: Callable[..., Any], images: Any, *, name: str, norm: str, epsilon: float, steps: int) -> np.ndarray:
    """The closer images as AutoAttack leaves them.

    It drops examples that are misclassified, which Square here does not: for it no example ever is, by a constant.
    """
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.square import SquareAttack

    kept = {"apgd": 0.0, "square": 1e3}[name]

    def predict(images: torch.Tensor) -> torch.Tensor:
        margins = SHARPNESS * margin(images)
        return torch.stack([torch.full_like(margins, kept), margins], dim=1).float()

    start, labels = as_batch(images), torch.zeros(len(images), dtype=torch.long)
    common = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "device": "cpu"}
    if name == "apgd":
        moved = APGDAttack(predict, n_iter=steps, loss="ce", **common).perturb(start, labels, best_loss=True)
    else:
        attack = SquareAttack(predict, n_queries=steps, **common)
        attack.init_hyperparam(start)
        torch.manual_seed(0)
        moved = attack.attack_single_run(start, labels)[1]
    return moved.detach().permute(0, 2, 3, 1).numpy()


def compare(
    metric: Lpips, network: Variant, triplets: Ranked, *, name: str, norm: str, epsilon: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Margins after the same attack of this library and of AutoAttack, `(n,)` each, both by this library's metric."""
    objective = attacks.ranking(metric, *triplets)
    options = {"norm": norm, "epsilon": epsilon, "steps": steps}
    ours = attacks.ATTACKS[name].function(objective, triplets.closer, key=jax.random.key(0), **options)
    moved = theirs(torch_margin(metric, network, triplets), triplets.closer, name=name, **options)
    slack = 1e-6 * max(1.0, epsilon)
    change = np.abs(moved - triplets.closer).reshape(len(moved), -1)
    length = change.max(axis=1) if norm == "linf" else np.sqrt(np.square(change).sum(axis=1))
    if length.max() > epsilon + slack:
        raise ValueError(f"AutoAttack left the ball of {epsilon}: {length.max()}")
    return np.asarray(ours.after), np.asarray(objective(jnp.asarray(np.clip(moved, 0, 1))))


def kodak(path: Path, count: int) -> Ranked:
    """The first ordinal triplets of the fixed test set."""
    with np.load(path) as file:
        reference, p0, p1, judgment = (file[f"ordinal/{name}"][:count] for name in ("ref", "p0", "p1", "judge"))
    swapped = (judgment > 0.5)[:, None, None, None]
    images = (reference, np.where(swapped, p1, p0), np.where(swapped, p0, p1))
    return Ranked(*((image / 255).astype(np.float32) for image in images))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prints two tables: attacks at equal budgets, and radii of reversal at equal numbers of gradients."""

    triplets: Path = Path("../shared/triplets/kodak.npz")
    weights_dir: Path | None = None
    count: int = 20
    steps: int = 20
    queries: int = 100


def main(config: Config) -> None:
    # On a busy machine PyTorch's threads wait for each other.
    torch.set_num_threads(1)
    metric = rl.load("lpips-alex", weights_dir=config.weights_dir)
    triplets = kodak(config.triplets, config.count)
    rows = []
    for name, steps in (("apgd", config.steps), ("square", config.queries)):
        for norm, epsilon in (("linf", 1 / 255), ("l2", 0.25)):
            network = variant("lpips-alex")
            both = compare(metric, network, triplets, name=name, norm=norm, epsilon=epsilon, steps=steps)
            cells = [cell for margins in both for cell in (f"{(margins > 0).mean():.2f}", f"{margins.mean():.5f}")]
            rows.append((f"{name} {norm}", f"{epsilon:.4g}", str(steps), *cells))
            print(*rows[-1], flush=True)
    print(reports.table(("attack", "radius", "steps", "flips", "margin", "flips, AA", "margin, AA"), rows))
    objective = attacks.ranking(metric, *triplets)
    rows = []
    for norm, largest in (("linf", 8 / 255), ("l2", 2.0)):
        for rounds, steps in ((3, 10), (8, 12)):
            options = {"norm": norm, "steps": steps}
            bisection, _ = bisected(
                lambda radii, key, options=options: attacks.pgd(
                    objective, triplets.closer, key=key, epsilon=radii, **options
                ),
                len(triplets.closer),
                largest=largest,
                rounds=rounds,
                took=operator.attrgetter(norm),
            )
            found = attacks.minimum(objective, triplets.closer, key=jax.random.key(0), norm=norm, steps=rounds * steps)
            medians = (np.median(radius) for radius in (found.radius, bisection))
            rows.append((norm, str(rounds * steps), f"{rounds} x {steps}", *(f"{median:.5f}" for median in medians)))
            print(*rows[-1], flush=True)
    print(reports.table(("norm", "gradients", "bisection", "median, minimum", "median, bisection"), rows))


def as_batch(images: Float[np.ndarray, "n h w 3"]) -> torch.Tensor:
    """Images as PyTorch has them, (n, 3, h, w)."""
    return torch.from_numpy(np.asarray(images, np.float32)).permute(0, 3, 1, 2).contiguous()


if __name__ == "__main__":
    main(tyro.cli(Config))

"""`python -m benchmarks.perceptual_attacks --classifier runs/none`: PPGD and LPA here, beside perceptual-advex's own.

Both attack the same classifier on the same images, within the same bound on the same unweighted LPIPS of AlexNet, and
take turns while they are timed. Theirs no longer moves an image that is fooled by a margin of 1 (PPGD) or within the
bound (LPA); here an attack stops when all are fooled by a margin of 1. An image counts as fooled if it is also within
the bound, to 1 %. With fewer steps here than there, --steps-here, time is compared at more equal strength.
Needs torch and, without its dependencies, perceptual_advex 0.2.6 and typing_extensions.
"""

# perceptual_advex is not among what the project is developed with.
# pyright: reportMissingImports=false

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional

from benchmarks.timing import PAUSE, median, side_by_side, slowdown
from convert.reference import Reference, Variant, rename, variant
from rlpips_jax import attacks, reports
from rlpips_jax.attacks.project_perceptual import perceptual_distance
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.distances.resized import Resized
from rlpips_jax.weights.parameters import to_pytorch
from training.classifier import Classifier, load
from training.classify import FILE, bounding_metric, noise_size
from training.data.classes import read_classes

ROUNDS = 5
"""Of LPA, in both libraries."""
ABSENT = (
    *("torchvision", "torchvision.models", "torchvision.models.utils", "torchvision.datasets"),
    *("torchvision.datasets.vision", "robustness", "robustness.cifar_models", "robustness.cifar_models.resnet"),
    *("robustness.datasets", "robustness.model_utils", "robustness.attacker", "robustness.data_augmentation"),
    *("advex_uar", "advex_uar.common", "advex_uar.common.pyt_common"),
)
"""What the package imports for its data sets and networks, and its perceptual attacks do without."""


def published() -> types.ModuleType:
    """`perceptual_advex.perceptual_attacks`, imported without the packages that the attacks do not use."""

    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            within = sys.modules.get(f"{self.__name__}.{name}")
            return within or ({} if name == "DATASETS" else type(name, (), {}))

    added = [name for name in ABSENT if name not in sys.modules]
    sys.modules.update({name: Empty(name) for name in added})
    try:
        from perceptual_advex import perceptual_attacks
    finally:
        for name in added:
            del sys.modules[name]
    return perceptual_attacks


class TorchClassifier(nn.Module):
    """`ResidualNetwork` in PyTorch, with the parameters of a classifier."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self.tensors = {
            name: {key: torch.from_numpy(np.array(leaf)) for key, leaf in leaves.items()}
            for name, leaves in classifier.parameters.items()
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolutions, normalisations = iter(range(1000)), iter(range(1000))

        def convolve(x: torch.Tensor) -> torch.Tensor:
            kernel = self.tensors[f"Conv_{next(convolutions)}"]["kernel"].permute(3, 2, 0, 1)
            side = kernel.shape[-1]
            return functional.conv2d(x, kernel, stride=2 if side == 6 else 1, padding=(side - 1) // 2)

        def normalised(x: torch.Tensor) -> torch.Tensor:
            part = self.tensors[f"GroupNorm_{next(normalisations)}"]
            return functional.group_norm(x, x.shape[1] // 8, part["scale"], part["bias"], eps=1e-6).relu()

        x = convolve((x - 0.5) / 0.25)
        for stage, width in enumerate(self.network.widths):
            x = functional.max_pool2d(x, 2) if stage else x
            for _ in range(self.network.blocks):
                inner = normalised(x)
                short = x if x.shape[1] == width else convolve(inner)
                x = short + convolve(normalised(convolve(inner)))
        x = normalised(x).mean(dim=(2, 3))
        return x @ self.tensors["Dense_0"]["kernel"] + self.tensors["Dense_0"]["bias"]


class TorchFeatures(nn.Module):
    """The activations that an unweighted LPIPS compares, of images in [0, 1] enlarged to its size."""

    def __init__(self, metric: Resized, network: Variant) -> None:
        super().__init__()
        inner: Lpips = metric.metric
        weights = to_pytorch(inner.parameters, inner.backbone)
        tensors = rename({name: torch.from_numpy(np.array(weight)) for name, weight in weights.items()})
        reference = Reference(network, tensors, scaled=inner.version == "0.1", unweighted=True)
        self.modules_, self.taps = reference.features.float(), reference.taps
        self.shift, self.scale = reference.shift.float(), reference.scale.float()
        self.size = (metric.height, metric.width)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False)
        x = (2 * x - 1 - self.shift) / self.scale
        found = []
        for index, module in enumerate(self.modules_[: self.taps[-1] + 1]):
            x = module(x)
            if index in self.taps:
                found.append(x)
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Contest:
    """What both libraries attack.

    Attributes:
        classifier: of images in [0, 1].
        metric: unweighted; its square root bounds the attacks.
        network: of the metric, in PyTorch.
        images: `(n, h, w, 3)`, in [0, 1].
        labels: `(n,)`.
        bound: on the perceptual distance.
        steps: of PPGD; of LPA in 5 rounds of a fifth.
        steps_here: the same, of this library's attacks.
    """

    classifier: Classifier
    metric: Resized
    network: Variant
    images: Float[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    bound: float
    steps: int
    steps_here: int

    def ours(self, name: str) -> Float[np.ndarray, "n h w 3"]:
        """Images attacked by this library."""
        attack, steps = {
            "ppgd": (attacks.perceptual_pgd, self.steps_here),
            "lpa": (attacks.lagrangian, -(-self.steps_here // ROUNDS)),
        }[name]
        objective = attacks.classification(self.classifier, jnp.asarray(self.labels))
        options: Any = {"metric": self.metric, "bound": self.bound, "steps": steps, "confidence": 1}
        return np.asarray(attack(objective, self.images, key=jax.random.key(0), **options).adversarial)

    def theirs(self, name: str) -> Float[np.ndarray, "n h w 3"]:
        """Images attacked by perceptual-advex."""
        package = published()
        options: Any = {"bound": self.bound, "lpips_model": TorchFeatures(self.metric, self.network)}
        network = TorchClassifier(self.classifier)
        if name == "ppgd":
            attack = package.PerceptualPGDAttack(network, num_iterations=self.steps, **options)
        else:
            steps = -(-self.steps // ROUNDS)
            attack = package.LagrangePerceptualAttack(network, num_iterations=steps, binary_steps=ROUNDS, **options)
        torch.manual_seed(0)
        start = torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()
        moved = attack(start, torch.from_numpy(self.labels).long())
        return moved.detach().clamp(0, 1).permute(0, 2, 3, 1).numpy()

    def judged(self, moved: Float[np.ndarray, "n h w 3"]) -> tuple[float, float, float]:
        """The shares that are fooled within the bound and that are outside, and the mean perceptual distance."""
        features = self.metric.features(self.images)
        distances = np.asarray(perceptual_distance(self.metric, features, self.metric.features(moved)))
        within = distances <= 1.01 * self.bound
        fooled = np.asarray(self.classifier(jnp.asarray(moved))).argmax(axis=1) != self.labels
        return float(np.mean(fooled & within)), float(np.mean(~within)), float(distances.mean())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prints a table of strength and one of time."""

    classifier: Path
    """Folder of `python -m training classifier`."""
    data: str = "cifar10"
    """Labelled images; their part test."""
    weights_dir: Path | None = None
    """Folder to look for weights in first."""
    metric_size: int = 64
    """Height and width to which images are enlarged for the metric."""
    count: int = 50
    """Images that the classifier gets right."""
    steps: int = 40
    """Of each attack."""
    steps_here: int | None = None
    """Of this library's attacks; by default as many."""
    scales: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Factors on the bound, which is the size of noise of 8/255."""
    repeats: int = 5
    """Timed rounds."""


def main(config: Config) -> None:
    """Attacks and times."""
    classifier = load(config.classifier / FILE)
    data = read_classes(config.data, "test").select(slice(0, None, 7))
    logits = np.asarray(jax.jit(classifier)(data.images / np.float32(255)))
    data = data.select(np.flatnonzero(logits.argmax(axis=1) == data.labels)[: config.count])
    metric = bounding_metric("baseline-alex", config.metric_size, weights_dir=config.weights_dir)
    bound = noise_size(metric, data.images, 8 / 255, key=jax.random.key(0))
    rows, contest = [], None
    for scale in config.scales:
        images = data.images / np.float32(255)
        steps = (config.steps, config.steps_here or config.steps)
        contest = Contest(classifier, metric, variant("lpips-alex"), images, data.labels, scale * bound, *steps)
        for name in ("ppgd", "lpa"):
            for library, attack in (("here", contest.ours), ("perceptual-advex", contest.theirs)):
                fooled, outside, mean = contest.judged(attack(name))
                rows.append((name, f"{contest.bound:.3f}", library, f"{fooled:.2f}", f"{outside:.2f}", f"{mean:.3f}"))
                print(*rows[-1], flush=True)
    print(reports.table(("attack", "bound", "library", "fooled within", "outside", "mean distance"), rows))
    if contest is None or not config.repeats:
        return
    for name in ("ppgd", "lpa"):
        calls = {
            "here": lambda name=name: contest.ours(name),
            "perceptual-advex": lambda name=name: contest.theirs(name),
        }
        times = side_by_side(calls, config.repeats, PAUSE)
        ratio = slowdown(times["perceptual-advex"], times["here"])
        print(f"{name}: here {median(times['here']):.2f} s; perceptual-advex takes {ratio} times as long", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.perceptual_attacks"))

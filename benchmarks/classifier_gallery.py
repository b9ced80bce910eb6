"""`python -m benchmarks.classifier_gallery --classifier runs/none --out DIR`: adversarial images at equal success.

For each image and attack the bound is bisected until it is as small as fools the classifier, so that all attacks of a
row succeed, each with as little as it needs. Below each image is what it changed. Bounded by LPIPS and by R-LPIPS, the
same attacks stand side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

import rlpips_jax as rl
from benchmarks.bisection import bisected
from examples.photographs import photographs
from rlpips_jax import attacks, reports
from rlpips_jax.attacks import AttackResult, Objective
from rlpips_jax.attacks.project_perceptual import perceptual_distance
from rlpips_jax.reports import Tile, contact_sheet
from training.classifier import Classifier, load
from training.classify import FILE, bounding_metric
from training.data.classes import ClassImages, read_classes

SIDE = 32
"""Height and width of photographs, as those of CIFAR-10."""
LIGHTER = 4
"""Factor of the changes that are shown, around grey."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Attack a classifier as weakly as fools it, and save the picture."""

    classifier: Path
    """Folder of `python -m training classifier`."""
    data: str | None = None
    """Labelled images, of whose part test those are attacked that the classifier gets right. By default scikit-image's
    photographs, reduced to 32x32, and whatever the classifier says of them."""
    out: Path = Path("gallery.png")
    """File of the picture; a table is printed."""
    metric: str = "baseline-alex"
    """Metric that bounds PPGD and LPA."""
    robust_metric: str = "rlpips-alex"
    """Metric that bounds R-PPGD and R-LPA."""
    metric_size: int = 64
    """Height and width to which images are enlarged for the metrics."""
    weights_dir: Path | None = None
    """Folder to look for weights in first."""
    count: int = 20
    """Most images that are attacked."""
    shown: int = 4
    """Most images in the picture."""
    steps: int = 40
    """Of each attack; of LPA 5 rounds of a fifth."""
    rounds: int = 7
    """Of the bisection."""


Attack = Callable[[Objective, Any, Any, Array], AttackResult]
"""`objective, images, radii, key -> result`."""


def attacks_of(config: Gallery, metrics: Mapping[str, Any]) -> dict[str, tuple[Attack, float]]:
    """The attacks, and a radius that is large for each."""

    def ball(norm: str) -> Attack:
        return lambda objective, images, radii, key: attacks.apgd(
            objective, images, key=key, epsilon=radii, norm=norm, steps=config.steps
        )

    def plain(attack: Callable[..., AttackResult]) -> Attack:
        return lambda objective, images, radii, key: attack(
            objective, images, key=key, epsilon=radii, steps=config.steps
        )

    def perceptual(attack: Callable[..., AttackResult], name: str) -> Attack:
        steps = -(-config.steps // 5) if attack is attacks.lagrangian else config.steps
        return lambda objective, images, radii, key: attack(
            objective, images, key=key, bound=radii, metric=metrics[name], steps=steps
        )

    return {
        "l-inf": (ball("linf"), 32 / 255),
        "l2": (ball("l2"), 4.0),
        "spatial": (plain(attacks.spatial), 4.0),
        "recolor": (plain(attacks.recolor), 0.5),
        "PPGD": (perceptual(attacks.perceptual_pgd, config.metric), 2.0),
        "R-PPGD": (perceptual(attacks.perceptual_pgd, config.robust_metric), 2.0),
        "LPA": (perceptual(attacks.lagrangian, config.metric), 2.0),
        "R-LPA": (perceptual(attacks.lagrangian, config.robust_metric), 2.0),
    }


def main(config: Gallery) -> None:
    """Attacks, prints the sizes and writes the picture."""
    classifier = load(config.classifier / FILE)
    data = attacked(config, classifier)
    images = data.images / np.float32(255)
    objective = attacks.classification(classifier, jnp.asarray(data.labels))
    metrics = {
        name: bounding_metric(name, config.metric_size, weights_dir=config.weights_dir)
        for name in (config.metric, config.robust_metric)
    }
    found: dict[str, Float[np.ndarray, "n h w 3"]] = {}
    sizes: dict[str, list[Float[np.ndarray, " n"]]] = {}
    for name, (attack, largest) in attacks_of(config, metrics).items():
        radii, found[name] = bisected(
            lambda radii, key, attack=attack: attack(objective, images, radii, key),
            len(images),
            largest=largest,
            rounds=config.rounds,
        )
        far = (_distance(metric, images, found[name]) for metric in metrics.values())
        sizes[name] = [*_pixels(found[name] - images), *far]
        print(f"{name}: fooled {np.isfinite(radii).sum()} of {len(radii)}", flush=True)
    rows = [(name, *(f"{np.median(size):.3g}" for size in columns)) for name, columns in sizes.items()]
    print(reports.table(("attack", "l-inf /255", "rms /255", *metrics), rows))
    said = {name: _answers(classifier, pictures) for name, pictures in found.items()}
    tiles = []
    for row in range(min(config.shown, len(images))):
        names = [data.classes[data.labels[row]], *(data.classes[said[name][row]] for name in found)]
        captions = ["photograph", *(f"{name}, rms {sizes[name][1][row]:.2f}" for name in found)]
        pictures = [images[row], *(found[name][row] for name in found)]
        tiles.append(
            [Tile(_bytes(picture), tuple(lines)) for picture, *lines in zip(pictures, captions, names, strict=True)]
        )
        changes = (0.5 + LIGHTER * (picture - images[row]) for picture in pictures)
        tiles.append([Tile(_bytes(change), ()) for change in changes])
    sheet = contact_sheet(
        tiles,
        title="Adversarial images at equal success: each as weak as fools the classifier",
        notes=(
            "Below each attack, the root of the mean squared change in levels of 255, and what the classifier says.",
            f"Below each image, what was changed, {LIGHTER} times as strong, around grey.",
        ),
        size=4 * images.shape[1],
    )
    rl.save_image(config.out, sheet)
    print(config.out)


def attacked(config: Gallery, classifier: Classifier) -> ClassImages:
    """The images that are attacked, all of which the classifier calls what their labels say."""
    if config.data is None:
        resized = [
            Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            for picture in list(photographs(None).values())[: config.count]
        ]
        images = np.stack([np.array(picture) for picture in resized])
        labels = _answers(classifier, images / np.float32(255)).astype(np.int32)
        return ClassImages("photographs", images, labels, classifier.classes)
    data = read_classes(config.data, "test")
    data = data.select(np.linspace(0, len(data) - 1, min(len(data), 3 * config.count)).astype(int))
    right = _answers(classifier, data.images / np.float32(255)) == data.labels
    return data.select(np.flatnonzero(right)[: config.count])


def _answers(classifier: Classifier, images: Float[np.ndarray, "n h w 3"]) -> Int[np.ndarray, " n"]:
    return np.asarray(jax.jit(classifier)(images)).argmax(axis=1)


def _pixels(change: Float[np.ndarray, "n h w 3"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The largest change of a value and the root of the mean squared change, in levels of 255."""
    return 255 * np.abs(change).max(axis=(1, 2, 3)), 255 * np.sqrt(np.square(change).mean(axis=(1, 2, 3)))


def _distance(metric: Any, images: Any, others: Any) -> Float[np.ndarray, " n"]:
    return np.asarray(perceptual_distance(metric, metric.features(images), metric.features(others)))


def _bytes(picture: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main(tyro.cli(Gallery, prog="python -m benchmarks.classifier_gallery"))

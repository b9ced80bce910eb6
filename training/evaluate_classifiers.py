"""Accuracy of classifiers as they are and under attack: l-inf and l2 balls, flows, colours, and perceptual distances.

Only images that a classifier gets right are attacked. Perceptual attacks are made twice, bounded by a published metric
(PPGD, LPA) and by a robust one (R-PPGD, R-LPA). What size is fair is answered in two ways: each bound is as large, by
its own metric, as noise of --epsilon at every number (`noise_size`); and the table has the size in pixels that each
attack used, so that --scales, which multiplies both bounds, gives curves to be compared at equal pixels.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rlpips_jax import reports
from rlpips_jax.attacks import AttackResult, apgd, classification, lagrangian, perceptual_pgd, recolor, spatial
from rlpips_jax.attacks.project_perceptual import perceptual_distance
from rlpips_jax.cli import interrupts
from rlpips_jax.cli.results import Recording, write_whole
from rlpips_jax.distances.resized import Resized
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation.scores import credit_interval
from rlpips_jax.weights.parameters import digest
from training.classifier import Classifier, load
from training.classify import CALIBRATION, FILE, bounding_metric, noise_size
from training.config import radius
from training.data.classes import ClassImages, read_classes

OUTER_STEPS = 5
"""Rounds of LPA."""


@dataclass(frozen=True, kw_only=True)
class EvaluateClassifiers:
    """Measure how often classifiers are right, as images are and under attack.

    Prints a table and writes it, and one JSON file per classifier and attack, to --out. After an interruption the same
    command continues where it stopped.
    """

    classifier: tuple[Path, ...]
    """Folders of `python -m training classifier`, or files that it wrote."""
    data: str = "cifar10"
    """Labelled images, as for training; their part test."""
    limit: int | None = None
    """Only so many images, spread over all."""
    attack: tuple[str, ...] = ()
    """Attacks to make, of ATTACKS; by default all."""
    epsilon: str = "8/255"
    """Radius in l-inf, of recolor too; images in [0, 1]."""
    epsilon_l2: float = 0.5
    """Radius in l2."""
    pixels: float = 1.0
    """Radius of spatial, in pixels."""
    steps: int = 40
    """Steps of each attack; of LPA in each of 5 rounds, a fifth of them."""
    metric: str = "baseline-alex"
    """Metric that bounds PPGD and LPA."""
    robust_metric: str = "rlpips-alex"
    """Metric that bounds R-PPGD and R-LPA."""
    metric_size: int = 64
    """Height and width to which images are enlarged for the metrics."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on both perceptual bounds, 1 among them."""
    weights_dir: Path | None = None
    """Folder to look for weights in first."""
    batch: int = 100
    """Images attacked at once."""
    seed: int = 0
    """Of all random draws."""
    out: Path = Path("classifiers")
    """Folder for the results."""

    def __post_init__(self) -> None:
        radius(self.epsilon, "--epsilon")
        for name in ("steps", "batch", "metric_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise TrainingError(f"--limit must be 1 or more, got {self.limit}")
        if 1 not in self.scales or not all(0 < scale < math.inf for scale in self.scales):
            given = " ".join(f"{scale:g}" for scale in self.scales)
            raise TrainingError(f"--scales must be above 0, and 1 among them, which the union is made of; got {given}")
        if unknown := [name for name in self.attack if name not in ATTACKS]:
            raise TrainingError(f"no attack is called {unknown[0]!r}; there are {', '.join(ATTACKS)}")


@dataclass(frozen=True)
class Bounding:
    """A metric that bounds attacks.

    Attributes:
        metric: of resized images.
        bound: on its square root.
    """

    metric: Resized
    bound: float


@dataclass(frozen=True)
class Threat:
    """An attack on classifiers.

    Attributes:
        make: `classifier, images, labels, key -> results`; each image needs to be fooled by one of them.
        scale: of a perceptual bound.
    """

    make: Callable[[Classifier, Array, Array, Array], Iterable[AttackResult]]
    scale: float = 1.0


def _balls(config: EvaluateClassifiers, norm: str, epsilon: float) -> Threat:
    """`apgd` on the cross-entropy and on the margin."""

    def make(classifier: Classifier, images: Array, labels: Array, key: Array) -> Iterator[AttackResult]:
        for loss in ("cross_entropy", "margin"):
            objective = classification(classifier, labels, loss=loss)
            yield apgd(objective, images, key=key, epsilon=epsilon, norm=norm, steps=config.steps)

    return Threat(make)


def _margin(attack: Callable[..., AttackResult], **options: Any) -> Threat:
    def make(classifier: Classifier, images: Array, labels: Array, key: Array) -> Iterator[AttackResult]:
        yield attack(classification(classifier, labels), images, key=key, **options)

    return Threat(make)


def _perceptual(attack: Callable[..., AttackResult], robust: bool) -> Callable[..., list[Threat]]:
    """An attack within each scale of a perceptual bound."""

    def threats(config: EvaluateClassifiers, boundings: tuple[Bounding, Bounding]) -> list[Threat]:
        bounding = boundings[robust]
        steps = -(-config.steps // OUTER_STEPS) if attack is lagrangian else config.steps
        options = {"metric": bounding.metric, "steps": steps}
        return [
            dataclasses.replace(_margin(attack, bound=scale * bounding.bound, **options), scale=scale)
            for scale in config.scales
        ]

    return threats


ATTACKS: Mapping[str, Callable[[EvaluateClassifiers, tuple[Bounding, Bounding]], list[Threat]]] = {
    "none": lambda config, boundings: [Threat(lambda *_: ())],
    "linf": lambda config, boundings: [_balls(config, "linf", radius(config.epsilon, "--epsilon"))],
    "l2": lambda config, boundings: [_balls(config, "l2", config.epsilon_l2)],
    "spatial": lambda config, boundings: [_margin(spatial, epsilon=config.pixels, steps=config.steps)],
    "recolor": lambda config, boundings: [
        _margin(recolor, epsilon=radius(config.epsilon, "--epsilon"), steps=config.steps)
    ],
    "ppgd": _perceptual(perceptual_pgd, False),
    "lpa": _perceptual(lagrangian, False),
    "r-ppgd": _perceptual(perceptual_pgd, True),
    "r-lpa": _perceptual(lagrangian, True),
}
"""The attacks by name: what they are with these options, and these metrics, the published one and the robust one."""


class Columns(NamedTuple):
    """The outcome of an attack on each image that the classifier gets right.

    Attributes:
        right: whether it still is.
        linf: the largest change of a value; images in [0, 1].
        rms: the root of the mean squared change.
        published: the perceptual distance by --metric.
        robust: by --robust-metric.
    """

    right: Bool[np.ndarray, " n"]
    linf: Float[np.ndarray, " n"]
    rms: Float[np.ndarray, " n"]
    published: Float[np.ndarray, " n"]
    robust: Float[np.ndarray, " n"]


TYPES: dict[str, type[np.generic]] = {name: np.bool_ if name == "right" else np.float32 for name in Columns._fields}


def evaluate_classifiers(config: EvaluateClassifiers) -> str:
    """Attacks the classifiers, and returns the table, which is in `table.txt` of the folder too.

    Raises:
        TrainingError: a classifier or the data cannot be read, or do not fit together, or a classifier is never right.
    """
    from tqdm import tqdm

    data = read_classes(config.data, "test")
    if config.limit is not None and config.limit < len(data):
        data = data.select(np.linspace(0, len(data) - 1, config.limit).astype(int))
    classifiers = {_label(path): load(path / FILE if path.is_dir() else path) for path in config.classifier}
    if len(classifiers) < len(config.classifier):
        raise TrainingError("--classifier: give each classifier a folder of its own name")
    for label, classifier in classifiers.items():
        if classifier.classes != data.classes:
            raise TrainingError(f"{label} knows the classes {classifier.classes}, but the data have {data.classes}")
    attacked = {label: _right(classifier, data, config.batch) for label, classifier in classifiers.items()}
    for label, right in attacked.items():
        if not len(right):
            raise TrainingError(f"{label} is wrong on all {len(data)} images: there is nothing to attack")
    boundings = (_bounding(config, config.metric, data), _bounding(config, config.robust_metric, data))
    names = config.attack or tuple(ATTACKS)
    threats = [(name, threat) for name in names for threat in ATTACKS[name](config, boundings)]
    rows: list[tuple[str, ...]] = []
    with (
        interrupts.deferred(),
        tqdm(total=len(threats) * sum(map(len, attacked.values())), unit="image", disable=None) as bar,
    ):
        for label, classifier in classifiers.items():
            part = data.select(attacked[label])
            safe = np.ones(len(part), bool)
            for name, threat in threats:
                title = name if threat.scale == 1 else f"{name} x {threat.scale:g}"
                bar.set_description(f"{label} {title}")
                recording = _recording(config, data, label, classifier, name=title, boundings=boundings)
                columns = _columns(
                    config,
                    part,
                    classifier=classifier,
                    threat=threat,
                    recording=recording,
                    boundings=boundings,
                    of=len(data),
                    done=bar.update,
                )
                if threat.scale == 1:
                    safe &= columns.right
                rows.append((label, title, *_cells(columns, len(data))))
            rows.append((label, "union", _share(safe, len(data)), *[""] * 4))
    header = ("classifier", "attack", "accuracy", "l-inf /255", "rms /255", config.metric, config.robust_metric)
    text = reports.table(header, rows)
    write_whole(config.out / "table.txt", text + "\n")
    return text


def _columns(
    config: EvaluateClassifiers,
    data: ClassImages,
    *,
    classifier: Classifier,
    threat: Threat,
    recording: Recording,
    boundings: tuple[Bounding, Bounding],
    of: int,
    done: Callable[[int], Any],
) -> Columns:
    """The columns of the images, all of them right, of so many; recorded batch by batch."""
    started = time.monotonic()

    def compute(start: int) -> Iterator[Columns]:
        for begin in range(start, len(data), config.batch):
            # The last images are repeated to fill a batch: one compiled program.
            rows = np.minimum(np.arange(begin, begin + config.batch), len(data) - 1)
            images = jnp.asarray(data.images[rows]) / jnp.float32(255)
            labels = jnp.asarray(data.labels[rows])
            key = jax.random.fold_in(jax.random.key(config.seed), begin)
            adversarial = _worst(classifier, images, labels, threat.make(classifier, images, labels, key))
            found = _measured(classifier, images, adversarial, labels, boundings[0].metric, boundings[1].metric)
            yield Columns(*(np.asarray(column)[: len(data) - begin] for column in found))

    columns = Columns(*recording.collect(len(data), compute, done))
    recording.finish({"accuracy": np.float64(columns.right.sum() / of)}, time.monotonic() - started)
    return columns


def _worst(classifier: Classifier, images: Array, labels: Array, results: Iterable[AttackResult]) -> Array:
    """For each image, the first adversarial one that fools the classifier; otherwise the last.

    Results are taken one by one until all images are fooled.
    """
    chosen, fooled = images, jnp.zeros(len(images), bool)
    for result in results:
        chosen = jnp.where(fooled[:, None, None, None], chosen, result.adversarial)
        fooled = jnp.argmax(classifier(chosen), axis=1) != labels
        if fooled.all():
            break
    return chosen


def _right(classifier: Classifier, data: ClassImages, batch: int) -> Int[np.ndarray, " rows"]:
    """The rows of the images that the classifier gets right."""
    logits = jax.jit(classifier)
    found = [
        np.argmax(logits(data.images[begin : begin + batch] / np.float32(255)), axis=1)
        for begin in range(0, len(data), batch)
    ]
    return np.flatnonzero(np.concatenate(found) == data.labels)


@jax.jit
def _measured(
    classifier: Classifier, images: Array, adversarial: Array, labels: Array, published: Any, robust: Any
) -> tuple[Array, ...]:
    """The fields of `Columns`."""
    change = adversarial - images
    sizes = [
        perceptual_distance(metric, metric.features(images), metric.features(adversarial))
        for metric in (published, robust)
    ]
    return (
        jnp.argmax(classifier(adversarial), axis=1) == labels,
        jnp.max(jnp.abs(change), axis=(1, 2, 3)),
        jnp.sqrt(jnp.mean(change**2, axis=(1, 2, 3))),
        *sizes,
    )


def _recording(
    config: EvaluateClassifiers,
    data: ClassImages,
    label: str,
    classifier: Classifier,
    *,
    name: str,
    boundings: tuple[Bounding, Bounding],
) -> Recording:
    options = {field: getattr(config, field) for field in ("epsilon", "epsilon_l2", "pixels", "steps", "batch", "seed")}
    settings = {
        "data": data.identity,
        "classifier": digest({"classifier": jax.device_get(classifier.parameters)}),
        "attack": name,
        **options,
        "bounds": [[each.metric.signature, round(each.bound, 6)] for each in boundings],
    }
    return Recording(config.out, [label, name], settings, TYPES)


def _bounding(config: EvaluateClassifiers, name: str, data: ClassImages) -> Bounding:
    metric = bounding_metric(name, config.metric_size, weights_dir=config.weights_dir)
    epsilon = radius(config.epsilon, "--epsilon")
    images = data.images[np.linspace(0, len(data) - 1, min(CALIBRATION, len(data))).astype(int)]
    return Bounding(metric, noise_size(metric, images, epsilon, key=jax.random.key(0)))


def _label(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    return folder.resolve().name


def _cells(columns: Columns, of: int) -> Iterator[str]:
    yield _share(columns.right, of)
    for column, scale in zip(columns[1:], (255, 255, 1, 1), strict=True):
        yield f"{scale * column.mean():.3g}"


def _share(right: Bool[np.ndarray, " n"], of: int) -> str:
    """The share that is right, of so many images; the others were wrong without an attack."""
    credits = np.zeros(of)
    credits[: right.sum()] = 1
    interval = credit_interval(credits)
    return f"{credits.mean():.3f} [{interval.low:.3f}, {interval.high:.3f}]"

"""Trains a classifier: naturally, or against attacks within an l-inf ball or a perceptual distance.

    none: min over f of E L(f(x), y)
    pgd:  min over f of E max over |delta| <= epsilon in l-inf of L(f(x + delta), y)          (Madry et al. 2018)
    pat:  min over f of E L(f(x'), y), x' from the fast Lagrangian attack within sqrt(d(x', x)) <= bound, for images
          that f still classifies right                                                      (Laidlaw et al. 2021)

with L the cross-entropy and d a perceptual metric: PAT with LPIPS, R-PAT with R-LPIPS. Images are floats in [0, 1].
"""

import functools
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

import rlpips_jax as rl
from rlpips_jax.attacks import classification, fast_lagrangian, pgd
from rlpips_jax.attacks.objectives import margin
from rlpips_jax.attacks.project_perceptual import perceptual_distance
from rlpips_jax.distances.protocol import EmbeddedMetric
from rlpips_jax.distances.resized import Resized
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation.placement import over_all_devices
from rlpips_jax.ops.automatic_axes import automatic_axes
from rlpips_jax.weights.parameters import digest
from training import devices, loop, run_folder
from training.classifier import Classifier, ResidualNetwork, load, save
from training.config import NOT_DECISIVE, Run, radius
from training.data.classes import ClassImages, read_classes
from training.data.feed import Order, shuffled
from training.stopping import Interrupted, listening
from training.update import Report, State, first_state, updated

FILE = "classifier.safetensors"
PADDING = 4
"""Pixels on each side from which a random crop is cut."""
CALIBRATION = 256
"""Images on which the size of noise is measured."""
ATTACK_STEPS = {"none": 1, "pgd": 7, "pat": 10}
"""Of the attack in a step, by defence."""
EVALUATED = 250
"""Images evaluated at once."""


@dataclass(frozen=True, kw_only=True)
class Classify(Run):
    """Train a classifier of small images, and defend it against attacks if told to."""

    data: str = "cifar10"
    """Labelled images: a folder with train.zip and test.zip or with folders train and test, one archive or folder of
    classes, or tfds:NAME."""
    out: Path = Path("runs/classifier")
    defence: Literal["none", "pgd", "pat"] = "none"
    """Train on images as they are, against PGD in l-inf, or against the fast Lagrangian attack within a perceptual
    distance."""
    bound_metric: str = "baseline-alex"
    """Metric whose square root bounds the attacks of pat. baseline-alex is that of PAT; an R-LPIPS gives R-PAT."""
    bound: float | None = None
    """Largest perceptual distance; by default the mean distance of images changed by --epsilon at every pixel, up or
    down at random."""
    metric_size: int = 64
    """Height and width to which images are enlarged for the metric."""
    epsilon: str = "8/255"
    """Radius of pgd's attack, images in [0, 1]."""
    attack_steps: int | None = None
    """Steps of the attack; by default 7 of pgd, 10 of pat."""
    start: Path | None = None
    """File of a classifier to go on from, whose network is taken too. Adversarial training of a naturally
    trained one takes a few epochs in Jeddi et al. 2020. By default parameters are drawn."""
    widths: tuple[int, ...] = (48, 96, 192)
    """Channels of each stage of the network, where parameters are drawn."""
    blocks: int = 1
    """Blocks of each stage."""
    batch: int = 128
    """Images per step, over all devices."""
    epochs: int = 10
    """Passes over the data; the rate rises over the first fifth, then falls to 0."""
    steps: int | None = None
    """Steps, in place of whole epochs."""
    rate: float = 0.05
    """Highest learning rate of SGD with Nesterov's momentum 0.9."""
    decay: float = 5e-4
    """Decay of the weights."""
    average: float = 0.995
    """Decay of an exponential moving average of the parameters, which is evaluated and written; 0 for none."""
    held_out: int = 1000
    """Training images to evaluate on, which are not learnt from."""
    evaluation_steps: int = 10
    """Steps of evaluation's attack, PGD within --epsilon."""

    def __post_init__(self) -> None:
        self.check_counts(self.settings)
        radius(self.epsilon, "--epsilon")
        for name in ("rate", "decay"):
            if not 0 <= (number := getattr(self, name)) < math.inf:
                raise TrainingError(f"--{name} must be a number, 0 or more, got {number:g}")
        if not 0 <= self.average < 1:
            raise TrainingError(f"--average must be 0 or more and below 1, got {self.average:g}")
        if self.bound is not None and not self.bound > 0:
            raise TrainingError(f"--bound must be above 0, got {self.bound:g}")
        if self.held_out < 1 or (self.steps is None and self.epochs < 1):
            raise TrainingError("--held-out and --epochs must be 1 or more")
        if not self.widths or min(self.widths) < 8 or any(width % 8 for width in self.widths) or self.blocks < 1:
            raise TrainingError(f"--widths must be multiples of 8, and --blocks 1 or more, got {self.widths}")

    @property
    def steps_of_attack(self) -> int:
        """Steps of the attack in a step."""
        return ATTACK_STEPS[self.defence] if self.attack_steps is None else self.attack_steps


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: uint8 `(n, h, w, 3)`.
        labels: `(n,)`.
    """

    images: UInt8[Array, "n h w 3"]
    labels: Int[Array, " n"]


def train_classifier(config: Classify) -> Path:
    """Trains, evaluates, and returns the path of the classifier's file.

    Raises:
        TrainingError: the run cannot be done as it is told, or its loss is not finite.
        SystemExit: 0, after SIGTERM or Ctrl-C, when all is saved.
        LogError: the log cannot be written.
        CheckpointError: a checkpoint cannot be written, or none of those there are is whole.
    """
    devices.join(config)
    path = config.out / FILE
    with listening() as stopping:
        with stopping.loading():
            run_folder.check(config.out, config.document(), NOT_DECISIVE)
            rows = over_all_devices()
            devices.check_batch(config.batch, 1, f"--batch {config.batch}")
            learnt, held_out = _split(read_classes(config.data, "train"), config.held_out)
            per_epoch = len(learnt) // config.batch
            total = config.epochs * per_epoch if config.steps is None else config.steps
            if not per_epoch:
                raise TrainingError(f"{learnt.name} has {len(learnt)} images, fewer than a batch of {config.batch}")
            metric, bound = _bounding(config, learnt)
            first = _first(config, learnt)
            run_folder.claim(config.out, config.document(), NOT_DECISIVE)
        parameters, network = first.parameters, first.network
        optimiser = make_optimiser(config, total)
        take_step = make_step(config, network, optimiser)
        bounding = devices.replicate((metric, jnp.float32(bound)), rows)
        task = loop.Task(
            total=total,
            evaluate_every=config.evaluate_every or per_epoch,
            checkpoint_every=config.checkpoint_every,
            feed=functools.partial(_feed, config, learnt),
            step=lambda state, columns: take_step(
                state, bounding, Batch(*(devices.divide(columns[name], rows) for name in Batch._fields))
            ),
            evaluate=lambda state, number, interrupted: accuracies(
                config, Classifier(state.result, network, learnt.classes), held_out, interrupted=interrupted
            ),
            score=lambda values: values["natural" if config.defence == "none" else "attacked"],
            identity={
                "the number of steps": total,
                "the images it learns from": learnt.identity,
                "the bound": [getattr(metric, "signature", ""), round(bound, 6)],
                "the classifier it starts from": digest(parameters) if config.start else "",
            },
        )
        state = devices.replicate(first_state(parameters, optimiser, average=config.average), rows)
        options: Any = {"keep": config.keep, "export": config.export}
        with loop.finished(task, state, out=config.out, stopping=stopping, **options) as run:
            if jax.process_index() == 0:
                card = {"trained": config.card(), "data": learnt.name, "bound": round(bound, 6)}
                _finish(run, path, Classifier(run.state.result, network, learnt.classes), card)
    return path


def _finish(run: loop.Finished, path: Path, classifier: Classifier, card: dict[str, Any]) -> None:
    """Writes the classifier of a finished run, and prints how it did."""
    scores = run.record("evaluation", run.step)
    held_out = {name: scores.get(name) for name in ("natural", "attacked")}
    save(path, classifier, card | {"steps": run.step, "held out": held_out, "library": rl.__version__})
    print(f"{path}: held-out accuracy {held_out}")


def make_optimiser(config: Classify, total: int) -> optax.GradientTransformation:
    """SGD with Nesterov's momentum and decay of weights; the rate rises and falls linearly over `total` steps."""
    rising = max(1, total // 5)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0, config.rate, rising), optax.linear_schedule(config.rate, 0, max(1, total - rising))],
        [rising],
    )
    return optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.add_decayed_weights(config.decay, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )


def make_step(
    config: Classify, network: ResidualNetwork, optimiser: optax.GradientTransformation
) -> Callable[[State, Any, Batch], tuple[State, Report]]:
    """The jitted step `state, (metric, bound), batch -> state, report`; the memory of its first argument is reused.

    Random draws depend on seed and step alone.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    @automatic_axes()
    def step(state: State, bounding: Any, batch: Batch) -> tuple[State, Report]:
        augmenting, attacking = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step + 1))
        images = augmented(augmenting, batch.images) / jnp.float32(255)
        apply = Classifier(state.trained, network, ())
        shown = _attacked(config, apply, Batch(images, batch.labels), bounding, attacking)

        def loss(parameters: Any) -> tuple[Array, Array]:
            logits = Classifier(parameters, network, ())(shown)
            values = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
            return jnp.mean(values), jnp.mean(jnp.argmax(logits, axis=1) == batch.labels)

        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(state.trained)
        unknown = jnp.full((), jnp.nan)
        means = (value, right, unknown) if config.defence == "none" else (value, unknown, right)
        return updated(state, gradient, optimiser, means=means, average=config.average)

    return step


def augmented(key: Array, images: UInt8[Array, "n h w 3"]) -> UInt8[Array, "n h w 3"]:
    """Each image cropped at random from itself with a border of `PADDING` reflected pixels, and flipped or not."""
    border = (PADDING, PADDING)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), "reflect")
    shifting, flipping = jax.random.split(key)
    corners = jax.random.randint(shifting, (len(images), 2), 0, 2 * PADDING + 1)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    cropped = jax.vmap(cut)(padded, corners)
    flipped = jax.random.bernoulli(flipping, shape=(len(images), 1, 1, 1))
    return jnp.where(flipped, cropped[:, :, ::-1], cropped)


def _attacked(config: Classify, apply: Classifier, batch: Batch, bounding: Any, key: Array) -> Float[Array, "n h w 3"]:
    """The images that a step learns from."""
    images, labels = batch
    if config.defence == "none":
        return images
    if config.defence == "pgd":
        objective = classification(apply, labels, loss="cross_entropy")
        epsilon = radius(config.epsilon, "--epsilon")
        found = pgd(objective, images, key=key, epsilon=epsilon, steps=config.steps_of_attack)
        return jax.lax.stop_gradient(found.adversarial)
    metric, bound = bounding
    found = fast_lagrangian(
        classification(apply, labels), images, key=key, metric=metric, bound=bound, steps=config.steps_of_attack
    )
    right = (margin(apply(images), labels) <= 0)[:, None, None, None]
    return jax.lax.stop_gradient(jnp.where(right, found.adversarial, images))


def accuracies(
    config: Classify,
    classifier: Classifier,
    data: ClassImages,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Accuracy on images as they are ("natural") and under PGD within --epsilon ("attacked").

    Raises:
        Interrupted: somebody wants the run to stop.
    """
    found = []
    for begin in range(0, len(data), EVALUATED):
        if interrupted():
            raise Interrupted
        # The last ones are repeated to fill a batch: one compiled program.
        rows = np.minimum(np.arange(begin, begin + EVALUATED), len(data) - 1)
        objective = classification(classifier, data.labels[rows], loss="margin")
        result = pgd(
            objective,
            data.images[rows],
            key=jax.random.fold_in(jax.random.key(0), begin),
            epsilon=radius(config.epsilon, "--epsilon"),
            steps=config.evaluation_steps,
        )
        right = np.stack([np.asarray(result.before) <= 0, np.asarray(result.after) <= 0])
        found.append(right[:, : len(data) - begin])
    natural, attacked = np.concatenate(found, axis=1).mean(axis=1)
    return {"natural": float(natural), "attacked": float(attacked)}


def noise_size(metric: Any, images: UInt8[np.ndarray, "n h w 3"], epsilon: float, *, key: Array) -> float:
    """The mean perceptual distance, the square root of the metric, of images changed by epsilon at every number.

    Args:
        metric: from `rlpips_jax.load`.
        images: uint8.
        epsilon: added or subtracted at random; images in [0, 1].
        key: of the draws.
    """
    original = jnp.asarray(images) / jnp.float32(255)
    noise = epsilon * jax.random.rademacher(key, original.shape, jnp.float32)
    features = metric.features(original)
    others = metric.features(jnp.clip(original + noise, 0, 1))
    return float(jnp.mean(perceptual_distance(metric, features, others)))


def bounding_metric(name: str, size: int, *, weights_dir: Path | None, precision: str = "highest") -> Resized:
    """A metric, of images resized to a height and width, whose square root bounds attacks.

    Raises:
        TrainingError: the metric is not a squared Euclidean distance.
    """
    metric: Any = rl.load(name, weights_dir=weights_dir, precision=precision)
    if not isinstance(metric, EmbeddedMetric):
        raise TrainingError(f"{name} is not a squared Euclidean distance and cannot bound attacks: give an LPIPS")
    return Resized(metric, size, size)


def _bounding(config: Classify, learnt: ClassImages) -> tuple[Any, float]:
    """The metric that bounds attacks and its bound; None and 0 where there is no such attack.

    Raises:
        TrainingError: the metric cannot bound attacks.
    """
    if config.defence != "pat":
        return None, 0.0
    metric = bounding_metric(
        config.bound_metric, config.metric_size, weights_dir=config.weights_dir, precision="default"
    )
    if config.bound is not None:
        return metric, config.bound
    epsilon = radius(config.epsilon, "--epsilon")
    return metric, noise_size(metric, learnt.images[:CALIBRATION], epsilon, key=jax.random.key(0))


def _first(config: Classify, learnt: ClassImages) -> Classifier:
    """The classifier that training begins with.

    Raises:
        TrainingError: the file to start from is not one, or of other classes.
    """
    if config.start is not None:
        found = load(config.start)
        if found.classes != learnt.classes:
            has, of = (", ".join(classes) for classes in (learnt.classes, found.classes))
            raise TrainingError(f"--start {config.start} is a classifier of {of}; {learnt.name} has {has}")
        return found
    network = ResidualNetwork(len(learnt.classes), config.widths, config.blocks)
    variables = network.init(jax.random.key(config.seed), jnp.zeros((1, *learnt.images.shape[1:])))
    return Classifier(variables["params"], network, learnt.classes)


def _split(data: ClassImages, held_out: int) -> tuple[ClassImages, ClassImages]:
    """The images to learn from, and those to evaluate on, spread over the whole.

    Raises:
        TrainingError: nothing would be left to learn from.
    """
    if held_out >= len(data):
        raise TrainingError(f"--held-out {held_out} leaves nothing to learn from: {data.name} has {len(data)} images")
    chosen = np.linspace(0, len(data) - 1, held_out).astype(int)
    return data.select(np.setdiff1d(np.arange(len(data)), chosen)), data.select(chosen)


def _feed(config: Classify, data: ClassImages, done: int) -> Generator[Mapping[str, np.ndarray], None, None]:
    order = Order(
        batch=config.batch,
        seed=config.seed,
        start=done,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    load = functools.partial(_rows, data)
    return shuffled(len(data), load, order, workers=config.workers, prefetch=config.prefetch)


def _rows(data: ClassImages, indices: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
    return {"images": data.images[indices], "labels": data.labels[indices]}

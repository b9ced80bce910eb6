"""Trains `lpips-tiny`: a compact network that reproduces the distances of LPIPS.

Groups of images, each a patch and several distorted versions of it, are shown to teacher and student. The student,
a network of its own drawn at random with the same form of distance, learns every distance inside a group:

    e(d, t) = huber(log(d + c) - log(t + c)),        c = FLOOR
    loss = mean over pairs of e(d, t) + mean over taps l of e(d_l, t_l) / 2

so that relative errors count alike for faint and for strong distortions. d_l and t_l are the shares of each tap; the
teacher has more taps than the student, and its last ones are summed into one. All random draws come from `seed`.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.core import Scope, init
from jaxtyping import Array, Float, Int, UInt8
from scipy.stats import spearmanr
from tqdm import tqdm

import rlpips_jax as rl
from rlpips_jax.backbones import TINY, Backbone
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation.pairs import make_pairs
from rlpips_jax.evaluation.patches import patches
from rlpips_jax.files.locks import locked
from rlpips_jax.weights import native
from rlpips_jax.weights.parameters import with_heads
from training import procedural, run_folder
from training.devices import say

FLOOR = 1e-3

WHERE = ("out", "workers")
"""Options that do not affect the result."""


@dataclass(frozen=True)
class Distill:
    """Train a compact metric that reproduces the distances of LPIPS."""

    photographs: Path
    """Folder of photographs to cut training patches from."""
    validation: Path
    """Folder of other photographs, on which the student is compared with the teacher."""
    out: Path = Path("runs/lpips-tiny")
    """Folder for checkpoints and the finished lpips-tiny.safetensors; an interrupted run resumes from it."""
    teacher: str = "lpips-alex"
    """Metric to reproduce."""
    weights_dir: Path | None = None
    """Folder to look for the teacher's weights in first."""
    patches: int = 12_000
    """Patches to cut from the photographs."""
    procedural: int = 3_000
    """Procedural images (dead leaves, noise, gratings, strokes) to add."""
    versions: int = 3
    """Distorted versions of each patch."""
    size: int = 64
    """Side of a patch, in pixels."""
    batch: int = 16
    """Groups (a patch and its versions) per step."""
    steps: int = 5_000
    """Training steps."""
    report_every: int = 250
    """Steps between checkpoints, and between reports on held-out images."""
    held_out: int = 1_000
    """Patches of the validation photographs in a report."""
    rate: float = 2e-3
    """Peak learning rate of Adam; it rises over the first 2 % of the steps, then falls to 0 as a cosine."""
    seed: int = 0
    """Seed of all random draws."""
    workers: int | None = None
    """Processes that make the images; None for one per core. The images do not depend on it."""


class State(NamedTuple):
    """What a step changes."""

    parameters: Any
    optimiser: optax.OptState
    step: Int[Array, ""]


Groups = UInt8[np.ndarray, "n members h w 3"]


def draw_student(key: Array, architecture: Backbone = TINY) -> Lpips:
    """A metric with kernels drawn as in He et al. 2015, and heads that weigh all channels alike."""

    def draw(scope: Scope) -> None:
        for name, shape in architecture.shapes.items():
            *path, leaf = name.split(".")
            inner = functools.reduce(lambda scope, step: scope.push(step, reuse=True), path, scope)
            inner.param(leaf, nn.initializers.lecun_normal() if len(shape) == 4 else nn.initializers.zeros, shape)

    _, variables = init(draw)(key)
    # Flax draws kernels with variance 1 / fan-in; after a ReLU, 2 / fan-in keeps the scale of activations.
    kernels = jax.tree.map(lambda leaf: leaf * math.sqrt(2) if leaf.ndim == 4 else leaf, variables["params"])
    heads = tuple(jnp.full(channels, 1 / len(architecture.channels)) for channels in architecture.channels)
    return Lpips({"backbone": kernels, "heads": heads}, "student", architecture, precision="default")


def group_distances(metric: Lpips, groups: UInt8[Array, "n members h w 3"], taps: int) -> Float[Array, "n pairs taps"]:
    """Distance of every pair inside each group, per tap; pairs in the order of `itertools.combinations`.

    A metric with more than `taps` taps has its last ones summed into one.
    """
    features = metric.features(groups)
    first, second = (np.array(index) for index in zip(*itertools.combinations(range(groups.shape[1]), 2), strict=True))
    layers = metric.layers_between(
        tuple(feature[:, first] for feature in features), tuple(feature[:, second] for feature in features)
    )
    return jnp.concatenate([layers[..., : taps - 1], layers[..., taps - 1 :].sum(-1, keepdims=True)], axis=-1)


def make_groups(config: Distill, folder: Path, count: int, made: int, seed: int) -> Groups:
    """Patches of photographs, then procedural images, each with its distorted versions.

    In 5 % of the groups the last version is another group's patch, so that large distances are learnt too.
    """
    rng = np.random.default_rng(seed)
    originals = [patches(folder, count, size=config.size, rng=rng)]
    if made:
        originals.append(procedural.images(made, size=config.size, seed=seed, workers=config.workers))
    pairs = make_pairs(np.concatenate(originals), versions=config.versions, seed=seed, workers=config.workers)
    groups = np.concatenate([pairs.references[:, None], pairs.distorted], axis=1)
    strangers = rng.random(len(groups)) < 0.05
    groups[strangers, -1] = rng.permutation(groups[:, 0])[strangers]
    return groups


def teach(metric: Lpips, groups: Groups, batch: int = 128) -> Float[np.ndarray, "n pairs taps"]:
    """A metric's distances inside each group, a batch at a time."""
    starts = tqdm(range(0, len(groups), batch), desc=metric.name, unit="batch", leave=False, mininterval=5)
    ask = jax.jit(group_distances, static_argnums=2)
    taps = len(TINY.channels)
    return np.concatenate([np.asarray(ask(metric, groups[start : start + batch], taps)) for start in starts])


def loss(
    student: Lpips, groups: UInt8[Array, "n members h w 3"], distances: Float[Array, "n pairs taps"]
) -> Float[Array, ""]:
    """The loss defined at the top of this module; `distances` are the teacher's."""

    def error(d: Float[Array, "..."], t: Float[Array, "..."]) -> Float[Array, ""]:
        return jnp.mean(optax.losses.huber_loss(jnp.log(d + FLOOR), jnp.log(t + FLOOR)))

    found = group_distances(student, groups, distances.shape[-1])
    return error(found.sum(-1), distances.sum(-1)) + 0.5 * error(found, distances)


def make_step(
    student: Lpips, optimiser: optax.GradientTransformation
) -> Callable[[State, Groups, Float[np.ndarray, "n pairs taps"]], tuple[State, Float[Array, ""]]]:
    """A jitted function that takes one step; no loop on the device, in which XLA's CPU gradients are slow."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: State, groups: UInt8[Array, "n members h w 3"], distances: Float[Array, "n pairs taps"]
    ) -> tuple[State, Float[Array, ""]]:
        value, gradient = jax.value_and_grad(
            lambda parameters: loss(replace(student, parameters=parameters), groups, distances)
        )(state.parameters)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.parameters)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        parameters = parameters | {"heads": optax.projections.projection_non_negative(parameters["heads"])}
        return State(parameters, optimiser_state, state.step + 1), value

    return step


def batch_of(count: int, batch: int, seed: int, step: int) -> Int[np.ndarray, " batch"]:
    """Indices of a step's groups; they depend on seed and step alone, so that a resumed run sees the same ones."""
    return np.random.default_rng((seed, step)).integers(count, size=batch)


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Spearman's: 1 where both order the pairs alike."""
    return float(np.asarray(spearmanr(x, y))[0])


def follows(student: Float[np.ndarray, "n pairs taps"], teacher: Float[np.ndarray, "n pairs taps"]) -> dict[str, float]:
    """How well distances follow the teacher's: rank correlation, and the factor between them (median, spread)."""
    student, teacher = student.sum(-1).ravel(), teacher.sum(-1).ravel()
    ratio = np.log((student + 1e-12) / (teacher + 1e-12))
    return {
        "spearman": rank_correlation(student, teacher),
        "factor": float(np.exp(np.median(ratio))),
        "spread": float(np.exp(np.quantile(np.abs(ratio - np.median(ratio)), 0.68))),
    }


def distill(config: Distill) -> Path:
    """Trains, reports, and returns the path of the weight file.

    Raises:
        TrainingError: the folder holds a run of another configuration, or the loss is not finite.
        Locked: another process runs in the folder.
    """
    run_folder.claim(config.out, {name: str(value) for name, value in vars(config).items() if name not in WHERE})
    with locked(config.out / "lock"):
        return _distill(config)


def _distill(config: Distill) -> Path:
    started = time.perf_counter()
    teacher = rl.load(config.teacher, weights_dir=config.weights_dir)
    groups = make_groups(config, config.photographs, config.patches, config.procedural, config.seed)
    distances = teach(teacher, groups)
    held_out = make_groups(config, config.validation, config.held_out, 0, config.seed + 1)
    expected = teach(teacher, held_out)
    say(f"{len(groups)} groups ready after {time.perf_counter() - started:.0f} s on {jax.devices()[0]}")

    student = draw_student(jax.random.key(config.seed))
    schedule = optax.warmup_cosine_decay_schedule(0, config.rate, config.steps // 50, config.steps)
    optimiser = optax.adam(schedule)
    state = State(student.parameters, optimiser.init(student.parameters), jnp.zeros((), jnp.int32))
    take_step = make_step(student, optimiser)
    with ocp.CheckpointManager(
        (config.out / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as manager:
        latest = manager.latest_step()
        if latest is not None:
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
            say(f"resumed at step {latest}")
        for number in tqdm(range(int(state.step), config.steps), unit="step", mininterval=5):
            chosen = batch_of(len(groups), config.batch, config.seed, number)
            state, value = take_step(state, groups[chosen], distances[chosen])
            if not math.isfinite(value):
                raise TrainingError(f"the loss is {float(value)} at step {number}; lower --rate")
            if (number + 1) % config.report_every == 0:
                manager.save(number + 1, args=ocp.args.StandardSave(state))
                report = follows(teach(replace(student, parameters=state.parameters), held_out), expected)
                say(f"step {number + 1}: loss {float(value):.5f}, held out {_numbers(report)}")

    student = replace(student, parameters=state.parameters, precision="highest")
    report = follows(teach(student, held_out), expected)
    path = config.out / "lpips-tiny.safetensors"
    native.write(
        path,
        jax.device_get(student.parameters),
        with_heads(student.backbone),
        metric="lpips-tiny",
        source=f"distilled from {teacher.signature}, seed {config.seed}, {config.steps} steps",
        held_out=_numbers(report),
        licence="Apache-2.0",
    )
    print(f"{path}: held out {_numbers(report)}")
    return path


def _numbers(report: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in report.items())

"""`python -m benchmarks.attacks`: PGD on the ranking of triplets here, beside the same loop in PyTorch.

One image of each triplet is moved by sign steps within an l-inf ball. The others are the loop as R-LPIPS's authors
published it, on the `lpips` package, and a PyTorch loop that saves what this library saves; besides, JAX without the
library's own convolutions and pooling. All take the same weights and images, in turns. Before anything is timed, their
objectives, gradients and first steps are compared.
"""

# PyTorch and the lpips package are not among what the project is developed with.
# pyright: reportMissingImports=false

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

import rlpips_jax as rl
from benchmarks import plain_autodiff
from benchmarks.contestants import Absent, Setting, load_ours, lpips_module
from benchmarks.images import Size, images
from benchmarks.report import Table, busy, machine, on_gpu, record, seconds, versions
from benchmarks.timing import PAUSE, Times, alone, median, side_by_side, slowdown
from rlpips_jax.distances.lpips import Lpips

OURS, PLAIN, ANEW = "rlpips-jax", "plain autodiff", "plain autodiff, nothing cached"
PUBLISHED, TRAINING, CACHED = "published loop", "published loop with dropout", "PyTorch, still images cached"
COMPILED = "PyTorch, still images cached, compiled"

EPSILON = 8 / 255
"""Radius of the ball in units of [-1, 1], as published."""

PUBLISHED_STEP = 1e4
"""So far that every step ends in a corner of the ball."""

CHECKED_STEPS = 3

MARGIN = 0.95
"""Images are brought into [-MARGIN, MARGIN], as the published loop does not keep them in [-1, 1] and ours does."""

OBJECTIVE_LIMIT, GRADIENT_LIMIT, REACHED_LIMIT = 1e-4, 1e-3, 1e-2
"""Largest differences that count as the same: of the objectives relative to the largest, of the gradients in Euclidean
norm, and of the gain of the objective after `CHECKED_STEPS`. A sign turns what rounding does to a slope near 0 into a
whole step, hence the last."""


@dataclass(frozen=True)
class Attacks:
    """Measure PGD here beside the published R-LPIPS loop and a faster one in PyTorch."""

    steps: int = 50
    """PGD steps of an attack."""
    batch: int = 50
    """TripletImages attacked at once."""
    size: int = 64
    """Height and width of the images."""
    repeats: int = 5
    """Timed rounds."""
    network: Literal["alex", "vgg", "squeeze"] = "alex"
    """Backbone of LPIPS."""
    plain: bool = True
    """Whether plain JAX is measured too."""
    shared: Path = Path("../shared")
    """Folder of the reference data: weights, and images/kodak."""
    weights_dir: Path | None = None
    """Folder with the library's weights, if they are not in a usual place."""
    out: Path | None = None
    """File for the raw times, as JSON, with all that is needed to repeat the measurement."""


class TripletImages(NamedTuple):
    """References, and the closer and the farther image of each, (n, h, w, 3) in [-1, 1]."""

    reference: Any
    closer: Any
    farther: Any


class Plan(NamedTuple):
    """How an attack goes.

    Attributes:
        steps: how many.
        step_size: of each, along the sign of the gradient.
        random_start: whether it starts at a random point of the ball, else at the image.
        drawn_head: whether the published loop ascends the loss of a ranking head drawn at each step, as its authors
            have it, else the objective of the others.
    """

    steps: int
    step_size: float
    random_start: bool = False
    drawn_head: bool = False


class Contestant(NamedTuple):
    """A way to attack.

    Attributes:
        attack: attacked images of a plan; returns when they are there.
        objective: d(reference, closer) - d(reference, farther) of each triplet, (n,), and the gradient of its sum by
            the closer images, (n, h, w, 3).
        numbers: what `attack` gives, as (n, h, w, 3).
    """

    attack: Callable[[Plan], Any]
    objective: Callable[[], tuple[np.ndarray, np.ndarray]]
    numbers: Callable[[Any], np.ndarray] = np.asarray


def triplets(shared: Path, size: Size) -> TripletImages:
    """Crops of photographs, and copies with noise of which the farther have more."""
    reference, closer = images(shared, size)
    farther = reference + np.random.default_rng(1).normal(0, 0.2, reference.shape).astype(np.float32)
    return TripletImages(*(MARGIN * np.clip(batch, -1, 1) for batch in (reference, closer, farther)))


def ours(setting: Setting, batch: TripletImages) -> Contestant:
    """This library."""

    def make(metric: Lpips, batch: TripletImages) -> Any:
        return rl.attacks.ranking(metric, *batch, value_range=(-1, 1))

    return of_jax(make, load_ours(setting), batch)


def plain(setting: Setting, batch: TripletImages, *, cached: bool = True) -> Contestant:
    """The library's loop around the formula in JAX, without the library's convolutions and pooling."""

    def make(metric: Lpips, batch: TripletImages) -> Any:
        function = of_features if cached else of_images
        still = plain_autodiff.features(metric, batch.reference) if cached else batch.reference
        return jax.tree_util.Partial(function, metric, still, plain_autodiff.distance(metric, *batch[::2]))

    return of_jax(make, load_ours(setting), batch)


def of_features(metric: Lpips, reference: Any, other: Array, closer: Array) -> Float[Array, " n"]:
    """The objective where the references' features are at hand."""
    return plain_autodiff.between(metric, reference, plain_autodiff.features(metric, closer)) - other


def of_images(metric: Lpips, reference: Array, other: Array, closer: Array) -> Float[Array, " n"]:
    """The objective where they are not."""
    return plain_autodiff.distance(metric, reference, closer) - other


def of_jax(make: Callable[[Lpips, TripletImages], Any], metric: Lpips, batch: TripletImages) -> Contestant:
    """A contestant from what makes the objective; making it belongs to the attack."""
    metric, batch = jax.device_put(metric), jax.device_put(batch)
    key = jax.random.key(0)

    @functools.partial(jax.jit, static_argnums=2)
    def attack(metric: Lpips, batch: TripletImages, plan: Plan) -> Array:
        return rl.attacks.pgd(
            make(metric, batch),
            batch.closer,
            key=key,
            epsilon=EPSILON,
            steps=plan.steps,
            step_size=plan.step_size,
            random_start=plan.random_start,
            value_range=(-1, 1),
        ).adversarial

    @jax.jit
    def value_and_gradient(metric: Lpips, batch: TripletImages) -> tuple[Array, Array]:
        def total(closer: Array) -> tuple[Array, Array]:
            values = make(metric, batch)(closer)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(batch.closer)
        return values, gradient

    def objective() -> tuple[np.ndarray, np.ndarray]:
        values, gradient = value_and_gradient(metric, batch)
        return np.asarray(values), np.asarray(gradient)

    return Contestant(lambda plan: jax.block_until_ready(attack(metric, batch, plan)), objective)


def published_attack(
    distance: Callable[[Any, Any], Any],
    ranking_loss: Callable[[], Callable[[Any, Any, Any], Any]],
    batch: TripletImages,
    judgment: Any,
    plan: Plan,
) -> Any:
    """The attack on the closer image as R-LPIPS's training and evaluation do it (its lpips/trainer.py), l-inf.

    Each step takes four images through the network, the reference twice, and differentiates by all of them and by
    whatever parameters ask for it: gradients of the still images and of the heads are accumulated and never used.
    The ranking head is drawn anew at each step.

    Args:
        distance: two batches of images -> (n, 1, 1, 1).
        ranking_loss: makes a loss of two distances and a judgment in [-1, 1].
        batch: tensors (n, 3, h, w).
        judgment: (n, 1, 1, 1), the share of people who found the second image closer.
        plan: without a random start.
    """
    import torch

    reference, closer, farther = (images.detach().requires_grad_() for images in batch)
    delta: Any = torch.zeros_like(closer, requires_grad=True)
    for _ in range(plan.steps):
        moved = distance(reference, closer + delta)
        still = distance(reference, farther)
        ranking_loss()(moved, still, 2 * judgment - 1).backward()
        with torch.no_grad():
            delta.copy_((delta + plan.step_size * delta.grad.sign()).clamp(-EPSILON, EPSILON))
        delta.grad.zero_()
    return (closer + delta).detach()


def cached_attack(
    features: Callable[[Any], Any], between: Callable[[Any, Any], Any], batch: TripletImages, plan: Plan
) -> Any:
    """Sign steps that differentiate by the moving images alone; features of still images are computed once.

    Args:
        features: images -> what `between` compares.
        between: two batches of features -> distances.
        batch: tensors (n, 3, h, w).
        plan: how to step.
    """
    import torch

    reference, closer, farther = batch
    with torch.no_grad():
        still = features(reference)
        other = between(still, features(farther))
    moving = closer
    if plan.random_start:
        moving = (closer + torch.empty_like(closer).uniform_(-EPSILON, EPSILON)).clamp(-1, 1)
    for _ in range(plan.steps):
        moving = moving.detach().requires_grad_()
        (slope,) = torch.autograd.grad((between(still, features(moving)) - other).sum(), moving)
        with torch.no_grad():
            moving = moving + plan.step_size * slope.sign()
            moving = torch.clamp(moving, closer - EPSILON, closer + EPSILON).clamp(-1, 1)
    return moving.detach()


class Pytorch:
    """The `lpips` package with its weights and the triplets, on the device."""

    def __init__(self, setting: Setting, batch: TripletImages) -> None:
        self.module = lpips_module(setting)
        import torch  # Only now, as it may be absent.

        self.device = self.module.scaling_layer.shift.device
        # float32 everywhere, as here.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.batch = TripletImages(
            *(torch.from_numpy(np.moveaxis(images, -1, 1).copy()).to(self.device) for images in batch)
        )
        self.judgment = torch.zeros(len(batch.reference), 1, 1, 1, device=self.device)

    def finish(self, result: Any) -> Any:
        """The result, when it is there."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def objective(self) -> tuple[np.ndarray, np.ndarray]:
        """As `Contestant` says, by the package alone, without dropout."""
        import torch

        self.module.eval()
        closer = self.batch.closer.detach().requires_grad_()
        values = (
            self.module(self.batch.reference, closer) - self.module(self.batch.reference, self.batch.farther)
        ).reshape(-1)
        (slope,) = torch.autograd.grad(values.sum(), closer)
        return values.detach().cpu().numpy(), numbers(slope)

    def published(self, *, dropout: bool) -> Contestant:
        """The published loop: training leaves dropout before each head on, evaluation does not."""
        import lpips

        def ranking_loss() -> Any:
            return lpips.BCERankingLoss().to(self.device)  # pyright: ignore[reportAttributeAccessIssue]

        def attack(plan: Plan) -> Any:
            loss = ranking_loss if plan.drawn_head else lambda: difference
            self.module.train(dropout)
            self.module.zero_grad()
            return self.finish(published_attack(self.module, loss, self.batch, self.judgment, plan))

        return Contestant(attack, self.objective, numbers)

    def cached(self, *, compiled: bool) -> Contestant:
        """The loop that saves what can be saved."""
        import lpips
        import torch

        layout = torch.channels_last if compiled else torch.contiguous_format
        module = self.module.eval().requires_grad_(False)
        module.to(memory_format=layout)
        batch = TripletImages(*(images.contiguous(memory_format=layout) for images in self.batch))

        def features(images: Any) -> list[Any]:
            taps = module.net(module.scaling_layer(images))
            return [lpips.normalize_tensor(tap) for tap in taps]  # pyright: ignore[reportAttributeAccessIssue]

        def between(features: list[Any], others: list[Any]) -> Any:
            layers = zip(features, others, module.lins, strict=True)
            return sum(head((f - g) ** 2).mean((1, 2, 3)) for f, g, head in layers)

        if compiled:
            features, between = torch.compile(features, dynamic=False), torch.compile(between, dynamic=False)

        def attack(plan: Plan) -> Any:
            return self.finish(cached_attack(features, between, batch, plan))

        return Contestant(attack, self.objective, numbers)


def difference(moved: Any, still: Any, judgment: Any) -> Any:
    """The objective itself in place of the published ranking loss."""
    return (moved - still).sum()


def numbers(images: Any) -> np.ndarray:
    """Channels last, on the host."""
    return np.moveaxis(images.detach().float().cpu().numpy(), 1, -1)


MAKERS: dict[str, Callable[[Setting, TripletImages], Contestant]] = {
    OURS: ours,
    PLAIN: plain,
    ANEW: functools.partial(plain, cached=False),
    PUBLISHED: lambda setting, batch: Pytorch(setting, batch).published(dropout=False),
    TRAINING: lambda setting, batch: Pytorch(setting, batch).published(dropout=True),
    CACHED: lambda setting, batch: Pytorch(setting, batch).cached(compiled=False),
    COMPILED: lambda setting, batch: Pytorch(setting, batch).cached(compiled=True),
}
"""Every contestant; the first is what the others are compared with."""


def gather(setting: Setting, batch: TripletImages, absent: dict[str, str], *, plain_too: bool) -> dict[str, Contestant]:
    """The contestants that can take part; why the others cannot goes into `absent`."""
    left_out = set() if on_gpu() else {COMPILED}
    if not plain_too:
        left_out |= {PLAIN, ANEW}
    found = {}
    for name, make in MAKERS.items():
        if name in left_out:
            continue
        try:
            found[name] = make(setting, batch)
        except Absent as reason:
            absent[name] = str(reason)
    return found


class Check(NamedTuple):
    """How far a contestant is from this library; None where dropout leaves nothing to compare.

    Attributes:
        objective: largest difference, relative to the largest objective.
        gradient: Euclidean norm of the difference, relative.
        reached: difference of what `CHECKED_STEPS` small steps from the images gain on average, relative.
        alike: share of values of the attacked images that are the same within 1e-6.
    """

    objective: float
    gradient: float
    reached: float | None
    alike: float | None

    def __str__(self) -> str:
        attacked = "-" if self.reached is None else f"{self.reached:.1e} ({self.alike:.2%} of values alike)"
        return f"{self.objective:.1e}, {self.gradient:.1e}, {attacked}"

    @property
    def passed(self) -> bool:
        """Whether both attack the same, as far as it was compared."""
        reached = self.reached is None or self.reached <= REACHED_LIMIT
        return self.objective <= OBJECTIVE_LIMIT and self.gradient <= GRADIENT_LIMIT and reached


def compare(contestants: Mapping[str, Contestant], score: Callable[[np.ndarray], np.ndarray]) -> dict[str, Check]:
    """Compares everybody with the first.

    Args:
        contestants: by name.
        score: objective of attacked images, one for all.

    Raises:
        ArithmeticError: somebody attacks something else.
    """
    plan = Plan(CHECKED_STEPS, EPSILON / 4)
    checks: dict[str, Check] = {}
    expected = None
    for name, contestant in contestants.items():
        values, gradient = contestant.objective()
        end = contestant.numbers(contestant.attack(plan))
        if expected is None:
            expected = values, gradient, end
        gain, base = (float(np.mean(score(images) - expected[0])) for images in (end, expected[2]))
        compared = name != TRAINING
        checks[name] = check = Check(
            float(np.abs(values - expected[0]).max() / np.abs(expected[0]).max()),
            float(np.linalg.norm(gradient - expected[1]) / np.linalg.norm(expected[1])),
            abs(gain - base) / base if compared else None,
            float(np.mean(np.abs(end - expected[2]) <= 1e-6)) if compared else None,
        )
        if not check.passed:
            raise ArithmeticError(f"{name} attacks something else than {next(iter(contestants))}: {check}")
    return checks


def timed_plan(name: str, steps: int) -> Plan:
    """How a contestant attacks while it is timed: as it would be used."""
    if name in (PUBLISHED, TRAINING):
        return Plan(steps, PUBLISHED_STEP, drawn_head=True)
    return Plan(steps, 2.5 * EPSILON / steps, random_start=True)


def scorer(setting: Setting, batch: TripletImages) -> Callable[[np.ndarray], np.ndarray]:
    """The objective of any attacked images, as this library has it."""

    @jax.jit
    def objective(metric: Lpips, batch: TripletImages, images: Array) -> Array:
        return rl.attacks.ranking(metric, *batch, value_range=(-1, 1))(images)

    metric = jax.device_put(load_ours(setting))
    return lambda images: np.asarray(objective(metric, batch, jnp.asarray(images)))


def measure(config: Attacks, absent: dict[str, str]) -> dict[str, Any]:
    """Checks, times, and what the timed attacks reach."""
    weights_dir = None if config.weights_dir is None else str(config.weights_dir.absolute())
    setting = Setting(config.network, str(config.shared.absolute()), weights_dir, prepared="")
    batch = triplets(config.shared, Size(config.batch, config.size))
    contestants = gather(setting, batch, absent, plain_too=config.plain)
    score = scorer(setting, batch)
    checks = compare(contestants, score)
    ends: dict[str, Any] = {}

    def attack(name: str, plan: Plan) -> None:
        ends[name] = contestants[name].attack(plan)

    plans = {name: timed_plan(name, config.steps) for name in contestants}
    times = side_by_side(
        {name: functools.partial(attack, name, plan) for name, plan in plans.items()}, config.repeats, PAUSE
    )
    reached = {name: float(np.mean(score(contestants[name].numbers(end)))) for name, end in ends.items()}
    return {
        "times": times,
        "checks": {name: check._asdict() for name, check in checks.items()},
        "plans": {name: plan._asdict() for name, plan in plans.items()},
        "reached": reached,
        "untouched": float(np.mean(score(batch.closer))),
        "threads of PyTorch": threads(),
    }


def threads() -> int | None:
    """How many PyTorch computes with; None where it has no part."""
    if sys.modules.get("torch") is None:
        return None
    import torch

    return torch.get_num_threads()


def table(config: Attacks, measured: Mapping[str, Any]) -> Table:
    """What was measured, a row for each contestant."""
    times: Times = measured["times"]
    rows = []
    for name, taken in times.items():
        check = Check(**measured["checks"][name])
        rate = f"{config.steps / median(taken):.3g}"
        ratio = "" if name == OURS else str(slowdown(taken, times[OURS]))
        rows.append([name, rate, seconds(median(taken)), ratio, str(check), f"{measured['reached'][name]:.4f}"])
    header = ["", "steps a second", "an attack", f"x {OURS}", "differences", "reached"]
    return Table(
        f"{config.steps} PGD steps on {config.network}, {Size(config.batch, config.size)}, one of each triplet moved "
        f"within {EPSILON:.4f} of itself in l-inf. Differences from {OURS}: of the objective, of its gradient, of what "
        f"{CHECKED_STEPS} steps gain. Reached: mean of d(reference, closer) - d(reference, farther), "
        f"{measured['untouched']:.4f} before",
        header,
        rows,
    )


def document(config: Attacks, measured: Mapping[str, Any], absent: Mapping[str, str], others: float) -> str:
    """Everything as Markdown."""
    here = machine()
    lines = [
        f"{here['processor']}, {here['cores']} cores, {', '.join(here['devices'])}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + f". {config.repeats} rounds in turns: medians, and `x` how many times as long as {OURS} takes, median "
        "(quartiles) over the rounds. float32, convolutions at full precision; compilation is not counted.\n",
        *busy({"the attacks": others}),
        str(table(config, measured)),
    ]
    if absent:
        lines += ["Not measured:\n", *(f"- {what}: {reason}" for what, reason in absent.items())]
    return "\n".join(lines)


def main(config: Attacks) -> None:
    """Measures, prints and writes."""
    for name in ("steps", "batch", "size", "repeats"):
        if (number := getattr(config, name)) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {number}")
    # Or JAX takes most of a GPU before PyTorch gets any of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    absent: dict[str, str] = {}
    measured, others = alone(lambda: measure(config, absent))
    print(document(config, measured, absent, others))
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        results = {**record(config), "absent": absent, "processors busy with others": others, **measured}
        config.out.write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Attacks, prog="python -m benchmarks.attacks"))

"""`python -m benchmarks.training`: a step of adversarial training here, beside the published one in PyTorch.

A step attacks the closer image of each triplet, differentiates the ranking loss of the attacked triplets by heads and
ranking head, and takes a step of Adam. The other is the step as R-LPIPS's authors published it, on the `lpips` package.
All take the same weights, images and judgments, in turns. Before anything is timed, one step without attack and dropout
is compared: its loss, and the heads and ranking head that it leaves.

Besides, each in processes of their own: time and memory of a step here by the size of its batch, and whether memory
grows while steps go on.
"""

# PyTorch and the lpips package are not among what the project is developed with.
# pyright: reportMissingImports=false

import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
import tyro

from benchmarks.attacks import PUBLISHED_STEP, Plan, Pytorch, TripletImages, published_attack, threads, triplets
from benchmarks.contestants import Absent, Setting, load_ours
from benchmarks.images import Size
from benchmarks.process import device_peak, forget_peak, resident
from benchmarks.report import Table, busy, machine, on_gpu, record, relative_difference, seconds, versions
from benchmarks.timing import PAUSE, Times, alone, median, side_by_side, slowdown
from rlpips_jax.distances.lpips import Lpips
from training.config import Lin
from training.step import JUDGED, Batch, Trained, first_state, make_optimiser, make_step

OURS, LIKE, PUBLISHED = "rlpips-jax", "rlpips-jax, published protocol", "published step"

RATE, B1 = 1e-4, 0.5
"""Of Adam, as published; all take these, so that what they leave can be compared."""

LIMIT = 1e-5
"""Largest difference that counts as the same: of the loss, relative, and of any weight, which a step moves by up to
`RATE`."""

VOTES = (0.0, 0.2, 0.4)
"""Judgments. The first image is always the closer one: the published attack moves it whoever is closer."""

LASTING_BATCH, LASTING_SIZE, LASTING_ATTACK = 4, 32, 2
"""Triplets, their side and the steps of their attack where memory is watched over many steps."""

READINGS = 10
"""How often it is read."""

Part = Literal["step", "batches", "lasting"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Steps:
    """Measure a step of adversarial training here, beside the published one in PyTorch."""

    parts: tuple[Part, ...] = ("step", "batches")
    """What to measure: a step beside the published one, steps by the size of their batch, memory while steps go on."""
    steps: int = 50
    """PGD steps of the attack inside a step."""
    batch: int = 50
    """Triplets per step."""
    size: int = 64
    """Height and width of the images."""
    repeats: int = 5
    """Timed rounds."""
    batches: tuple[int, ...] = (10, 25, 50, 100, 200)
    """Sizes of a batch, for the part of that name."""
    lasting: int = 1000
    """Steps over which memory is watched."""
    network: Literal["alex", "vgg", "squeeze"] = "alex"
    """Backbone of LPIPS."""
    tf32: bool = False
    """Whether a GPU may round the operands of convolutions, as both do by default when they train."""
    shared: Path = Path("../shared")
    """Folder of the reference data: weights, and images/kodak."""
    weights_dir: Path | None = None
    """Folder with the library's weights, if they are not in a usual place."""
    out: Path | None = None
    """File for the raw numbers, as JSON, with all that is needed to repeat the measurement."""

    @property
    def setting(self) -> Setting:
        """What contestants are made for."""
        weights_dir = None if self.weights_dir is None else str(self.weights_dir.absolute())
        mode = "tf32" if self.tf32 else "float32"
        return Setting(self.network, str(self.shared.absolute()), weights_dir, prepared="", mode=mode)


class Updated(NamedTuple):
    """What a step finds and leaves.

    Attributes:
        loss: before its update.
        weights: of each head `(c,)`, then kernel `(inputs, outputs)` and bias of each layer of the ranking head.
    """

    loss: float
    weights: list[np.ndarray]


class Contestant(NamedTuple):
    """A way to train.

    Attributes:
        step: one more step; gives its loss, and returns when all is there.
        natural: the first step without attack and dropout, from the same weights in float32; changes nothing.
    """

    step: Callable[[], float]
    natural: Callable[[], Updated]


def judged(shared: Path, size: Size) -> Batch:
    """Triplets as training gets them: bytes, and the share of people who found the second image closer."""
    bytes_ = (np.round((images + 1) * 127.5).astype(np.uint8) for images in triplets(shared, size))
    return Batch(*bytes_, np.random.default_rng(2).choice(VOTES, size.count).astype(np.float32))  # pyright: ignore


def recipe(protocol: Literal["corrected", "published"], steps: int) -> Lin:
    """What is trained: heads and ranking head, on attacked triplets alone. Dropout is the protocol's."""
    return Lin(
        protocol=protocol,
        initial_heads="metric",
        loss="head",
        epsilon="8/255",
        attack_steps=steps,
        natural_weight=0.0,
        rate=RATE,
        b1=B1,
    )


class Ours:
    """This library's training step and its state."""

    def __init__(self, metric: Lpips, batch: Batch, config: Lin) -> None:
        self.config, self.metric, self.groups = config, jax.device_put(metric), self.place(batch)
        self.optimiser = make_optimiser(config, lambda step: 1.0)
        self.advance = make_step(config, self.optimiser)
        self.start = first_state(config, self.metric, self.optimiser, batch.reference)
        # A step gives the memory of its state away.
        self.state = jax.tree.map(jax.numpy.array, self.start)

    @staticmethod
    def place(batch: Batch) -> dict[str, Batch]:
        """Triplets where a step finds them."""
        return jax.device_put({JUDGED: batch})

    def step(self) -> float:
        """As `Contestant` says."""
        self.state, report = jax.block_until_ready(self.advance(self.state, self.metric, self.groups))
        return float(report.loss)

    def natural(self) -> Updated:
        """As `Contestant` says."""
        config = dataclasses.replace(self.config, attack="none", natural_weight=1.0, dropout=0.0)
        metric = dataclasses.replace(self.metric, precision="highest")
        state = jax.tree.map(jax.numpy.array, self.start)
        state, report = make_step(config, self.optimiser)(state, metric, self.groups)
        return Updated(float(report.loss), weights(state.trained))


def weights(trained: Trained) -> list[np.ndarray]:
    """As `Updated` has them; copies."""
    layers = [layer[kind] for _, layer in sorted(trained["ranking"].items()) for kind in ("kernel", "bias")]
    return [np.array(leaf) for leaf in (*trained["heads"], *layers)]


def published_step(
    distance: Callable[[Any, Any], Any],
    heads: Sequence[Any],
    ranking: Callable[[Any, Any, Any], Any],
    ranking_loss: Callable[[], Callable[[Any, Any, Any], Any]],
    optimiser: Any,
    batch: TripletImages,
    judgment: Any,
    plan: Plan,
) -> Any:
    """A training step as R-LPIPS's authors do it (their lpips/trainer.py), with the attack on the closer image.

    The gradient reaches the images too, as everywhere there, and how often the metric agrees is read at each step.

    Args:
        distance: two batches of images -> (n, 1, 1, 1).
        heads: parameters of `distance` that are kept at 0 or above.
        ranking: the ranking head's loss, of two distances and a judgment in [-1, 1].
        ranking_loss: makes such losses anew, for the attack.
        optimiser: of the parameters that are trained.
        batch: tensors (n, 3, h, w).
        judgment: (n, 1, 1, 1), the share of people who found the second image closer.
        plan: of the attack.
    """
    import torch

    attacked = batch._replace(closer=published_attack(distance, ranking_loss, batch, judgment, plan))
    reference, closer, farther = (images.detach().requires_grad_() for images in attacked)
    d0, d1 = distance(reference, closer), distance(reference, farther)
    (d1 < d0).cpu().numpy()
    loss = ranking(d0, d1, 2 * judgment - 1)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        for head in heads:
            head.clamp_(min=0)
    return loss.detach()


class Published:
    """The published step on a module in PyTorch, and its state.

    Args:
        pytorch: module, triplets and judgments on the device.
        ranking_loss: makes ranking losses on the device, with heads drawn at random.
        start: weights of the ranking head to start from, as `Updated` has them.
        steps: of the attack.
        tf32: whether operands of convolutions may be rounded.
    """

    def __init__(
        self, pytorch: Any, ranking_loss: Callable[[], Any], start: Sequence[np.ndarray], *, steps: int, tf32: bool
    ) -> None:
        self.pytorch, self.ranking_loss, self.tf32 = pytorch, ranking_loss, tf32
        self.plan = Plan(steps, PUBLISHED_STEP, drawn_head=True)
        self.module, self.ranking = pytorch.module, ranking_loss()
        import torch

        layers = convolutions(self.ranking)
        with torch.no_grad():
            for layer, kernel, bias in zip(layers, start[::2], start[1::2], strict=True):
                layer.weight.copy_(torch.from_numpy(kernel.T[:, :, None, None].copy()))
                layer.bias.copy_(torch.from_numpy(bias))
        self.first = copy.deepcopy((self.module, self.ranking))
        self.optimiser = adam(self.module, self.ranking)

    def advance(self, module: Any, ranking: Any, optimiser: Any, plan: Plan) -> float:
        """A step; returns when it is done."""
        heads = [head.weight for head in convolutions(module.lins)]
        batch, judgment = self.pytorch.batch, self.pytorch.judgment
        loss = published_step(module, heads, ranking, self.ranking_loss, optimiser, batch, judgment, plan)
        return float(self.pytorch.finish(loss))

    def step(self) -> float:
        """As `Contestant` says."""
        allow_tf32(self.tf32)
        self.module.train()
        return self.advance(self.module, self.ranking, self.optimiser, self.plan)

    def natural(self) -> Updated:
        """As `Contestant` says."""
        allow_tf32(False)
        module, ranking = copy.deepcopy(self.first)
        loss = self.advance(module.eval(), ranking, adam(module, ranking), self.plan._replace(steps=0))
        left = [head.weight.reshape(-1) for head in convolutions(module.lins)]
        for layer in convolutions(ranking):
            left += [layer.weight[:, :, 0, 0].T, layer.bias]
        return Updated(loss, [tensor.detach().cpu().numpy() for tensor in left])


def convolutions(module: Any) -> list[Any]:
    """Of a module in PyTorch, in order."""
    import torch

    return [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]


def adam(module: Any, ranking: Any) -> Any:
    """The optimiser as published."""
    import torch

    return torch.optim.Adam([*module.parameters(), *ranking.parameters()], lr=RATE, betas=(B1, 0.999))


def allow_tf32(allowed: bool) -> None:
    """Sets what holds for the whole process."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def published(setting: Setting, batch: Batch, start: Sequence[np.ndarray], steps: int) -> Published:
    """The published step on the `lpips` package.

    Raises:
        Absent: package or weights are not there, or PyTorch and JAX would compute on different devices.
    """
    images = (each.astype(np.float32) / 127.5 - 1 for each in batch[:3])
    pytorch = Pytorch(setting, TripletImages(*images))
    if (pytorch.device.type == "cuda") != on_gpu():
        raise Absent(f"PyTorch would compute on {pytorch.device.type}, JAX on {jax.default_backend()}")
    import lpips
    import torch

    pytorch.judgment = torch.from_numpy(np.asarray(batch.judgment)).reshape(-1, 1, 1, 1).to(pytorch.device)

    def ranking_loss() -> Any:
        return lpips.BCERankingLoss().to(pytorch.device)  # pyright: ignore[reportAttributeAccessIssue]

    return Published(pytorch, ranking_loss, start, steps=steps, tf32=setting.mode == "tf32")


def gather(config: Steps, batch: Batch, absent: dict[str, str]) -> dict[str, Contestant]:
    """The contestants that can take part; why another cannot goes into `absent`."""
    metric = load_ours(config.setting)
    made: dict[str, Ours | Published] = {
        OURS: (corrected := Ours(metric, batch, recipe("corrected", config.steps))),
        LIKE: Ours(metric, batch, recipe("published", config.steps)),
    }
    start = weights(corrected.start.trained)[len(corrected.start.trained["heads"]) :]
    try:
        made[PUBLISHED] = published(config.setting, batch, start, config.steps)
    except Absent as reason:
        absent[PUBLISHED] = str(reason)
    return {name: Contestant(one.step, one.natural) for name, one in made.items()}


class Check(NamedTuple):
    """How far a contestant's natural step is from that of the first.

    Attributes:
        loss: difference, relative.
        weights: largest difference of any weight of heads and ranking head after the step.
    """

    loss: float
    weights: float

    def __str__(self) -> str:
        return f"{self.loss:.1e}, {self.weights:.1e}"

    @property
    def passed(self) -> bool:
        """Whether both do the same."""
        return self.loss <= LIMIT and self.weights <= LIMIT


def compare(contestants: Mapping[str, Contestant]) -> dict[str, Check]:
    """Compares everybody's natural step with the first's.

    Raises:
        ArithmeticError: somebody learns something else.
    """
    checks: dict[str, Check] = {}
    expected = None
    for name, contestant in contestants.items():
        found = contestant.natural()
        expected = expected or found
        pairs = zip(found.weights, expected.weights, strict=True)
        checks[name] = check = Check(
            relative_difference(np.array(found.loss), np.array(expected.loss)),
            float(np.max([np.abs(one - other).max() for one, other in pairs])),
        )
        if not check.passed:
            raise ArithmeticError(f"{name} learns something else than {next(iter(contestants))}: {check}")
    return checks


def side_by_side_steps(config: Steps, absent: dict[str, str]) -> dict[str, Any]:
    """Checks, and times in turns."""
    contestants = gather(config, judged(config.shared, Size(config.batch, config.size)), absent)
    checks = compare(contestants)
    losses: dict[str, float] = {}

    def step(name: str) -> None:
        losses[name] = contestants[name].step()

    times = side_by_side({name: functools.partial(step, name) for name in contestants}, config.repeats, PAUSE)
    if failed := [name for name, loss in losses.items() if not math.isfinite(loss)]:
        raise ArithmeticError(f"the loss is not finite any more: {', '.join(failed)}")
    return {
        "times": times,
        "checks": {name: check._asdict() for name, check in checks.items()},
        "losses": losses,
        "threads of PyTorch": threads(),
    }


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function finds in a process of its own.

    Raises:
        BrokenProcessPool: the process died.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def of_batch(config: Steps, batch: Batch) -> dict[str, Any]:
    """Seconds of steps here, and peaks in MiB beyond what is there once libraries, weights and images are."""
    ours = Ours(load_ours(config.setting), batch, recipe("corrected", config.steps))
    forget_peak()
    before = resident("VmRSS")
    ours.step()
    first = resident("VmHWM") - before
    forget_peak()
    taken = []
    for _ in range(config.repeats):
        started = time.perf_counter()
        ours.step()
        taken.append(time.perf_counter() - started)
    return {"seconds": taken, "first": first, "later": resident("VmHWM") - before, "device": device_peak()}


def by_batch(config: Steps, absent: dict[str, str]) -> dict[int, dict[str, Any]]:
    """`of_batch` for each size, in a process of its own."""
    found = {}
    for count in config.batches:
        try:
            found[count] = apart(of_batch, config, judged(config.shared, Size(count, config.size)))
        except (BrokenProcessPool, jax.errors.JaxRuntimeError) as error:
            # The sizes that fit are worth telling.
            absent[f"a batch of {count}"] = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return found


def watched(config: Steps) -> dict[int, float]:
    """Resident memory in MiB by the number of steps done, each on another batch, its report read."""
    rng = np.random.default_rng(0)
    shape = (3, LASTING_BATCH, LASTING_SIZE, LASTING_SIZE, 3)

    def fresh() -> Batch:
        judgment = rng.choice(VOTES, LASTING_BATCH).astype(np.float32)
        return Batch(*rng.integers(0, 256, shape, np.uint8), judgment)  # pyright: ignore

    ours = Ours(load_ours(config.setting), fresh(), recipe("corrected", LASTING_ATTACK))
    every = math.ceil(config.lasting / READINGS)
    read = {}
    for done in range(1, config.lasting + 1):
        ours.groups = ours.place(fresh())
        ours.step()
        if done % every == 0 or done == config.lasting:
            read[done] = resident("VmRSS")
    return read


def step_table(config: Steps, measured: Mapping[str, Any]) -> Table:
    """A row for each contestant."""
    times: Times = measured["times"]
    rows = []
    for name, taken in times.items():
        ratios = ["" if name == base else str(slowdown(taken, times[base])) for base in (OURS, LIKE)]
        rows.append([name, seconds(median(taken)), *ratios, str(Check(**measured["checks"][name]))])
    return Table(
        f"A training step with {config.steps} PGD steps on {config.network}, {Size(config.batch, config.size)}. "
        f"Differences from {OURS} after a step without attack and dropout: of the loss, of the weights",
        ["", "a step", f"x {OURS}", f"x {LIKE}", "differences"],
        rows,
    )


def batch_table(config: Steps, found: Mapping[int, Mapping[str, Any]]) -> Table:
    """A row for each size."""
    rows = []
    for count, one in found.items():
        taken = median(one["seconds"])
        peaks = [f"{one[name]:.0f}" for name in ("first", "later", "device") if one[name] is not None]
        rows.append([str(count), seconds(taken), f"{count / taken:.3g}", " / ".join(peaks)])
    return Table(
        f"{OURS} by batch, {config.steps} PGD steps on {config.network}, {config.size}x{config.size}. Peak memory in "
        "MiB beyond libraries, weights and images: with compilation / of later steps"
        + (" / of the GPU, all told" if on_gpu() else ""),
        ["triplets", "a step", "triplets a second", "peak"],
        rows,
    )


def lasting_table(config: Steps, read: Mapping[int, float]) -> Table:
    """A row that ends with what was added since the first reading."""
    first, *_, last = read.values()
    return Table(
        f"{OURS}, resident memory in MiB after so many steps ({config.network}, "
        f"{Size(LASTING_BATCH, LASTING_SIZE)}, {LASTING_ATTACK} PGD steps)",
        [*map(str, read), "added since the first"],
        [[*(f"{value:.1f}" for value in read.values()), f"{last - first:+.1f}"]],
    )


def document(config: Steps, measured: Mapping[str, Any], absent: Mapping[str, str], others: Mapping[str, float]) -> str:
    """Everything as Markdown."""
    here = machine()
    precision = "operands of convolutions rounded to TF32" if config.tf32 else "convolutions at full precision"
    tables = {"step": step_table, "batches": batch_table, "lasting": lasting_table}
    lines = [
        f"{here['processor']}, {here['cores']} cores, {', '.join(here['devices'])}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + f". {config.repeats} rounds in turns: medians, and `x` how many times as long as it takes, median "
        f"(quartiles) over the rounds. float32, {precision}; compilation is not counted.\n",
        *busy(others),
        *(str(tables[part](config, found)) for part, found in measured.items() if found),
    ]
    if absent:
        lines += ["Not measured:\n", *(f"- {what}: {reason}" for what, reason in absent.items())]
    return "\n".join(lines)


def main(config: Steps) -> None:
    """Measures, prints and writes."""
    for name in ("steps", "batch", "size", "repeats"):
        if (number := getattr(config, name)) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {number}")
    if min(config.batches, default=1) < 1:
        raise ValueError(f"--batches must be 1 or more, got {' '.join(map(str, config.batches))}")
    if config.lasting < 2:
        raise ValueError(f"--lasting must be 2 or more, got {config.lasting}")
    # Or JAX takes most of a GPU before PyTorch, or another process, gets any of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    absent: dict[str, str] = {}
    parts: dict[str, Callable[[], Any]] = {
        "step": lambda: side_by_side_steps(config, absent),
        "batches": lambda: by_batch(config, absent),
        "lasting": lambda: apart(watched, config),
    }
    measured: dict[str, Any] = {}
    others: dict[str, float] = {}
    for name, part in parts.items():
        if name in config.parts:
            measured[name], others[name] = alone(part)
    print(document(config, measured, absent, others))
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        results = {**record(config), "absent": absent, "processors busy with others": others, **measured}
        config.out.write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Steps, prog="python -m benchmarks.training"))

"""A training run from its configuration to the trained metric: the loop, and what it survives.

Killed at any moment and started again, a run goes on from its newest whole checkpoint and ends with the same bits as
one that was never interrupted: the batch and all that is drawn depend on the seed and the step's number alone.
"""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

import rlpips_jax as rl
from rlpips_jax.distances.lpips import Lpips
from rlpips_jax.ensemble import Ensemble
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation.placement import over_all_devices
from training import devices, evaluate, export, run_folder
from training.checkpoint import Checkpoints
from training.config import NOT_DECISIVE, Natural, Training
from training.data.feed import batches, steps_per_epoch
from training.logs import RECORDS, MetricLog, read
from training.sets import Sets, load_sets, sized
from training.step import (
    ORDINAL,
    Batch,
    Groups,
    Report,
    State,
    drawn_metric,
    first_state,
    losses,
    make_optimiser,
    make_step,
    with_trained,
)

BAD_BATCH = "non-finite-batch.npz"


@dataclass(frozen=True)
class Plan:
    """How long a run is.

    Attributes:
        total: steps.
        falling: the last of them, over which the rate falls to 0.
        epoch: steps of a pass over the data.
    """

    total: int
    falling: int
    epoch: int

    @classmethod
    def of(cls, config: Training, sets: Sets, shares: dict[str, int]) -> "Plan":
        """The plan for these triplets; an epoch is one of the group that takes longest.

        Args:
            config: of the run.
            sets: what it learns from.
            shares: of each group, triplets a step.

        Raises:
            TripletsError: there are fewer of a group than its share.
        """
        epoch = max(steps_per_epoch(sources, shares[group]) for group, sources in sets.sources.items())
        epochs = config.recipe.epochs + config.recipe.decay_epochs
        total = epochs * epoch if config.steps is None else config.steps
        return cls(total, round(total * config.recipe.decay_epochs / epochs), epoch)

    def share(self, config: Training) -> Callable[[Any], Any]:
        """The schedule: `step -> share of the rate`.

        The published recipe lowers the rate after each epoch by the same amount, beginning after the first one of the
        fall; otherwise it falls at every step.
        """
        start = self.total - self.falling

        def schedule(step: Any) -> Any:
            done = (step - start) / max(self.falling, 1)
            if config.protocol == "published" and config.steps is None:
                done = ((step - start) // self.epoch) / max(config.recipe.decay_epochs, 1)
            return 1 - jax.numpy.clip(done, 0, 1)

        return schedule


def train(config: Training) -> Path:
    """Trains, evaluates, exports, and returns the path of the weight file.

    Raises:
        TrainingError: the run cannot be done as it is told, or its loss is not finite.
        SystemExit: 0, after SIGTERM or Ctrl-C, when all is saved.
        LogError: the log cannot be written.
        CheckpointError: a checkpoint cannot be written, or none of those there are is whole.
    """
    devices.join(config)
    with _stopping() as stopping:
        with stopping.loading():
            config = sized(config)
            run_folder.check(config.out, config.document(), NOT_DECISIVE)
            rows = over_all_devices()
            start: Lpips | Ensemble = rl.load(config.metric, weights_dir=config.weights_dir)
            _check_options(config, start)
            export.path_of(start, config.out, robust=not isinstance(config, Natural))
            sets = load_sets(config)
            # Triplets that no loss looks at would only fill the batch.
            sets = sets.only([group for group in sets.sources if any(losses(config, sets.sources, group))])
            shares = _shares(config, sets)
            plan = Plan.of(config, sets, shares)
            identity = {"total": plan.total, "start": start.signature, "data": sets.identities}
            # Evaluation is at the highest precision, whatever a step computes in.
            metric = _computing(start, config)
            optimiser = make_optimiser(config, plan.share(config))
            # Only now, as a mistake in the options must not claim the folder.
            run_folder.claim(config.out, config.document(), NOT_DECISIVE)
        with Checkpoints(config.out / "checkpoints", keep=config.keep) as checkpoints:
            sample = np.stack([one["reference"] for one in _spread(sets)]) if config.floor else None
            state = devices.replicate(first_state(config, start, optimiser, sample), rows)
            restored = checkpoints.restore(state)
            done = 0
            if restored is not None:
                done, state, found = restored
                _check_identity(config.out, found, identity)
                _say(f"resumed at step {done} of {plan.total}")
            resumed_at = None if restored is None else done
            with MetricLog(config.out, resumed_at=resumed_at, intact=lambda: checkpoints.intact) as log:
                placed = devices.replicate(metric, rows)
                run = _Run(config, plan, sets, shares, identity, start, placed, rows, checkpoints, log, stopping)
                run.catch_up(state, done)
                state, number = run.steps(make_step(config, optimiser), state, done), plan.total
                if config.export == "best" and (best := checkpoints.restore(state, best=True)) is not None:
                    state, number = best.state, best.step
                    _say(f"the best checkpoint is that of step {number}")
                return run.finish(state, number)


def _check_options(config: Training, start: Lpips | Ensemble) -> None:
    """Raises a TrainingError for options that the metric cannot be trained with."""
    if not isinstance(start, Ensemble):
        if config.samples is not None:
            raise TrainingError(f"--samples is for ensembles, such as --metric elpips-squeeze; {start.name} is none")
        return
    if not isinstance(config, Natural):
        raise TrainingError(
            f"{config.metric} is an ensemble, whose heads learn from triplets as they are: python -m training natural. "
            "What lin or tune made of a plain metric becomes one by rl.Ensemble"
        )
    if config.recipe.dropout:
        raise TrainingError(
            "--dropout is for metrics that are not random; an ensemble drops inputs by itself. --protocol published "
            "drops out too: give --dropout 0"
        )


def _computing(metric: Lpips | Ensemble, config: Training) -> Lpips | Ensemble:
    """The metric as steps compute it."""
    if isinstance(metric, Ensemble):
        return dataclasses.replace(metric, metric=_computing(metric.metric, config))
    return dataclasses.replace(metric, dtype=config.dtype, precision=config.precision)


def _check_identity(folder: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises a TrainingError where a run would go on with other data or from another metric than it began with."""
    names = {
        "total": "its number of steps",
        "start": "the metric it starts from",
        "data": "the triplets it learns from",
    }
    changed = [text for name, text in names.items() if found.get(name) != identity[name]]
    if changed:
        raise TrainingError(
            f"{folder} holds a run that began otherwise: {', '.join(changed)} changed since; restore what was there, "
            "or give another --out"
        )


class _Run:
    """What stays the same while a run lasts."""

    def __init__(
        self,
        config: Training,
        plan: Plan,
        sets: Sets,
        shares: dict[str, int],
        identity: dict[str, Any],
        start: Lpips | Ensemble,
        metric: Lpips | Ensemble,
        rows: NamedSharding,
        checkpoints: Checkpoints,
        log: MetricLog,
        stopping: "_Stopping",
    ) -> None:
        self.config, self.plan, self.sets, self.shares = config, plan, sets, shares
        self.identity, self.start, self.metric = identity, start, metric
        self.rows, self.checkpoints, self.log, self.stopping = rows, checkpoints, log, stopping
        self.every = config.evaluate_every or plan.epoch

    def evaluate(self, state: State, number: int) -> None:
        """Evaluates the metric after a step, whose checkpoint was begun, or before the first; records its scores.

        Where somebody asks to stop, nothing is recorded, and the evaluation is for the run that goes on from there.
        """
        # However long it takes, and however it ends, the step is not lost.
        self.checkpoints.wait()
        metric = devices.replicate(self.trained(state) if number else self.start, self.rows)
        try:
            found = evaluate.scores(self.config, metric, self.sets.validation, self.rows, self.stopping.is_asked)
        except evaluate.Interrupted:
            return
        # The record comes last, as it says that nothing is left to do.
        if number and found:
            self.checkpoints.rate(number, evaluate.summary(found))
        self.log.write(number, _kind(number), _flat(found))

    def evaluates(self, number: int) -> bool:
        """Whether a step is followed by an evaluation."""
        return number > 0 and (number % self.every == 0 or number == self.plan.total)

    def trained(self, state: State) -> Lpips | Ensemble:
        """The metric that a state stands for, as it is evaluated and exported."""
        return with_trained(self.start, state.trained if state.average is None else state.average)

    def stop(self, number: int) -> NoReturn:
        """Ends the program, when all that was begun is on disk."""
        self.checkpoints.wait()
        _say(f"stopped at step {number} of {self.plan.total}; the same command goes on from there")
        raise SystemExit(0)

    def catch_up(self, state: State, done: int) -> None:
        """Makes the evaluation that a run was stopped or killed before."""
        if (not done or self.evaluates(done)) and not self.log.has(done, _kind(done)):
            self.evaluate(state, done)
        if self.stopping.is_asked():
            self.stop(done)

    def steps(self, step: Any, state: State, done: int) -> State:
        """Takes the steps from `done` on."""
        config, total = self.config, self.plan.total
        feeds = {
            group: batches(
                sources,
                batch=self.shares[group],
                seed=config.seed,
                start=done,
                process=jax.process_index(),
                processes=jax.process_count(),
                workers=config.workers,
                prefetch=config.prefetch,
            )
            for group, sources in self.sets.sources.items()
        }
        pending: tuple[int, Report, Any] | None = None
        bar = tqdm(total=total, initial=done, unit="step", mininterval=1, disable=jax.process_index() > 0)
        with contextlib.ExitStack() as stack:
            stack.enter_context(bar)
            for feed in feeds.values():
                stack.callback(feed.close)
            for number in range(done + 1, total + 1):
                rows = {group: next(feed) for group, feed in feeds.items()}
                state, report = step(state, self.metric, self._placed(rows))
                # The previous report is read while this step computes.
                self._settle(pending, bar)
                pending = number, report, rows
                stop = self.stopping.is_asked()
                evaluates = self.evaluates(number)
                if stop or evaluates or number % config.checkpoint_every == 0:
                    pending = self._settle(pending, bar)
                    self.log.flush()
                    self.checkpoints.save(number, state, extra=self.identity)
                    if evaluates and not stop:
                        self.evaluate(state, number)
                        stop = self.stopping.is_asked()
                    if stop:
                        self.stop(number)
        self.checkpoints.wait()
        return state

    def _placed(self, rows: dict[str, dict[str, np.ndarray]]) -> Groups:
        return {
            group: Batch(*(devices.divide(columns[name], self.rows) for name in Batch._fields))
            for group, columns in rows.items()
        }

    def _settle(self, pending: tuple[int, Report, Any] | None, bar: Any) -> None:
        """Reads and records what a step reported; stops where it was not finite."""
        if pending is None:
            return
        number, report, rows = pending
        values = {name: float(value) for name, value in report._asdict().items() if name != "finite"}
        if not bool(report.finite):
            process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
            path = self.config.out / BAD_BATCH.replace(".npz", f"{process}.npz")
            np.savez(
                path, **{f"{group}/{name}": array for group, columns in rows.items() for name, array in columns.items()}
            )
            raise TrainingError(
                f"step {number}: the loss is {values['loss']:g} and its gradient {values['gradient']:g}; the batch is "
                f"in {path}, and the last checkpoint is of step {self.checkpoints.last or 0}. Look at that batch, or "
                "try a lower --rate in another --out"
            )
        self.log.write(number, "step", {name: value for name, value in values.items() if not math.isnan(value)})
        bar.update(1)
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

    def finish(self, state: State, number: int) -> Path:
        """Exports the metric of a step and prints what it became; the first process does, and all know where it is."""
        metric, config = self.trained(state), self.config
        path = export.path_of(metric, config.out, robust=not isinstance(config, Natural))
        if jax.process_index() > 0:
            return path
        self.log.flush()
        records = read(config.out / RECORDS)
        before, after = _scores(records, "reference", 0), _scores(records, "evaluation", number)
        card = {
            "trained": config.document(),
            "data": self.sets.described,
            "steps": number,
            "start": self.start.signature,
            "library": rl.__version__,
            "scores": {"start": evaluate.document(before), "trained": evaluate.document(after)},
        }
        metric = jax.device_get(metric)
        if config.recipe.loss == "ratio":
            # A loss of ratios leaves the scale of distances open.
            metric = export.rescaled(metric, self.start, _spread(self.sets))
        exported = drawn_metric(metric)
        own = bool(config.recipe.backbone_rate) or not export.has_official_backbone(exported, config.weights_dir)
        written = export.export(exported, path, with_backbone=own, card=card)
        if after:
            print(evaluate.table(before, after, (self.start.name, path.stem)))
        print("written: " + ", ".join(map(str, written)))
        return path


class _Stopping:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self._asked = False
        self._loading = False
        self._times = 0

    def ask(self, *_: Any) -> None:
        """The handler of signals."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._loading:
            raise SystemExit(0)

    def is_asked(self) -> bool:
        """Whether to stop; once so, always.

        Processes that work together must ask equally often, and get the same answer each time: JAX lets all of them
        come to the same count after one has got the signal.
        """
        if jax.process_count() > 1 and not self._asked:
            from jax.experimental import multihost_utils

            self._times += 1
            self._asked = multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Within it, whoever asks ends the program at once: there is nothing to save."""
        self._loading = True
        try:
            yield
        except SystemExit:
            _say("stopped while data were being loaded; nothing is lost, and the same command starts again")
            raise
        finally:
            self._loading = False


@contextlib.contextmanager
def _stopping() -> Iterator[_Stopping]:
    """Asks for an orderly stop on SIGTERM and Ctrl-C, and for one at once when asked again.

    Where processes work together, JAX listens to SIGTERM itself, and Ctrl-C ends this one alone.
    """
    stopping = _Stopping()
    signals = [] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {one: signal.signal(one, stopping.ask) for one in signals}
    try:
        yield stopping
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _shares(config: Training, sets: Sets) -> dict[str, int]:
    """Of each group, triplets a step.

    Raises:
        TrainingError: a share cannot be cut evenly over the devices.
    """
    if len(sets.sources) == 1:
        shares = dict.fromkeys(sets.sources, config.recipe.batch)
    else:
        ordinal = round(config.recipe.batch * config.ordinal_share)
        shares = {group: ordinal if group == ORDINAL else config.recipe.batch - ordinal for group in sets.sources}
    for group, share in shares.items():
        devices.check_batch(share, config.accumulate, f"{share} {group} triplets of --batch {config.recipe.batch}")
    return shares


def _spread(sets: Sets, count: int = 64) -> list[Any]:
    """Examples spread over each source."""
    return [
        source[int(index)]
        for sources in sets.sources.values()
        for source in sources
        for index in np.linspace(0, len(source) - 1, min(count, len(source)))
    ]


def _kind(number: int) -> str:
    """What the record of an evaluation after a step is called; before the first, it is of the metric to start from."""
    return "evaluation" if number else "reference"


def _flat(scores: evaluate.Scores) -> dict[str, float]:
    return {
        f"{name.replace('/', '-')}/{column}": value for name, one in scores.items() for column, value in one.items()
    }


def _scores(records: list[dict[str, Any]], kind: str, number: int) -> evaluate.Scores:
    """The scores of a kind at a step in a log; none where it was not evaluated."""
    found: evaluate.Scores = {}
    for record in records:
        if (record["kind"], record["step"]) == (kind, number):
            for key, value in record.items():
                name, slash, column = key.partition("/")
                if slash:
                    found.setdefault(name, {})[column] = value
    return found


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text)

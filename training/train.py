"""A training run of a metric, from its configuration to the weight file."""

import functools
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import rlpips_jax as rl
from rlpips_jax.distances.protocol import is_random
from rlpips_jax.errors import TrainingError
from rlpips_jax.evaluation.placement import over_all_devices
from training import devices, evaluate, export, loop, run_folder
from training.config import NOT_DECISIVE, Natural, Training
from training.data.feed import batches, steps_per_epoch
from training.sets import Sets, load_sets, sized
from training.step import (
    ORDINAL,
    AnyMetric,
    Batch,
    first_state,
    losses,
    make_optimiser,
    make_step,
    with_options,
    with_trained,
)
from training.stopping import listening


def train(config: Training) -> Path:
    """Trains, evaluates, exports, and returns the path of the weight file.

    Raises:
        TrainingError: the run cannot be done as it is told, or its loss is not finite.
        SystemExit: 0, after SIGTERM or Ctrl-C, when all is saved.
        LogError: the log cannot be written.
        CheckpointError: a checkpoint cannot be written, or none of those there are is whole.
    """
    devices.join(config)
    with listening() as stopping:
        with stopping.loading():
            config = sized(config)
            run_folder.check(config.out, config.document(), NOT_DECISIVE)
            rows = over_all_devices()
            start: Any = rl.load(config.metric, weights_dir=config.weights_dir)
            check_options(config, start)
            path = export.path_of(start, config.out, robust=not isinstance(config, Natural))
            devices.say(
                "making the triplets" if config.data == "photographs" else f"reading the triplets of {config.data}"
            )
            sets = load_sets(config)
            # Triplets that no loss looks at would only fill the batch.
            sets = sets.only([group for group in sets.sources if any(losses(config, sets.sources, group))])
            shares = group_shares(config, sets)
            plan = Plan.of(config, sets, shares)
            # Only now, as a mistake in the options must not claim the folder.
            run_folder.claim(config.out, config.document(), NOT_DECISIVE)
        optimiser = make_optimiser(config, plan.rate_share(config))
        sample = np.stack([one["reference"] for one in spread(sets)]) if config.floor else None
        state = first_state(config, start, optimiser, sample)
        # Evaluation is at the highest precision, whatever a step computes in.
        computing = devices.replicate(with_options(start, dtype=config.dtype, precision=config.precision), rows)
        take_step = make_step(config, optimiser)
        task = loop.Task(
            total=plan.total,
            evaluate_every=config.evaluate_every or plan.epoch,
            checkpoint_every=config.checkpoint_every,
            feed=functools.partial(feed, config, sets, shares),
            step=lambda state, columns: take_step(state, computing, placed(columns, rows)),
            evaluate=lambda state, number, interrupted: evaluate.flat(
                evaluate.scores(
                    config,
                    devices.replicate(trained(start, state) if number else start, rows),
                    sets.validation,
                    placement=rows,
                    interrupted=interrupted,
                )
            ),
            score=lambda values: evaluate.summary(evaluate.nested(values)),
            identity={
                "the number of steps": plan.total,
                "the metric it starts from": start.signature,
                "the triplets it learns from": sets.identities,
            },
        )
        state, options = devices.replicate(state, rows), {"keep": config.keep, "export": config.export}
        with loop.finished(task, state, out=config.out, stopping=stopping, **options) as run:
            if jax.process_index() == 0:
                finish(config, start, sets, path, run)
    return path


def check_options(config: Training, start: AnyMetric) -> None:
    """Raises a TrainingError for options that the metric cannot be trained with."""
    if not is_random(start):
        if config.samples is not None:
            raise TrainingError(f"--samples is for ensembles, such as --metric elpips-squeeze; {start.name} is not one")
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


def group_shares(config: Training, sets: Sets) -> dict[str, int]:
    """Triplets of each group per step.

    Raises:
        TrainingError: a share cannot be cut evenly over the devices.
    """
    batch = config.recipe.batch
    ordinal = round(batch * config.ordinal_share)
    shares = {group: ordinal if group == ORDINAL else batch - ordinal for group in sets.sources}
    if len(shares) == 1:
        shares = dict.fromkeys(shares, batch)
    for group, share in shares.items():
        devices.check_batch(share, config.accumulate, f"{share} {group} triplets of --batch {batch}")
    return shares


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
            shares: triplets of each group per step.

        Raises:
            TripletsError: there are fewer of a group than its share.
        """
        epoch = max(steps_per_epoch(sources, shares[group]) for group, sources in sets.sources.items())
        epochs = config.recipe.epochs + config.recipe.decay_epochs
        total = epochs * epoch if config.steps is None else config.steps
        return cls(total, round(total * config.recipe.decay_epochs / epochs), epoch)

    def rate_share(self, config: Training) -> Callable[[Any], Any]:
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


def feed(
    config: Training, sets: Sets, shares: dict[str, int], done: int
) -> Generator[dict[str, np.ndarray], None, None]:
    """The rows of each batch after so many steps, the columns called as in "ordinal/reference"."""
    feeds = {
        group: batches(
            sources,
            batch=shares[group],
            seed=config.seed,
            start=done,
            process=jax.process_index(),
            processes=jax.process_count(),
            workers=config.workers,
            prefetch=config.prefetch,
        )
        for group, sources in sets.sources.items()
    }
    try:
        while True:
            yield {f"{group}/{name}": array for group, one in feeds.items() for name, array in next(one).items()}
    finally:
        for one in feeds.values():
            one.close()


def placed(columns: Mapping[str, np.ndarray], rows: Any) -> dict[str, Batch]:
    """The columns of a batch on the devices, by group."""
    groups = {name.partition("/")[0] for name in columns}
    return {
        group: Batch(*(devices.divide(columns[f"{group}/{name}"], rows) for name in Batch._fields)) for group in groups
    }


def trained(start: AnyMetric, state: Any) -> AnyMetric:
    """The metric that a state stands for, as it is evaluated and exported."""
    return with_trained(start, state.result)


def spread(sets: Sets, count: int = 64) -> list[Any]:
    """Examples spread over each source."""
    return [
        source[int(index)]
        for sources in sets.sources.values()
        for source in sources
        for index in np.linspace(0, len(source) - 1, min(count, len(source)))
    ]


def finish(config: Training, start: AnyMetric, sets: Sets, path: Path, run: loop.Finished) -> None:
    """Exports the metric of a finished run and prints how it did."""
    metric = jax.device_get(trained(start, run.state))
    if config.recipe.loss == "ratio":
        # A loss of ratios leaves the scale of distances open.
        metric = export.rescaled(metric, start, spread(sets))
    before, after = (
        evaluate.nested(record) for record in (run.record("reference", 0), run.record("evaluation", run.step))
    )
    card = {
        "trained": config.card(),
        "data": sets.described,
        "steps": run.step,
        "start": start.signature,
        "library": rl.__version__,
        "scores": {"start": evaluate.document(before), "trained": evaluate.document(after)},
    }
    own = bool(config.recipe.backbone_rate) or not export.has_official_backbone(metric, config.weights_dir)
    written = export.export(metric, path, with_backbone=own, card=card)
    if after:
        print(evaluate.table(before, after, (start.name, path.stem)))
    print("written: " + ", ".join(map(str, written)))

"""The program of `python -m training`: its subcommands, and how it ends."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from rlpips_jax.cli.terminal import guard_terminal, visible
from rlpips_jax.errors import RlpipsError
from training.classify import Classify, train_classifier
from training.config import Lin, Natural, Tune
from training.distill import Distill, distill
from training.evaluate_classifiers import EvaluateClassifiers, evaluate_classifiers
from training.train import train
from training.widen import Widen, widen

PROGRAM = "python -m training"
PROGRAMS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "lin": (Lin, train),
    "tune": (Tune, train),
    "natural": (Natural, train),
    "distill": (Distill, distill),
    "widen": (Widen, widen),
    "classifier": (Classify, train_classifier),
    "evaluate-classifiers": (EvaluateClassifiers, lambda config: print(evaluate_classifiers(config))),
}
"""Each subcommand: its options, and the function that does it."""
IMPOSSIBLE = 2
"""Exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        config = tyro.extras.subcommand_cli_from_dict(
            {name: config for name, (config, _) in PROGRAMS.items()}, prog=PROGRAM, args=arguments
        )
        guard_terminal()
        next(run for kind, run in PROGRAMS.values() if type(config) is kind)(config)
    except (RlpipsError, OSError) as error:
        print(visible(f"{PROGRAM}: {error}"), file=sys.stderr)
        return IMPOSSIBLE
    return 0

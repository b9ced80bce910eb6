"""`python -m training lin|tune|natural|distill`: trains metrics."""

import sys
from collections.abc import Sequence

import tyro

from rlpips_jax.errors import RlpipsError
from training.config import Lin, Natural, Training, Tune
from training.distill import Distill, distill
from training.train import train

PROGRAM = "python -m training"
IMPOSSIBLE = 2
"""Exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    try:
        config = tyro.extras.subcommand_cli_from_dict(
            {"lin": Lin, "tune": Tune, "natural": Natural, "distill": Distill}, prog=PROGRAM, args=arguments
        )
        if isinstance(config, Training):
            train(config)
        else:
            distill(config)
    except (RlpipsError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return IMPOSSIBLE
    return 0


if __name__ == "__main__":
    sys.exit(main())

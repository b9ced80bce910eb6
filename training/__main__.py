"""`python -m training SUBCOMMAND`: trains metrics, and classifiers to attack with them."""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a run listens, which takes seconds of loading, there is nothing to save and nothing to tell.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from training import program

    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The command line `rlpips`: a class a subcommand, in a table.

A subcommand is a frozen dataclass: its fields are the arguments, its docstring is the help, its `run` does
the work and returns the exit status. Results go to stdout; progress, warnings and errors go to stderr.

Exit status: 0 done; 1 done in part, or something is unhealthy; 2 not done, for a reason told in one line;
130 interrupted.
"""

import functools
import operator
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, cast

from rlpips_jax._version import __version__
from rlpips_jax.errors import RlpipsError

COMMANDS = {
    "distance": "rlpips_jax.cli.distance:Distance",
    "compare": "rlpips_jax.cli.compare:Compare",
    "map": "rlpips_jax.cli.heat_map:Map",
    "attack": "rlpips_jax.cli.attack:Attack",
    "evaluate": "rlpips_jax.cli.evaluate:Evaluate",
    "certify": "rlpips_jax.cli.certify:Certify",
    "average": "rlpips_jax.cli.average:Average",
    "geodesic": "rlpips_jax.cli.geodesic:Geodesic",
    "weights": "rlpips_jax.cli.weights:Weights",
    "doctor": "rlpips_jax.cli.doctor:Doctor",
}
"""Every subcommand and the class that is it."""

DESCRIPTION = """Perceptual distances between images: LPIPS in JAX.

`rlpips --version` prints the version; `rlpips SUBCOMMAND --help` explains one."""


def main() -> None:
    """Runs the command line and exits with its status."""
    sys.exit(guarded(_main))


def guarded(program: Callable[[], int]) -> int:
    """Runs a program; what goes wrong in a foreseen way becomes one line on stderr and an exit status.

    Args:
        program: returns its exit status.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
        try:
            status = program()
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # Whoever read the output has enough of it. What is still buffered must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (RlpipsError, OSError) as error:
            say(str(error))
            return 2
        except RuntimeError as error:
            import jax  # Not at the top: processes that only read images do without it.

            if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            say(f"{str(error).splitlines()[0]}; take smaller images, or another device (JAX_PLATFORMS=cpu)")
            return 2


def say(line: str) -> None:
    """One line to stderr, above a progress bar if there is one."""
    text = "rlpips: " + line.replace("\n", " ")
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def _main() -> int:
    import tyro

    if sys.argv[1:] == ["--version"]:
        print(f"rlpips-jax {__version__}")
        return 0
    subcommands = [
        Annotated[pkgutil.resolve_name(place), tyro.conf.subcommand(name)] for name, place in COMMANDS.items()
    ]
    command: Any = tyro.cli(
        cast(Any, functools.reduce(operator.or_, subcommands)),
        prog="rlpips",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    return command.run()


def _show_warning(
    otherwise: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
    **options: Any,
) -> None:
    """Warnings meant for users without the line of code that they arose in."""
    if issubclass(category, UserWarning):
        say(f"warning: {message}")
    else:
        otherwise(message, category, *place, **options)

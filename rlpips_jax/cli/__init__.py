"""The command line `rlpips`: one class per subcommand, listed in a table.

A subcommand is a frozen dataclass: its fields are the arguments, its docstring is the help, its `run` does the work and
returns the exit status. To add one, write its module and its line in `COMMANDS`. Results go to stdout; progress,
warnings and errors go to stderr.

Exit status: 0 done; 1 done in part, or something is unhealthy; 2 not done, for a reason told in one line;
130 interrupted.
"""

import difflib
import errno
import functools
import inspect
import operator
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, cast

from rlpips_jax._version import __version__
from rlpips_jax.cli.terminal import guard_terminal, visible
from rlpips_jax.errors import RlpipsError

COMMANDS = {
    "distance": "rlpips_jax.cli.distance:Distance",
    "compare": "rlpips_jax.cli.compare:Compare",
    "map": "rlpips_jax.cli.heat_map:Map",
    "attack": "rlpips_jax.cli.attack:Attack",
    "evaluate": "rlpips_jax.cli.evaluate:Evaluate",
    "certify": "rlpips_jax.cli.certify:Certify",
    "report": "rlpips_jax.cli.report:Report",
    "average": "rlpips_jax.cli.average:Average",
    "geodesic": "rlpips_jax.cli.geodesic:Geodesic",
    "export": "rlpips_jax.cli.export:Export",
    "weights": "rlpips_jax.cli.weights:Weights",
    "doctor": "rlpips_jax.cli.doctor:Doctor",
}
"""Each subcommand and its class, as module:class."""

COMPILATION_CACHE = "RLPIPS_COMPILATION_CACHE"

MIN_COMPILE_SECONDS = 0.1
"""Seconds that compilation must take for its program to be kept."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""How a file that cannot grow is told."""

DESCRIPTION = """Perceptual distances between images: LPIPS in JAX.

`rlpips --version` prints the version; `rlpips SUBCOMMAND --help` explains one."""


def main() -> None:
    """Runs the command line and exits with its status."""
    sys.exit(guarded(_main))


def guarded(program: Callable[[], int]) -> int:
    """Runs a program; an error of this library becomes one line on stderr and an exit status.

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
            # The reader of the output has left. What is still buffered must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (RlpipsError, OSError) as error:
            reason = str(error)
            # Every other file that cannot be written is named by its error.
            if isinstance(error, OSError) and error.filename is None and error.errno in FULL:
                reason = f"what is printed cannot be written: {error.strerror}"
            say(reason)
            return 2
        except RuntimeError as error:
            import jax  # Not at the top: it takes a second, and `rlpips --version` does without it.

            if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            say(f"{str(error).splitlines()[0]}; take smaller images, or another device (JAX_PLATFORMS=cpu)")
            return 2


def say(line: str) -> None:
    """One line to stderr, above a progress bar if there is one."""
    text = "rlpips: " + visible(line.replace("\n", " "))
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def _main() -> int:
    import tyro

    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(f"rlpips-jax {__version__}")
        return 0
    program = "rlpips"
    if problem := _mistyped(arguments):
        say(problem)
        return 2
    if arguments and arguments[0] in COMMANDS:
        # The other subcommands take a second to import.
        program, arguments = f"rlpips {arguments[0]}", arguments[1:]
        parsed: Any = pkgutil.resolve_name(COMMANDS[sys.argv[1]])
        if arguments and arguments[0] in getattr(parsed, "actions", ()):
            parsed, program, arguments = parsed.actions[arguments[0]], f"{program} {arguments[0]}", arguments[1:]
    else:
        subcommands = [
            Annotated[pkgutil.resolve_name(place), tyro.conf.subcommand(name)] for name, place in COMMANDS.items()
        ]
        parsed = functools.reduce(operator.or_, subcommands)
    command: Any = tyro.cli(
        cast(Any, parsed),
        args=arguments,
        prog=program,
        # The whole docstring, with its examples: from a class tyro takes the text before them.
        description=DESCRIPTION if program == "rlpips" else inspect.getdoc(parsed),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    keep_compiled_programs()
    guard_terminal()
    return command.run()


def _mistyped(arguments: list[str]) -> str | None:
    """What is wrong with the arguments at first sight, if anything is."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        return f"there is no subcommand {arguments[0]}; {advice} See rlpips --help"
    for argument in arguments:
        if argument.startswith("-") and "." in argument and os.path.exists(argument):
            return f"{argument} would be read as an option; write ./{argument} for the file of this name"
    return None


def keep_compiled_programs() -> None:
    """Makes JAX keep what it compiles for later runs, in the user's cache folder or as the environment says.

    `RLPIPS_COMPILATION_CACHE` names another folder, and 0 turns it off. A folder that JAX was told of stays.
    """
    import jax

    from rlpips_jax.weights.store import cache_folder

    folder = os.environ.get(COMPILATION_CACHE) or cache_folder() / "compiled"
    told = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder == "0" or told:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return  # A convenience: whatever stands in its way is told by `rlpips doctor`.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _show_warning(
    otherwise: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,
    **options: Any,
) -> None:
    """Shows warnings that are meant for users without the line of code that they arose in."""
    if issubclass(category, UserWarning):
        say(f"warning: {message}")
    else:
        otherwise(message, category, *place, **options)

"""A run's folder records which run it is of, so that another run does not continue from its checkpoints."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from rlpips_jax.errors import TrainingError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.json_object import json_object
from rlpips_jax.files.locks import locked
from rlpips_jax.files.regular import read_regular

RECORD = "configuration.json"


def check(folder: Path, document: dict[str, Any], ignored: Collection[str] = ()) -> bool:
    """Whether a folder is this run's; False where no run has claimed it.

    Args:
        folder: of the run.
        document: the options that decide the result, as JSON values by name.
        ignored: names that are not compared, which folders of earlier versions may have.

    Raises:
        TrainingError: the folder is another run's; the message says which options differ.
    """
    record = folder / RECORD
    try:
        found = json_object(read_regular(record))
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise TrainingError(f"{record} is damaged ({error}); remove it, or give another --out") from error
    names = (found.keys() | document.keys()) - set(ignored)
    changed = sorted(name for name in names if found.get(name) != document.get(name))
    if changed:
        shown = ", ".join(f"{name} {found.get(name)!r} (now {document.get(name)!r})" for name in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise TrainingError(f"{folder} holds a run with {shown}{more}; give another --out, or the same options")
    return True


def claim(folder: Path, document: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Records which run a folder is of, or makes sure that it is this one; arguments and errors as in `check`.

    Of two runs that claim a folder at the same time, the first one gets it.
    """
    if check(folder, document, ignored) or jax.process_index() > 0:
        return
    with locked(folder / f".{RECORD}.lock", waiting=str):
        if not check(folder, document, ignored):
            with replacing(folder / RECORD, durable=True) as file:
                file.write(json.dumps(document, indent=2).encode())

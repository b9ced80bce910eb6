"""A run's folder says which run it is of, so that another one does not go on from its checkpoints."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from rlpips_jax.errors import TrainingError

RECORD = "configuration.json"


def check(folder: Path, document: dict[str, Any], ignored: Collection[str] = ()) -> bool:
    """Whether a folder is this run's; False where it is nobody's yet.

    Args:
        folder: of the run.
        document: what decides its result; whatever JSON can say.
        ignored: names that are not compared, which folders of earlier versions may have.

    Raises:
        TrainingError: the folder is another run's; says which options differ.
    """
    record = folder / RECORD
    try:
        found = json.loads(record.read_text())
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
    """Records that a folder is this run's, or makes sure that it is; arguments and errors as in `check`."""
    if check(folder, document, ignored) or jax.process_index() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    temporary = record.with_suffix(".partial")
    with temporary.open("w") as file:
        json.dump(document, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(record)

"""Snapshots of a descent: one file, written atomically, that says which run it belongs to.

The file is a NumPy archive; its member `run` is a JSON document of everything that the result of the run depends on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlpips_jax.errors import SnapshotError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.json_object import json_object
from rlpips_jax.files.npz import Npz

FORMAT = 2

ADVICE = "remove the file to begin anew, or name another one"

Run = Mapping[str, Any]
"""Everything that the result of a run depends on, as JSON."""


def write(path: Path, run: Run, arrays: Mapping[str, Any]) -> None:
    """Writes a snapshot in place of the last one; makes its folder.

    Args:
        path: the file.
        run: the run it belongs to.
        arrays: the state, by name.

    Raises:
        SnapshotError: it cannot be written; the last one stays as it was.
    """
    try:
        with replacing(path, durable=True) as file:
            np.savez(
                file, allow_pickle=False, run=np.asarray(_text(run)), **{k: np.asarray(v) for k, v in arrays.items()}
            )
    except OSError as error:
        raise SnapshotError(
            f"the snapshot {path} cannot be written: {error.strerror or error}; free some space, or name another file"
        ) from error


def read(path: Path, run: Run) -> dict[str, np.ndarray] | None:
    """The arrays of a snapshot; None if there is no file.

    Args:
        path: the file.
        run: the run it must belong to.

    Raises:
        SnapshotError: it cannot be read, is damaged or not a snapshot, or is of another run; says how they differ.
    """
    try:
        if not path.exists():
            return None
        archive = Npz(path, ValueError)
        arrays = {name: archive[name] for name in archive}
        found = json_object(str(arrays.pop("run")))
    except (OSError, ValueError, KeyError) as error:
        raise SnapshotError(f"{path} is not a complete snapshot ({error}): {ADVICE}") from error
    wanted = json.loads(_text(run))
    differences = [
        f"{name} is {json.dumps(found.get(name))} there and {json.dumps(wanted.get(name))} here"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise SnapshotError(f"{path} is a snapshot of another run: {'; '.join(differences)}: {ADVICE}")
    return arrays


def _text(run: Run) -> str:
    return json.dumps({"format": FORMAT, **run}, sort_keys=True)

"""Results of long runs in a folder: the numbers of each triplet as they come, one JSON document at the end.

The name of a run ends in a hash of everything that its numbers depend on, so the same command finds its own results,
and never those of another one. Recorded values are checked for their types, not recomputed.
"""

import contextlib
import functools
import hashlib
import json
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from rlpips_jax import reports
from rlpips_jax._version import __version__
from rlpips_jax.cli import interrupts
from rlpips_jax.files.atomic import replacing
from rlpips_jax.files.journal import Journal
from rlpips_jax.files.json_object import json_object, json_value
from rlpips_jax.files.regular import read_regular

Column = Shaped[np.ndarray, " n"]


@dataclass(frozen=True)
class Recording:
    """The results of one run.

    Attributes:
        folder: where they are written.
        words: describe the run, for the names of its files.
        settings: everything that its numbers depend on.
        columns: names and types of the numbers of each triplet.
    """

    folder: Path
    words: Sequence[str]
    settings: dict[str, Any]
    columns: dict[str, type[np.generic]]

    @functools.cached_property
    def path(self) -> Path:
        """The file of the document."""
        name = "-".join(filter(None, (re.sub(r"[^\w.@]+", "-", word).strip("-") for word in self.words)))
        sha = hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()
        return self.folder / f"{name}-{sha[:8]}.json"

    @property
    def columns_path(self) -> Path:
        """The file of the numbers of each triplet: a header, then a line per part with a list per column."""
        return self.path.with_suffix(".jsonl")

    @property
    def document(self) -> dict[str, Any]:
        """The document that `finish` has written."""
        return json_object(read_regular(self.path))

    def collect(
        self, total: int, compute: Callable[[int], Iterator[tuple[Column, ...]]], done: Callable[[int], Any]
    ) -> tuple[Column, ...]:
        """All columns: those on disk, then computed ones, recorded part by part.

        Args:
            total: number of triplets.
            compute: gives the columns from a triplet on, part by part.
            done: called with the number of triplets of a part.

        Raises:
            RlpipsError: the file is of another run, damaged, or another run is writing to it.
            KeyboardInterrupt: Ctrl-C was pressed; the computed numbers are recorded.
        """
        header = json.dumps({"columns": list(self.columns), **self.settings}, ensure_ascii=False, default=str) + "\n"
        parts: list[tuple[Column, ...]] = []
        with Journal(self.columns_path, header) as journal:
            for record in journal.recorded():
                parts.append(self._parse(record, journal, len(parts)))
                done(len(parts[-1][0]))
            count = sum(len(part[0]) for part in parts)
            for part in compute(count) if count < total else ():
                journal.append(self._line(part))
                parts.append(part)
                done(len(part[0]))
                interrupts.check()
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def finish(self, results: dict[str, Any], seconds: float) -> None:
        """Writes the document, unless it exists with the same content.

        Args:
            results: of the run.
            seconds: time that this process took.
        """
        found = json.loads(reports.json_text({**self.settings, **results}))
        with contextlib.suppress(OSError, ValueError):
            if found.items() <= self.document.items():
                return
        document = {
            **self.settings,
            **results,
            "columns": self.columns_path.name,
            "command": shlex.join(["rlpips", *sys.argv[1:]]),
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": {
                "rlpips-jax": __version__,
                "jax": jax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "device": str(jax.devices()[0]),
            },
        }
        write_whole(self.path, reports.json_text(document) + "\n")

    def _line(self, part: Sequence[Column]) -> str:
        columns = (", ".join(map(_text, column)) for column in part)
        return f"[{', '.join(f'[{column}]' for column in columns)}]\n"

    def _parse(self, record: bytes, journal: Journal, index: int) -> tuple[Column, ...]:
        try:
            lists = json_value(record)
            if not isinstance(lists, list) or len(lists) != len(self.columns):
                raise ValueError(f"not {len(self.columns)} columns")
            part = tuple(_column(one, dtype) for one, dtype in zip(lists, self.columns.values(), strict=True))
            if {column.shape for column in part} != {(len(part[0]),)}:
                raise ValueError("columns of different lengths")
        except (ValueError, TypeError) as error:
            raise journal.refusal(index + 2, f"damaged ({error})", f"a part of {self.path.name}") from error
        return part


def _column(values: Any, dtype: type[np.generic]) -> Column:
    """Recorded values as an array; raises a TypeError where one is of another type, such as a number in quotes."""
    wanted = {np.bool_: bool, np.int64: int}.get(dtype, (int, float))
    for value in values:
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise TypeError(f"{json.dumps(value)} in a column of {np.dtype(dtype).name}")
    return np.asarray(values, dtype)


def metric_of(document: dict[str, Any]) -> str:
    """The name of the metric of a result, with the number of samples of a randomised one."""
    samples = document.get("samples")
    return f"{document['metric']} ({samples})" if samples else document["metric"]


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically; makes its folder."""
    with replacing(path) as file:
        file.write(text.encode())


def _text(value: np.generic) -> str:
    if isinstance(value, np.floating):
        return reports.decimal(value)
    return json.dumps(value.item())

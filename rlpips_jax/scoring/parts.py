"""Results in a folder of numbered files, each written as a whole, by whichever machine computes it.

Part 7 of a run holds the results of the pairs of part 7, in their order, whoever writes it and however often: a part
that is written twice, because the machine that wrote it first was lost before it could say so, is the same file. So no
pair is lost and none is there twice, and a run goes on with the parts that are missing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlpips_jax.errors import RlpipsError
from rlpips_jax.files.atomic import replacing
from rlpips_jax.scoring.pairs import Pair, Result
from rlpips_jax.scoring.records import JsonLines, printable

PartForm = Literal["jsonl", "parquet"]
"""JSON lines as `score` writes them, or Parquet."""

RUN = "run.json"
"""What all parts have in common."""


@dataclass(frozen=True)
class Parts:
    """The files of a run. `begin` makes the folder, or takes that of an interrupted run.

    Attributes:
        folder: on a file system that all machines share.
        form: of the files.
        lines: results as JSON lines; their header says which metric's they are.
        columns: the names of what a result has beside its distance.
        pairs: how the pairs are cut into parts, in words; the parts of another cut hold other pairs.
    """

    folder: Path
    form: PartForm
    lines: JsonLines
    columns: tuple[str, ...] = ()
    pairs: str = ""

    def begin(self) -> None:
        """Makes the folder, or checks that it is of this run.

        Raises:
            RlpipsError: it is of another run, or of none; it stays as it is.
            OSError: it cannot be written.
        """
        facts = json.loads(self.lines.header) | {"form": self.form, "pairs": self.pairs}
        path = self.folder / RUN
        if path.exists():
            found = json.loads(path.read_text())
            differing = [name for name, value in facts.items() if found.get(name) != value]
            if differing:
                raise RlpipsError(
                    f"{self.folder} is of another run and was left as it is: its {differing[0]} is "
                    f"{found.get(differing[0])!r}, not {facts[differing[0]]!r}; choose another --out"
                )
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise RlpipsError(f"{self.folder} has files of something else and was left as it is: choose another --out")
        with replacing(path, durable=True) as file:
            file.write((json.dumps(facts, indent=2) + "\n").encode())

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:06d}.{self.form}"

    def recorded(self, number: int, pairs: Iterable[Pair]) -> list[Result] | None:
        """The results of a part that is there already; None if it is not.

        Raises:
            RlpipsError: the file is damaged, or of other pairs.
        """
        path = self.path(number)
        if not path.exists():
            return None
        try:
            results = self._read(path)
        except (ValueError, OSError) as error:
            raise RlpipsError(
                f"{path} is damaged ({error}): delete it, and the same command computes it again"
            ) from error
        names = [(printable(pair.reference), printable(pair.image)) for pair in pairs]
        if [(result.reference, result.image) for result in results] != names:
            raise RlpipsError(f"{path} has results of other pairs: choose another --out, or repeat that run's pairs")
        return results

    def write(self, number: int, results: Sequence[Result]) -> None:
        """Writes a part; it is on disk, or the one before stays."""
        with replacing(self.path(number), durable=True) as file:
            if self.form == "parquet":
                _parquet().write_table(self._table(results), file)
            else:
                file.write(self.lines.header.encode("utf-8", "surrogateescape"))
                file.writelines(self.lines.line(result).encode("utf-8", "surrogateescape") for result in results)

    def _read(self, path: Path) -> list[Result]:
        if self.form == "parquet":
            return [self._result(row) for row in _parquet().read_table(path).to_pylist()]
        with open(path, "rb") as file:
            if file.readline().decode("utf-8", "surrogateescape") != self.lines.header:
                raise ValueError("its first line is of another run")
            return [self.lines.parse(record) for record in self.lines.records(file)]

    def _result(self, row: dict[str, Any]) -> Result:
        distance, error = row["distance"], row["error"]
        measures = {name: np.float64(row[name]) for name in self.columns if row[name] is not None}
        number = None if distance is None else np.float64(distance)
        return Result(row["reference"], row["image"], number, error, True, measures)

    def _table(self, results: Sequence[Result]) -> Any:
        import pyarrow

        def column(values: Iterable[Any], kind: Any) -> Any:
            return pyarrow.array(list(values), kind)

        text, number = pyarrow.string(), pyarrow.float64()
        columns = {
            "reference": column((printable(result.reference) for result in results), text),
            "image": column((printable(result.image) for result in results), text),
            "distance": column((None if r.distance is None else float(r.distance) for r in results), number),
            "error": column((None if r.error is None else printable(r.error) for r in results), text),
        }
        for name in self.columns:
            values = (None if name not in r.measures else float(r.measures[name]) for r in results)
            columns[name] = column(values, number)
        facts = json.loads(self.lines.header)
        return pyarrow.table(columns).replace_schema_metadata({name: facts[name] for name in ("signature", "metric")})


def _parquet() -> Any:
    """Comes with the extra "ray"."""
    import pyarrow.parquet

    return pyarrow.parquet

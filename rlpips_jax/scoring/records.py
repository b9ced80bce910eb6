"""Results as they come: JSON lines or CSV rows, to stdout or to a file that a later run goes on with."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from rlpips_jax import reports
from rlpips_jax.distances.lpips import Metric
from rlpips_jax.errors import MetricError
from rlpips_jax.files.journal import Journal
from rlpips_jax.scoring.batches import Pair, Result

COLUMNS = ("image", "distance", "reference", "signature", "error")


class Record(NamedTuple):
    """What a line of a file says of a pair, as far as it tells pairs and runs apart."""

    reference: str
    image: str
    failed: bool
    signature: str | None = None


class JsonLines:
    """A header with signature and metric, then an object a line: reference, image, and distance or error."""

    def __init__(self, metric: Metric) -> None:
        self.signature = metric.signature
        self.header = json.dumps({"signature": metric.signature, "metric": metric.name}, ensure_ascii=False) + "\n"

    def line(self, result: Result) -> str:
        """The line, or lines, of a result."""
        names = json.dumps({"reference": result.reference, "image": result.image}, ensure_ascii=False)
        if result.distance is None:
            outcome = f'"error": {json.dumps(result.error, ensure_ascii=False)}'
        else:
            outcome = f'"distance": {reports.decimal(result.distance)}'
        return f"{names[:-1]}, {outcome}}}\n"

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The records after the header, each with its end; the last may be torn."""
        return iter(file)

    def whole(self, record: bytes) -> bool:
        """Whether a record was written to its end."""
        return record.endswith(b"\n")

    def parse(self, record: bytes) -> Record:
        """What a record says; ValueError if it is none."""
        entry = json.loads(record.decode("utf-8", "surrogateescape"))
        if not isinstance(entry, dict) or ("distance" in entry) == ("error" in entry):
            raise ValueError("neither a distance nor an error")
        if {type(entry.get(name)) for name in ("reference", "image")} != {str}:
            raise ValueError("no names")
        return Record(entry["reference"], entry["image"], "error" in entry)


class CsvRows:
    """CSV: image, distance, reference, signature, error. Where there is an error, there is no distance."""

    def __init__(self, metric: Metric) -> None:
        self.signature = metric.signature
        self.header = self._row(COLUMNS)

    def line(self, result: Result) -> str:
        """The line, or lines, of a result."""
        value = "" if result.distance is None else reports.decimal(result.distance)
        return self._row((result.image, value, result.reference, self.signature, result.error or ""))

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The records after the header, each with its end; the last may be torn."""
        record = b""
        for line in file:
            record += line
            # The name of a file may contain line breaks, which stand between quotation marks.
            if self.whole(record):
                yield record
                record = b""
        if record:
            yield record

    def whole(self, record: bytes) -> bool:
        """Whether a record was written to its end."""
        return record.endswith(b"\n") and record.count(b'"') % 2 == 0

    def parse(self, record: bytes) -> Record:
        """What a record says; ValueError if it is none."""
        try:
            ((image, value, reference, signature, error),) = csv.reader(
                io.StringIO(record.decode("utf-8", "surrogateescape"), newline=""), strict=True
            )
        except csv.Error as problem:
            raise ValueError(str(problem)) from problem
        if bool(value) == bool(error):
            raise ValueError("neither a distance nor an error")
        return Record(reference, image, not value, signature)

    @staticmethod
    def _row(cells: Iterable[str]) -> str:
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerow(cells)
        return file.getvalue()


class PlainRows:
    """Rows for people, the distance first: it alone has a width that is known before all results are."""

    def __init__(self, metric: Metric) -> None:
        self.header = f"# {metric.signature}\ndistance  reference  image\n"

    def line(self, result: Result) -> str:
        """The line, or lines, of a result."""
        if result.distance is None:
            return ""
        return f"{reports.plain(result.distance):>8}  {result.reference}  {result.image}\n"


Form = JsonLines | CsvRows | PlainRows
RecordForm = JsonLines | CsvRows

FORMS: dict[str, type[JsonLines] | type[CsvRows]] = {".jsonl": JsonLines, ".csv": CsvRows}
"""The forms of files, by their suffixes."""


def form_of(path: Path) -> type[JsonLines] | type[CsvRows]:
    """The form that a file's suffix states.

    Raises:
        MetricError: an unknown suffix.
    """
    if path.suffix.lower() not in FORMS:
        raise MetricError(f"--out {path} must end in {' or '.join(FORMS)}, which states the form")
    return FORMS[path.suffix.lower()]


class Printed:
    """Results on stdout, as they come."""

    def __init__(self, form: Form) -> None:
        self._form = form
        sys.stdout.write(form.header)
        sys.stdout.flush()

    def write(self, results: list[Result]) -> None:
        """Prints results."""
        sys.stdout.write("".join(map(self._form.line, results)))
        sys.stdout.flush()


class Recorded:
    """Results in a file, as a `Journal` keeps them; the records are compared with the run that is asked for.

    Args:
        path: the file.
        form: of the results.

    Raises:
        RlpipsError: another run is writing to the file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, form: RecordForm) -> None:
        self._form = form
        self._journal = Journal(path, form.header)

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.__exit__()

    def resume(self, pairs: Iterator[Pair]) -> tuple[int, int]:
        """Takes from `pairs` what the file holds already, and makes the file ready for the rest.

        Returns:
            How many pairs are recorded, and how many of them failed.

        Raises:
            RlpipsError: the file is of another run; names the first difference.
        """
        count = failed = 0
        for record in self._journal.recorded(self._form.records, self._form.whole):
            failed += self._check(record, next(pairs, None), count)
            count += 1
        return count, failed

    def write(self, results: list[Result]) -> None:
        """Appends results; when this returns, they are on disk."""
        self._journal.append("".join(map(self._form.line, results)))

    def _check(self, record: bytes, pair: Pair | None, count: int) -> bool:
        """Whether the pair that a record is of failed."""
        refusal, number = self._journal.refusal, count + 2
        try:
            found = self._form.parse(record)
        except ValueError as error:
            raise refusal(number, f"damaged or of another program ({error})", "a result") from error
        if pair is None:
            raise refusal(number, f"a result of {_named(found)}", f"the end, after {count} pairs")
        if (found.reference, found.image) != (pair.reference, pair.image):
            raise refusal(number, f"a result of {_named(found)}", f"one of {_named(pair)}")
        if found.signature not in (None, self._form.signature):
            raise refusal(number, f"of {found.signature}", f"of {self._form.signature}")
        return found.failed


def _named(pair: Any) -> str:
    return f"'{pair.reference}' and '{pair.image}'"

"""Results in a file, as JSON lines or CSV rows, that a later run goes on with.

Each line ends with the CRC-32 of what stands before it, so that a number that was changed or damaged is noticed.
"""

import csv
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlpips_jax.distances.protocol import Metric
from rlpips_jax.errors import MetricError
from rlpips_jax.files.decimals import decimal
from rlpips_jax.files.journal import Journal
from rlpips_jax.files.json_object import json_object
from rlpips_jax.scoring.pairs import Pair, Result

COLUMNS = ("image", "distance", "reference", "signature", "error", "check")


class JsonLines:
    """A header with signature and metric, then one object per line: reference, image, distance or error, check."""

    def __init__(self, metric: Metric) -> None:
        self.header = json.dumps({"signature": metric.signature, "metric": metric.name}, ensure_ascii=False) + "\n"

    def line(self, result: Result) -> str:
        """The line of a result, with its end."""
        names = json.dumps({"reference": result.reference, "image": result.image}, ensure_ascii=False)
        if result.distance is None:
            outcome = f'"error": {json.dumps(result.error, ensure_ascii=False)}'
        else:
            outcome = f'"distance": {decimal(result.distance)}'
        body = f"{names[:-1]}, {outcome}"
        return f'{body}, "check": "{_check(body)}"}}\n'

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The records after the header, each with its end; the last one may be cut off."""
        return iter(file)

    def whole(self, record: bytes) -> bool:
        """Whether a record was written to its end."""
        return record.endswith(b"\n")

    def parse(self, record: bytes) -> Result:
        """The result in a record; ValueError if it is damaged."""
        body = _checked(record, separator=', "check": "', end='"}\n')
        entry = json_object(body + "}", parse_float=_number, parse_constant=_refused)
        reference, image, distance, error = map(entry.get, ("reference", "image", "distance", "error"))
        if not isinstance(reference, str) or not isinstance(image, str):
            raise ValueError("it does not name two images")
        if not (isinstance(distance, np.floating) and error is None) and not (
            isinstance(error, str) and distance is None
        ):
            raise ValueError("it has neither a distance nor an error")
        return Result(reference, image, distance, error, recorded=True)


class CsvRows:
    """CSV with a header; a row has a distance or an error."""

    def __init__(self, metric: Metric) -> None:
        self._signature = metric.signature
        self.header = _row(COLUMNS) + "\n"

    def line(self, result: Result) -> str:
        """The row of a result, with its end; names with line breaks make it several lines."""
        value = "" if result.distance is None else decimal(result.distance)
        body = _row((result.image, value, result.reference, self._signature, result.error or ""))
        return f"{body},{_check(body)}\n"

    def records(self, file: IO[bytes]) -> Iterator[bytes]:
        """The records after the header, each with its end; the last one may be cut off."""
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

    def parse(self, record: bytes) -> Result:
        """The result in a record; ValueError if it is damaged, or of another metric."""
        body = _checked(record, separator=",", end="\n")
        ((image, value, reference, signature, error),) = csv.reader(io.StringIO(body, newline=""), strict=True)
        if signature != self._signature:
            raise ValueError(f"of {signature}, not of {self._signature}")
        if bool(value) == bool(error):
            raise ValueError("it has neither a distance nor an error")
        return Result(reference, image, _number(value) if value else None, error or None, recorded=True)


RecordForm = JsonLines | CsvRows

FORMS: dict[str, type[JsonLines] | type[CsvRows]] = {".jsonl": JsonLines, ".csv": CsvRows}
"""The forms of files, by their suffixes."""


def form_of(path: Path) -> type[JsonLines] | type[CsvRows]:
    """The form that a file's suffix stands for.

    Raises:
        MetricError: an unknown suffix.
    """
    if path.suffix.lower() not in FORMS:
        raise MetricError(f"a results file must end in {' or '.join(FORMS)}, which states its form, got {path}")
    return FORMS[path.suffix.lower()]


def recorded_results(journal: Journal, form: RecordForm, pairs: Iterator[Pair]) -> Iterator[Result]:
    """The results that a file holds, compared with the pairs that they should be of, which are taken from `pairs`.

    When they are exhausted, the journal is ready for the rest.

    Raises:
        RlpipsError: the file is of another run, and stays as it is; names the first difference.
    """
    for number, record in enumerate(journal.recorded(form.records, form.whole), start=2):
        try:
            found = form.parse(record)
        except ValueError as error:
            raise journal.refusal(number, f"damaged, changed or of another run ({error})", "a result") from error
        pair = next(pairs, None)
        if pair is None:
            raise journal.refusal(number, f"a result of {_named(found)}", f"the end, after {number - 2} pairs")
        if (found.reference, found.image) != (pair.reference, pair.image):
            raise journal.refusal(number, f"a result of {_named(found)}", f"one of {_named(pair)}")
        yield found


def _row(cells: Iterable[str]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(cells)
    return file.getvalue()[:-1]


def _check(body: str) -> str:
    return f"{zlib.crc32(body.encode('utf-8', 'surrogateescape')):08x}"


def _checked(record: bytes, *, separator: str, end: str) -> str:
    """A record without its checksum; ValueError if that is not its own."""
    body, _, rest = record.decode("utf-8", "surrogateescape").rpartition(separator)
    if rest != _check(body) + end:
        raise ValueError("its checksum does not match")
    return body


def _number(text: str) -> np.floating:
    """The number that was written: float32 where that gives the same digits; ValueError if it is not finite."""
    short = np.float32(text)
    if not np.isfinite(np.float64(text)):
        _refused(text)
    return short if decimal(short) == text else np.float64(text)


def _refused(text: str) -> None:
    raise ValueError(f"{text} is not a distance")


def _named(pair: Any) -> str:
    return f"'{pair.reference}' and '{pair.image}'"

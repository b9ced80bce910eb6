"""Results in a file, as JSON lines or CSV rows, that a later run goes on with.

Each line ends with the CRC-32 of what stands before it, so that a number that was changed or damaged is noticed.
"""

import csv
import functools
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlpips_jax.distances.protocol import Metric, RandomMetric
from rlpips_jax.errors import MetricError
from rlpips_jax.files.decimals import decimal
from rlpips_jax.files.journal import Journal
from rlpips_jax.files.json_object import json_object
from rlpips_jax.scoring.pairs import Pair, Result

COLUMNS = ("image", "distance", "reference", "signature", "error", "check")
"""Of CSV; further measures stand behind the distance."""


FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets take for formulas."""


class JsonLines:
    """A header with signature and metric, then one object per line: reference, image, distance or error, check.

    Further measures stand behind the distance; one that is not finite, such as the PSNR of equal images, is null.
    """

    def __init__(self, metric: Metric | RandomMetric, signature: str = "", measures: Sequence[str] = ()) -> None:
        self._measures = tuple(measures)
        header = {"signature": signature or metric.signature, "metric": metric.name}
        self.header = json.dumps(header | ({"measures": self._measures} if measures else {}), ensure_ascii=False) + "\n"

    def line(self, result: Result) -> str:
        """The line of a result, with its end."""
        names = json.dumps(
            {"reference": printable(result.reference), "image": printable(result.image)}, ensure_ascii=False
        )
        if result.distance is None:
            outcome = f'"error": {json.dumps(printable(result.error or ""), ensure_ascii=False)}'
        else:
            values = {"distance": result.distance, **result.measures}
            outcome = ", ".join(
                f'"{name}": {decimal(value) if np.isfinite(value) else "null"}' for name, value in values.items()
            )
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
        measures = {} if distance is None else {name: _measure(entry.get(name)) for name in self._measures}
        return Result(reference, image, distance, error, recorded=True, measures=measures)


class CsvRows:
    """CSV with a header; a row has a distance or an error, and further measures behind the distance.

    A text is written as it is, or if it is to be `safe` for spreadsheets, with an apostrophe before it where they would
    take it for a formula: before `FORMULAS`, and before an apostrophe, so that none is ambiguous.
    """

    def __init__(
        self, metric: Metric | RandomMetric, signature: str = "", measures: Sequence[str] = (), *, safe: bool = False
    ) -> None:
        self._signature = signature or metric.signature
        self._measures = tuple(measures)
        self._safe = safe
        self.header = _row((*COLUMNS[:2], *measures, *COLUMNS[2:])) + "\n"

    def line(self, result: Result) -> str:
        """The row of a result, with its end; names with line breaks make it several lines."""
        value = "" if result.distance is None else decimal(result.distance)
        found = [result.measures.get(name) for name in self._measures]
        measures = ("" if value is None else decimal(value) if np.isfinite(value) else str(value) for value in found)
        image, *texts = map(self._quoted, (result.image, result.reference, self._signature, result.error or ""))
        body = _row((image, value, *measures, *texts))
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
        ((image, value, *measures, reference, signature, error),) = csv.reader(
            io.StringIO(body, newline=""), strict=True
        )
        image, reference, signature, error = map(self._unquoted, (image, reference, signature, error))
        if signature != self._signature:
            raise _OtherMetric(signature, self._signature)
        if bool(value) == bool(error):
            raise ValueError("it has neither a distance nor an error")
        found = dict(zip(self._measures, map(_measure, measures), strict=True)) if value else {}
        return Result(reference, image, _number(value) if value else None, error or None, True, found)

    def _quoted(self, text: str) -> str:
        text = printable(text)
        return f"'{text}" if self._safe and text.startswith((*FORMULAS, "'")) else text

    def _unquoted(self, text: str) -> str:
        return text.removeprefix("'") if self._safe else text


RecordForm = JsonLines | CsvRows

FORMS: dict[str, type[JsonLines] | type[CsvRows]] = {".jsonl": JsonLines, ".csv": CsvRows}
"""The forms of files, by their suffixes."""


def form_of(path: Path, *, csv_safe: bool = False) -> Callable[..., RecordForm]:
    """The form that a file's suffix stands for, made of a metric, a signature and names of measures.

    Args:
        path: the file.
        csv_safe: whether rows of CSV are made safe for spreadsheets.

    Raises:
        MetricError: an unknown suffix, or one other than .csv, where that is to be safe.
    """
    if path.suffix.lower() not in FORMS:
        raise MetricError(f"a results file must end in {' or '.join(FORMS)}, which states its form, got {path}")
    form = FORMS[path.suffix.lower()]
    if not csv_safe:
        return form
    if form is not CsvRows:
        raise MetricError(f"only CSV is made safe for spreadsheets, and {path} is not CSV: let it end in .csv")
    return functools.partial(CsvRows, safe=True)


class _OtherMetric(ValueError):
    """A record has the signature of another metric: that, and the one that it should have."""


def recorded_results(journal: Journal, form: RecordForm, pairs: Iterator[Pair]) -> Iterator[Result]:
    """The results that a file holds, compared with the pairs that they should be of, which are taken from `pairs`.

    When they are exhausted, the journal is ready for the rest.

    Raises:
        RlpipsError: the file is of another run, and stays as it is; names the first difference.
    """
    for number, record in enumerate(journal.recorded(form.records, form.whole), start=2):
        try:
            found = form.parse(record)
        except _OtherMetric as error:
            found, wanted = error.args
            raise journal.refusal(number, f"a result by {found}", f"one by {wanted}") from error
        except ValueError as error:
            raise journal.refusal(number, f"damaged, changed or of another run ({error})", "a result") from error
        pair = next(pairs, None)
        if pair is None:
            raise journal.refusal(number, f"a result of {_named(found)}", f"the end, after {number - 2} pairs")
        if (found.reference, found.image) != (printable(pair.reference), printable(pair.image)):
            raise journal.refusal(number, f"a result of {_named(found)}", f"one of {_named(pair)}")
        yield replace(found, reference=pair.reference, image=pair.image)


def printable(name: str) -> str:
    """The name of a file as text: bytes that are not UTF-8 become `\\xff`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _row(cells: Iterable[str]) -> str:
    file = io.StringIO()
    # Cells with a character of this line terminator are put between quotation marks.
    csv.writer(file, lineterminator="\r\n").writerow(cells)
    return file.getvalue()[:-2]


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


def _measure(value: Any) -> np.floating:
    """A measure in a record; NaN where it was not finite, or not a number."""
    return np.float32("nan" if value is None else value) if not isinstance(value, np.floating) else value


def _refused(text: str) -> None:
    raise ValueError(f"{text} is not a distance")


def _named(pair: Any) -> str:
    return f"'{pair.reference}' and '{pair.image}'"

"""Numbers and tables as text: for people, JSON and CSV.

Distances in JSON and CSV are plain decimals with the fewest digits that give back the same float32, never with an
exponent.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np

from rlpips_jax.files.decimals import decimal
from rlpips_jax.scoring.records import printable


def plain(value: SupportsFloat) -> str:
    """A number for people: six decimals; exactly 0 is "0", so that it differs from a small number."""
    return "0" if value == 0 else f"{float(value):.6f}"


def json_text(document: object) -> str:
    """JSON of nested dictionaries and lists, NumPy numbers written by `decimal`."""
    return _json(document, "\n")


def _json(value: Any, line: str) -> str:
    inner = line + "  "
    if isinstance(value, Mapping) and value:
        # A mapping without nested values is written on one line: one result per line.
        flat = line != "\n" and not any(isinstance(item, Mapping | list | tuple) for item in value.values())
        items = [f"{json.dumps(str(key), ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}" if flat else f"{{{inner}{f',{inner}'.join(items)}{line}}}"
    if isinstance(value, list | tuple) and value:
        return f"[{inner}{f',{inner}'.join(_json(item, inner) for item in value)}{line}]"
    if isinstance(value, np.floating):
        return decimal(value)
    # A name of a file whose bytes are not UTF-8 cannot be written otherwise.
    return json.dumps(printable(value) if isinstance(value, str) else value, ensure_ascii=False)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with a header, NumPy numbers written by `decimal`; ends with a newline."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([decimal(cell) if isinstance(cell, np.floating) else cell for cell in row] for row in rows)
    return file.getvalue()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart; columns of numbers are right-aligned. No newline at the end."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [len(column) > 1 and all(map(_is_number, column[1:])) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def cell(score: Mapping[str, float] | None) -> str:
    """A score and its interval; "-" where there is not one."""
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else "-"


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and the number of others."""
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"

"""Cells of a worksheet in an `.xlsx` file, a zip archive of XML (ECMA-376). Formulas give their stored values."""

import os
import re
import zipfile
from xml.etree import ElementTree

from rlpips_jax.errors import SpreadsheetError
from rlpips_jax.files.regular import open_regular

LARGEST = 1 << 23
"""Most bytes of one member of the archive, unpacked; as a tree of elements they take 25 times as much memory."""

NAMES = {
    "main": "http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    "relation": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
    "package": "http://schemas.openxmlformats.org/package/2006/relationships",
}


def read_sheet(path: str | os.PathLike[str], name: str) -> list[dict[str, str]]:
    """The rows of a worksheet: the text of each cell that is not empty, by the letters of its column.

    Args:
        path: the `.xlsx` file.
        name: of the worksheet.

    Raises:
        SpreadsheetError: the file is missing, damaged or of another kind, or has no such worksheet.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            sheets = {
                sheet.attrib["name"]: sheet.attrib[f"{{{NAMES['relation']}}}id"]
                for sheet in _parse(archive, "xl/workbook.xml").iterfind(".//main:sheet", NAMES)
            }
            if name not in sheets:
                raise SpreadsheetError(f"{path} has no worksheet {name!r}, only {', '.join(sheets)}")
            relations = _parse(archive, "xl/_rels/workbook.xml.rels").iterfind("package:Relationship", NAMES)
            targets = {relation.attrib["Id"]: relation.attrib["Target"] for relation in relations}
            target = targets[sheets[name]]
            shared = []
            if "xl/sharedStrings.xml" in archive.namelist():
                shared = [_text(item) for item in _parse(archive, "xl/sharedStrings.xml").iterfind("main:si", NAMES)]
            sheet = _parse(archive, target[1:] if target.startswith("/") else f"xl/{target}")
        return [_cells(row, shared) for row in sheet.iterfind(".//main:row", NAMES)]
    except SpreadsheetError:
        raise
    except Exception as error:  # Damaged archives raise nearly anything.
        raise SpreadsheetError(f"{path} cannot be read as an .xlsx file: {error}") from error


def _parse(archive: zipfile.ZipFile, member: str) -> ElementTree.Element:
    with archive.open(member) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{member} unpacks to more than {LARGEST >> 20} MiB")
    if b"<!DOCTYPE" in content:  # Entities, which no such file has, can grow without end.
        raise ValueError(f"{member} has a document type")
    return ElementTree.fromstring(content)


def _text(item: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in item.iterfind(".//main:t", NAMES))


def _cells(row: ElementTree.Element, shared: list[str]) -> dict[str, str]:
    cells = {}
    for cell in row.iterfind("main:c", NAMES):
        kind, value = cell.get("t"), cell.findtext("main:v", default="", namespaces=NAMES)
        text = _text(cell) if kind == "inlineStr" else shared[int(value)] if kind == "s" else value
        if text:
            cells[re.sub(r"\d", "", cell.attrib["r"])] = text
    return cells

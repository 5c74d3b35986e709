"""Spreadsheets (.xlsx): rows by the names in the first row of each sheet, as in CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from xml.etree.ElementTree import Element

from stages.corpus_prep.reading.archives import Archive, local, opened_archive, relations
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile

WORKBOOK = "xl/workbook.xml"
MAX_COLUMNS = 16_384
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def read_xlsx(file: SourceFile, notes: ReadNotes) -> Iterator[ReadRow]:
    """Rows of all sheets, numbered through. Raises DamagedFile where no sheet has a row below its names."""
    numbers = count()
    with opened_archive(file) as archive:
        shared = _shared_strings(archive)
        related = relations(archive, WORKBOOK)
        for sheet in (e for e in archive.xml(WORKBOOK).iter() if local(e) == "sheet"):
            member = related.get(sheet.get(_RELATION, ""), ("", ""))[1]
            rows = _rows(archive.xml(member), shared) if member in archive.names else iter(())
            names, rows = _below_titles(rows)
            for values in rows:
                fields = {n: v for n, v in zip(names, values, strict=False) if n}
                if any(fields.values()):
                    yield ReadRow(
                        {name: fields.get(name, "") for name in names if name}, number=next(numbers)
                    )
    if next(numbers) == 0:
        raise DamagedFile("no_records", "has no row below a row of names", "the first row names the columns")


def _below_titles(rows: Iterator[list[str]]) -> tuple[list[str], Iterator[list[str]]]:
    """(column names, rows below them). Lines with a single cell above a table are its title."""
    above: list[list[str]] = []
    for row in rows:
        if sum(map(bool, row)) > 1:
            return [name.strip() for name in row], rows
        above.append(row)
    first = above[0] if above else []
    return [name.strip() for name in first], iter(above[1:])


def _shared_strings(archive: Archive) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.names:
        return []
    return [_text(item) for item in archive.xml("xl/sharedStrings.xml") if local(item) == "si"]


def _text(item: Element) -> str:
    """Text without the reading aids (rPh) that Japanese files have."""
    parts = []
    for element in item:
        if local(element) == "t":
            parts.append(element.text or "")
        elif local(element) == "r":
            parts.append(_text(element))
    return "".join(parts)


def _rows(sheet: Element, shared: list[str]) -> Iterator[list[str]]:
    for row in (e for e in sheet.iter() if local(e) == "row"):
        values: list[str] = []
        for cell in row:
            column = _column(cell.get("r", "")) if cell.get("r") else len(values)
            if column < MAX_COLUMNS:
                values += [""] * (column + 1 - len(values))
                values[column] = _value(cell, shared)
        if any(values):
            yield values


def _column(reference: str) -> int:
    """`AB12` -> 27."""
    letters = re.match(r"[A-Z]+", reference)
    number = 0
    for letter in letters[0] if letters else "A":
        number = number * 26 + ord(letter) - 64
    return number - 1


def _value(cell: Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    inline = next((e for e in cell if local(e) == "is"), None)
    if inline is not None:
        return _text(inline)
    value = next((e.text or "" for e in cell if local(e) == "v"), "")
    if kind == "s":
        index = int(value) if value.isdigit() else -1
        return shared[index] if 0 <= index < len(shared) else ""
    return value

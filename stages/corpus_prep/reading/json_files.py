"""Files that are one JSON value: a list of records, or a notebook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes
from stages.corpus_prep.reading.plain_text import decoded, heading
from stages.corpus_prep.reading.rows import Fields, ReadRow
from stages.corpus_prep.reading.sources import SourceFile

MAX_JSON_BYTES = 256 << 20


def whole(stream: IO[bytes], limit_bytes: int, hint: str) -> bytes:
    """All bytes of a stream. Raises DamagedFile where there are more than `limit_bytes`."""
    parts, left = [], limit_bytes + 1
    while left and (data := stream.read(min(left, 1 << 20))):
        parts.append(data)
        left -= len(data)
    if not left:
        raise DamagedFile(
            "too_large",
            f"is over {limit_bytes >> 20} MB, and a file of its kind must be read as a whole",
            hint,
        )
    return b"".join(parts)


def _loaded(stream: IO[bytes], notes: ReadNotes, hint: str) -> Any:
    data = whole(stream, MAX_JSON_BYTES, "turn it into JSON Lines: jq -c '.[]' FILE.json > FILE.jsonl")
    try:
        return json.loads(decoded(data, notes).lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile("broken", f"is no JSON: {error}", hint) from None


def read_json(file: SourceFile, stream: IO[bytes], notes: ReadNotes) -> Iterator[ReadRow]:
    """A list of objects, or an object that holds one list of them; rows have numbers."""
    value = _loaded(stream, notes, "mend it, or name it .jsonl if it has one record per line")
    rows = _list_of_rows(value)
    if rows is None:
        found = f"an object with {sorted(value)[:8]}" if isinstance(value, dict) else type(value).__name__
        raise DamagedFile(
            "no_records", f"holds {found}", 'expected a list of records, or {"data": [records]}'
        )
    for number, row in enumerate(rows):
        yield ReadRow(row, number=number)


def _list_of_rows(value: Any) -> list[Fields] | None:
    if isinstance(value, list):
        rows = [{"text": item} if isinstance(item, str) else item for item in value]
        return rows if all(isinstance(row, dict) for row in rows) else None
    if not isinstance(value, dict):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return _list_of_rows(lists[0]) if len(lists) == 1 else [value]


def read_notebook(file: SourceFile, stream: IO[bytes], notes: ReadNotes) -> Iterator[ReadRow]:
    """A Jupyter notebook (nbformat 3 and 4): its Markdown, its code in fences, and what the code printed.

    Pictures, HTML and errors that cells gave are left out, and of long prints all but the beginning.
    """
    value = _loaded(stream, notes, "open it in Jupyter and save it again")
    cells = value.get("cells") if isinstance(value, dict) else None
    if cells is None and isinstance(value, dict) and value.get("worksheets"):
        cells = [cell for sheet in value["worksheets"] for cell in sheet.get("cells", [])]
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise DamagedFile("broken", "is no notebook: it has no cells", "open it in Jupyter and save it again")
    language = _language(value)
    text = "\n\n".join(part for cell in cells if (part := _cell(cell, language)))
    if not text:
        raise DamagedFile("no_text", "is a notebook without text", "leave it out")
    yield ReadRow({"title": heading(text) or file.path.stem, "text": text + "\n"}, number=0)


MAX_PRINTED_CHARACTERS = 2000


def _language(value: Fields) -> str:
    about = value.get("metadata") or {}
    named = (about.get("kernelspec") or {}).get("language") or (about.get("language_info") or {}).get("name")
    return str(named or "python")


def _joined(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _cell(cell: Fields, language: str) -> str:
    text = _joined(cell.get("source", cell.get("input"))).strip("\n")
    if cell.get("cell_type") != "code":
        level = cell.get("level")  # nbformat 3 has heading cells
        return f"{'#' * int(level)} {text}" if cell.get("cell_type") == "heading" and level else text
    if not text.strip():
        return ""
    printed = "".join(map(_printed, cell.get("outputs") or []))[:MAX_PRINTED_CHARACTERS].strip("\n")
    code = f"```{language}\n{text}\n```"
    return f"{code}\n\n```\n{printed}\n```" if printed.strip() else code


def _printed(output: Any) -> str:
    if not isinstance(output, dict) or output.get("output_type") == "error":
        return ""
    data = output.get("data") or {}
    return _joined(output.get("text") or data.get("text/plain"))

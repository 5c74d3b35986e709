"""Rows of the user's files, one at a time: text, Markdown, JSON, JSON Lines, CSV, Parquet, each also as .gz.

Memory stays bounded whatever the size of a file: Parquet is read in small batches, lines one by one, and a
plain text is cut into documents at paragraph ends. Only a `.json` file must fit, and has a limit for that.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.text_repair import decode_bytes
from stages.runtime.errors import UserError

MAX_JSON_BYTES = 256 << 20
PIECE_BYTES = 256 << 10
MAX_LINE_BYTES = 64 << 20
ROWS_PER_BATCH = 128

Row = dict[str, Any]


@dataclass
class ReadNotes:
    """What a reader noticed: encodings other than UTF-8, and lines that it had to leave out."""

    encodings: dict[str, int] = field(default_factory=dict)
    bad_lines: list[tuple[int, str]] = field(default_factory=list)

    def count(self, encoding: str) -> None:
        """Count one piece of text that was in `encoding`."""
        if encoding != "utf-8":
            self.encodings[encoding] = self.encodings.get(encoding, 0) + 1


def read_rows(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    """Rows of one file; text files give {"title", "text"} rows. Raises UserError for a broken file."""
    reader: Callable[[SourceFile, ReadNotes], Iterator[Row]] = {
        ".txt": _read_text,
        ".md": _read_text,
        ".jsonl": _read_json_lines,
        ".json": _read_json,
        ".csv": _read_separated,
        ".tsv": _read_separated,
        ".parquet": _read_parquet,
    }[file.kind]
    try:
        yield from reader(file, notes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{file.path} is no whole gzip file: {error}",
            hint="copy it again; it was cut short or is no gzip",
        ) from None
    except PermissionError as error:
        raise UserError(f"{file.path} may not be read: {error.strerror}", hint="change its mode") from None


def _open(file: SourceFile, notes: ReadNotes) -> IO[bytes]:
    """The uncompressed bytes. UTF-16 with a mark is turned into UTF-8, whose lines can be found bytewise."""
    stream: Any = (gzip.open if file.is_compressed else open)(file.path, "rb")
    mark = stream.read(2)
    stream.seek(0)
    if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        notes.count("utf-16")
        stream = codecs.EncodedFile(stream, "utf-8", "utf-16", errors="replace")
    return cast("IO[bytes]", stream)


def _read_text(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    """The whole file as one document, or, where it is long, one per piece of about 256 KB."""
    pieces = _paragraph_pieces(file, notes)
    name = file.path.name.removesuffix(".gz").rpartition(".")[0] or file.path.name
    for number, piece in enumerate(pieces, start=1):
        title = _heading(piece) if number == 1 else ""
        yield {"title": title or (name if number == 1 else f"{name} (part {number})"), "text": piece}


def _heading(text: str) -> str:
    """The first Markdown heading, if the text opens with one."""
    match = re.match(r"\s*#{1,3}\s+([^\n]{1,120})", text)
    return match.group(1).strip().strip("#`* ") if match else ""


def _paragraph_pieces(file: SourceFile, notes: ReadNotes) -> Iterator[str]:
    """Decoded text in pieces that end at a blank line where there is one."""
    with _open(file, notes) as stream:
        held = b""
        while data := stream.read(PIECE_BYTES):
            held += data
            if len(held) < 2 * PIECE_BYTES:
                continue
            cut = _cut(held)
            yield _decode(held[:cut], notes)
            held = held[cut:]
        if held.strip():
            yield _decode(held, notes)


def _cut(data: bytes) -> int:
    """Where to end a piece: after the last blank line, else the last line, else before a whole character."""
    for mark in (b"\n\n", b"\r\n\r\n", b"\n"):
        position = data.rfind(mark)
        if position > 0:
            return position + len(mark)
    end = len(data)
    while end > 1 and data[end - 1] & 0xC0 == 0x80:  # continuation bytes of UTF-8
        end -= 1
    return max(1, end - 1)


def _decode(data: bytes, notes: ReadNotes) -> str:
    text, encoding = decode_bytes(data)
    notes.count(encoding)
    return text


def _read_json_lines(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    """One object per line; lines that are none are counted and left out, unless none at all is right."""
    good = 0
    for number, line in enumerate(_lines(file, notes), start=1):
        text = _decode(line, notes).strip().lstrip("\ufeff")
        if not text:
            continue
        row = _json_object(text)
        if row is None:
            notes.bad_lines.append((number, text[:120]))
        else:
            good += 1
            yield row
    if not good and notes.bad_lines:
        number, start = notes.bad_lines[0]
        raise UserError(
            f"{file.path} holds no JSON object: line {number} starts with {start[:60]!r}",
            hint='JSON Lines needs one {"text": ...} per line; name a JSON array .json and plain text .txt',
        )


def _lines(file: SourceFile, notes: ReadNotes) -> Iterator[bytes]:
    with _open(file, notes) as stream:
        while line := stream.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise UserError(
                    f"{file.path} has a line of over {MAX_LINE_BYTES >> 20} MB",
                    hint="JSON Lines needs one record per line; a JSON array belongs in a .json file",
                )
            yield line


def _json_object(text: str) -> Row | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else {"text": value} if isinstance(value, str) else None


def _read_json(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    """A list of objects, or an object that holds one list of them."""
    with _open(file, notes) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise UserError(
            f"{file.path} is over {MAX_JSON_BYTES >> 20} MB, and a JSON file must be read as a whole",
            hint="turn it into JSON Lines: jq -c '.[]' FILE.json > FILE.jsonl",
        )
    try:
        value = json.loads(_decode(data, notes).lstrip("\ufeff"))
    except ValueError as error:
        raise UserError(
            f"{file.path} is no JSON: {error}",
            hint="mend it, or name it .jsonl if it has one record per line",
        ) from None
    rows = _list_of_rows(value)
    if rows is None:
        found = f"an object with {sorted(value)[:8]}" if isinstance(value, dict) else type(value).__name__
        raise UserError(
            f"{file.path} holds {found}", hint='expected a list of records, or {"data": [records]}'
        )
    yield from rows


def _list_of_rows(value: Any) -> list[Row] | None:
    if isinstance(value, list):
        rows = [{"text": item} if isinstance(item, str) else item for item in value]
        return rows if all(isinstance(row, dict) for row in rows) else None
    if not isinstance(value, dict):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return _list_of_rows(lists[0]) if len(lists) == 1 else [value]


def _read_separated(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if file.kind == ".tsv" else ","
    lines = (_decode(line, notes).lstrip("\ufeff") for line in _lines(file, notes))
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        for row in reader:
            yield {name: value or "" for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise UserError(
            f"{file.path}, line {reader.line_num}: {error}", hint="quote fields that hold line ends or quotes"
        ) from None


def _read_parquet(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    if file.is_compressed:
        raise UserError(f"{file.path}: Parquet is compressed inside", hint="gunzip it first")
    try:
        with pq.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{file.path} is no whole Parquet file: {str(error).splitlines()[0][:160]}",
            hint=f"it has {_size(file.path)} bytes; copy it again, it was probably cut short",
        ) from None


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,}"


def parquet_columns(path: Path) -> list[str]:
    """Column names from the footer."""
    return list(pq.read_schema(path).names)

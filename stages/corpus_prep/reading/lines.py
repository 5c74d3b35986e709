"""Files of one record per line: JSON Lines and CSV, from any line end to any other."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from stages.corpus_prep.reading.damage import EXCERPT_CHARACTERS, DamagedFile, ReadNotes, Reject
from stages.corpus_prep.reading.plain_text import decoded
from stages.corpus_prep.reading.rows import Fields, ReadRow
from stages.corpus_prep.reading.sources import SourceFile

MAX_LINE_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Line:
    """One line without its end. begin: its offset; number: from 1, in the piece that is read.

    num_bytes: its length; over the limit, `data` holds only its beginning.
    """

    begin: int
    number: int
    data: bytes
    num_bytes: int


def lines_of(stream: IO[bytes], begin: int = 0, end: int | None = None, number: int = 0) -> Iterator[Line]:
    """Lines between two offsets; `stream` stands at `begin`, and `number` lines came before.

    Memory is bounded by the limit for a line.
    """
    held, long_bytes = b"", 0
    left = None if end is None else max(0, end - begin)
    while data := stream.read(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left)):
        left = None if left is None else left - len(data)
        first, *rest = data.split(b"\n")
        held, long_bytes = _grown(held, first, long_bytes)
        for part in rest:
            number += 1
            line = Line(begin, number, held, long_bytes or len(held))
            yield line
            begin += line.num_bytes + 1
            held, long_bytes = part, 0
    if held or long_bytes:
        yield Line(begin, number + 1, held, long_bytes or len(held))


def _grown(held: bytes, more: bytes, long_bytes: int) -> tuple[bytes, int]:
    """What is held of a line after more of it came; its length so far, if that is over the limit."""
    length = (long_bytes or len(held)) + len(more)
    if length > MAX_LINE_BYTES:
        return (held + more[:HELD_OF_LONG_BYTES])[:HELD_OF_LONG_BYTES], length
    return held + more, 0


HELD_OF_LONG_BYTES = 4 * EXCERPT_CHARACTERS


def read_json_lines(
    file: SourceFile,
    stream: IO[bytes],
    notes: ReadNotes,
    begin: int = 0,
    end: int | None = None,
    number: int = 0,
) -> Iterator[ReadRow]:
    """One object per line; a line that is none, or too long, is a reject.

    Raises DamagedFile if the whole file was read and not one line of it is an object.
    """
    first_bad: Line | None = None
    good = 0
    for line in lines_of(stream, begin, end, number):
        fields, reason = parse_json_line(line, notes)
        if fields is not None:
            good += 1
            yield ReadRow(fields, line.begin, line.begin + line.num_bytes)
        elif reason:
            first_bad = first_bad or line
            notes.reject(rejected_line(file, line, reason))
    if first_bad and not good and begin == 0 and end is None:
        raise no_object(first_bad)


def no_object(line: Line) -> DamagedFile:
    """The damage of a file without a JSON object; `line` is its first one."""
    if line.num_bytes > MAX_LINE_BYTES:
        return DamagedFile(
            "no_records",
            f"has a line of over {MAX_LINE_BYTES >> 20} MB ({line.num_bytes:,} bytes), and no record",
            "JSON Lines needs one record per line; a JSON array belongs in a .json file",
        )
    return DamagedFile(
        "no_records",
        f"holds no JSON object: line {line.number} starts with {_excerpt(line)[:60]!r}",
        'JSON Lines needs one {"text": ...} per line; name a JSON array .json and plain text .txt',
    )


def parse_json_line(line: Line, notes: ReadNotes) -> tuple[Fields | None, str]:
    """(fields, "") of a line; (None, reason) for a bad one; (None, "") for an empty one."""
    if line.num_bytes > MAX_LINE_BYTES:
        return None, "line_too_long"
    try:
        text = line.data.decode()
    except UnicodeDecodeError:
        text = decoded(line.data, notes)
    text = text.strip().lstrip("\ufeff")
    if not text:
        return None, ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None, "bad_json"
    if isinstance(value, str):
        value = {"text": value}
    return (value, "") if isinstance(value, dict) else (None, "bad_json")


def rejected_line(file: SourceFile, line: Line, reason: str) -> Reject:
    """The reject of a line, with its beginning."""
    detail = f"line {line.number}" if reason != "line_too_long" else f"a line of {line.num_bytes:,} bytes"
    return Reject(file.origin, reason, detail, _excerpt(line), line.number, line.begin)


def _excerpt(line: Line) -> str:
    return line.data[:HELD_OF_LONG_BYTES].decode("utf-8", "replace").strip()[:EXCERPT_CHARACTERS]


class _CsvLines:
    """Feeds csv.reader line by line, and knows the offset that it has come to."""

    def __init__(self, file: SourceFile, lines: Iterator[Line], notes: ReadNotes) -> None:
        self._file, self._lines, self._notes = file, lines, notes
        self.offset = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        while line.num_bytes > MAX_LINE_BYTES:
            self._notes.reject(rejected_line(self._file, line, "line_too_long"))
            line = next(self._lines)
        self.offset = line.begin + line.num_bytes + 1
        return decoded(line.data, self._notes).lstrip("\ufeff") + "\n"


def read_separated(
    file: SourceFile, stream: IO[bytes], notes: ReadNotes, begin: int = 0, end: int | None = None
) -> Iterator[ReadRow]:
    """Rows of CSV or TSV by the names in the first line, which is read for every piece.

    A row that breaks the rules of CSV is a reject. begin: where the piece begins; 0 for the header.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if file.kind == ".tsv" else ","
    names, after_header = _header(file, stream, notes, delimiter)
    if begin == 0:
        begin = after_header
    _move(stream, after_header, begin)
    feed = _CsvLines(file, lines_of(stream, begin, end), notes)
    reader = csv.reader(feed, delimiter=delimiter)
    offset = begin
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            detail = f"line {reader.line_num}: {error}"
            notes.reject(Reject(file.origin, "bad_csv", detail, "", reader.line_num, offset))
            offset = feed.offset
            continue
        if values:
            yield ReadRow(_named(names, values), offset, feed.offset)
        offset = feed.offset


def _named(names: list[str], values: list[str]) -> Fields:
    missing = [""] * (len(names) - len(values))
    return dict(zip(names, [*values, *missing], strict=False))


def _header(file: SourceFile, stream: IO[bytes], notes: ReadNotes, delimiter: str) -> tuple[list[str], int]:
    """(column names, offset of the first row); reads no byte further."""
    lines = lines_of(_ByLine(stream), 0, MAX_HEADER_BYTES)  # type: ignore[arg-type]
    feed = _CsvLines(file, lines, notes)
    try:
        names = next(csv.reader(feed, delimiter=delimiter), [])
    except csv.Error as error:
        raise DamagedFile("broken", f"has no header: {error}", "quote fields that hold line ends") from None
    if feed.offset > MAX_HEADER_BYTES:
        raise DamagedFile(
            "broken",
            f"has no line end in its first {MAX_HEADER_BYTES:,} bytes",
            "the first line must be the names of the columns; name running text .txt",
        )
    return names, feed.offset


class _ByLine:
    """A stream whose reads end at line ends, so that nothing after the header is taken."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """One byte after the other up to a line end; headers are short."""
        data = bytearray()
        while len(data) < size and (byte := self._stream.read(1)):
            data += byte
            if byte == b"\n":
                break
        return bytes(data)


def _move(stream: IO[bytes], position: int, begin: int) -> None:
    if begin != position:
        stream.seek(begin)

"""Plain documents as Arrow batches, where no row needs a look at from Python: Parquet and JSON Lines.

Rows as dicts cost more than they need. Where every row of a block is a document, its text goes from the file
into an Arrow batch; a block with any other row (a conversation, a bad line, a text that is a list) comes as
rows, and means the same as from `read_piece`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from stages.corpus_prep.benchmark_forms import looks_like_benchmark
from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes, Reject
from stages.corpus_prep.reading.lines import (
    HELD_OF_LONG_BYTES,
    MAX_LINE_BYTES,
    Line,
    no_object,
    read_json_lines,
    rejected_line,
)
from stages.corpus_prep.reading.parquet_files import first_row, opened_parquet
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import MAY_BE_EMPTY, read_piece
from stages.corpus_prep.reading.record_forms import KINDS, TEXT_FIELDS, TITLE_FIELDS, recognise
from stages.corpus_prep.reading.rows import ABOUT_FIELDS, LICENCE_FIELDS, URL_FIELDS, ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import FileState, Transcoded, opened, read_head

#: row: number in the file, or -1; begin, end: offsets in the uncompressed file, or -1.
SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("title", pa.large_string()),
        ("kind", pa.large_string()),
        ("licence", pa.large_string()),
        ("url", pa.large_string()),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("row", pa.int64()),
    ]
)
ROWS_PER_BATCH = 1024
BATCH_BYTES = 16 << 20
#: Of 0.25, 1 and 4 MB the fastest.
JSON_BLOCK_BYTES = 1 << 20
#: What str.split() takes for white space; RE2 has no such class.
_WHITE_SPACE = r"[\s\x0b\x1c-\x1f\x85\p{Z}]+"


class Names(NamedTuple):
    """Which fields hold what, where the user says so."""

    text_field: str = ""
    title_field: str = ""


BY_THEIR_NAMES = Names()


def read_batches(
    piece: Piece, notes: ReadNotes, names: Names = BY_THEIR_NAMES
) -> Iterator[pa.RecordBatch | list[ReadRow]]:
    """The rows of a piece, in order: batches of `SCHEMA` where all are documents, else lists of rows.

    Errors and damage as in `read_piece`.
    """
    file = piece.file
    if file.kind not in (".parquet", ".jsonl"):
        yield from _in_lists(read_piece(piece, notes))
        return
    with notes.damage_of(file.origin, str(file.path)):
        state = piece.state or FileState.of(file)
        state.check(file)
        if state.size == 0 and file.kind in MAY_BE_EMPTY:
            notes.reject(Reject(file.origin, "empty", "is empty"))
            return
        try:
            yield from _parquet(piece, names) if file.kind == ".parquet" else _json(piece, notes, names)
        except DamagedFile:
            state.check(file)
            raise
        state.check(file)


def _in_lists(rows: Iterator[ReadRow]) -> Iterator[list[ReadRow]]:
    held: list[ReadRow] = []
    num_bytes = 0
    for row in rows:
        held.append(row)
        num_bytes += sum(len(value) for value in row.fields.values() if isinstance(value, str))
        if len(held) >= ROWS_PER_BATCH or num_bytes >= BATCH_BYTES:
            yield held
            held, num_bytes = [], 0
    if held:
        yield held


def _parquet(piece: Piece, names: Names) -> Iterator[pa.RecordBatch | list[ReadRow]]:
    read_head(piece.file)
    with opened_parquet(piece.file) as table:
        groups = range(table.num_row_groups) if piece.is_whole else range(piece.begin, piece.end)
        number = first_row(table, groups)
        per_batch = _rows_per_batch(table, groups)
        for batch in table.iter_batches(batch_size=per_batch, row_groups=list(groups), use_threads=False):
            places = np.full(batch.num_rows, -1, np.int64)
            numbers = np.arange(number, number + batch.num_rows, dtype=np.int64)
            documents = _documents(batch, piece.file, names, (places, places, numbers))
            number += batch.num_rows
            if documents is not None:
                yield documents
            else:
                rows = zip(batch.to_pylist(), numbers.tolist(), strict=True)
                yield [ReadRow(fields, number=n) for fields, n in rows]


def _rows_per_batch(table: Any, groups: range) -> int:
    """So many that a batch is about 16 MB."""
    sizes = [table.metadata.row_group(index) for index in groups]
    num_bytes, num_rows = sum(g.total_byte_size for g in sizes), sum(g.num_rows for g in sizes)
    return max(1, min(ROWS_PER_BATCH, int(BATCH_BYTES * num_rows // max(1, num_bytes))))


Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def _documents(
    batch: pa.RecordBatch, file: SourceFile, names: Names, places: Places
) -> pa.RecordBatch | None:
    """The batch in our schema; None if any of its rows needs another look."""
    present = batch.schema.names
    if len(set(present)) != len(present) or batch.num_rows == 0:
        return None
    shape = dict.fromkeys(present)
    form = recognise(shape, *names)
    if form is None or form.kind != "document" or _is_benchmark(batch, names):
        return None
    text = _string(batch.column(form.name))
    titles = [names.title_field] if names.title_field else [n for n in TITLE_FIELDS if n in shape]
    title = _title(batch, titles[:1], form.name)
    licence = _told(batch, _columns(batch, LICENCE_FIELDS), file.licence)
    url = _told(batch, filter(_may_be_text, _columns(batch, URL_FIELDS)), "")
    kind = _kind(batch)
    if text is None or title is None or licence is None or url is None or kind is None:
        return None
    columns = [pc.fill_null(text, ""), title, kind, licence, url, *map(pa.array, places)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _is_benchmark(batch: pa.RecordBatch, names: Names) -> bool:
    return not names.text_field and looks_like_benchmark(batch.slice(0, 1).to_pylist()[0])


def _string(column: Any) -> Any:
    """As large_string; None for what is no text, or no UTF-8, which Arrow's JSON reader lets through."""
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.large_string())
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return None
    column = column.cast(pa.large_string())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return column


def _may_be_text(column: Any) -> bool:
    """Not where rows hold numbers, lists or bytes; what Arrow took for a time may be text."""
    kind, types = column.type, pa.types
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_other = types.is_boolean(kind) or types.is_nested(kind) or types.is_binary(kind)
    return not (is_number or is_other or types.is_large_binary(kind))


def _constant(text: str, length: int) -> Any:
    return pa.repeat(pa.scalar(text, pa.large_string()), length)


def _title(batch: pa.RecordBatch, candidates: Sequence[str], text_name: str) -> Any:
    name = candidates[0] if candidates else ""
    if name not in batch.schema.names or name == text_name:
        return _constant("", batch.num_rows)
    column = _string(batch.column(name))
    if column is None:
        return None
    single = pc.replace_substring_regex(pc.fill_null(column, ""), _WHITE_SPACE, " ")
    return pc.utf8_slice_codeunits(pc.utf8_trim(single, " "), 0, 200)


def _kind(batch: pa.RecordBatch) -> Any:
    if "kind" not in batch.schema.names:
        return _constant("text", batch.num_rows)
    column = _string(batch.column("kind"))
    if column is None:
        return None
    known = pc.is_in(column, pa.array(KINDS, pa.large_string()))
    return pc.if_else(known, column, pa.scalar("text", pa.large_string()))


def _told(batch: pa.RecordBatch, columns: Iterable[Any], otherwise: str) -> Any:
    """As `licence_of` and `url_of`: the first that is there and not empty, else `otherwise`."""
    found = []
    for column in columns:
        text = _string(column)
        if text is None:
            return None
        found.append(pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text))
    return pc.coalesce(*found, _constant(otherwise, batch.num_rows))


def _columns(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[Any]:
    """Those of these names, and those inside of the metadata."""
    yield from (batch.column(name) for name in names if name in batch.schema.names)
    for about in ABOUT_FIELDS:
        if about in batch.schema.names and pa.types.is_struct(batch.schema.field(about).type):
            column = batch.column(about)
            inside = {column.type.field(i).name for i in range(column.type.num_fields)}
            yield from (pc.struct_field(column, name) for name in names if name in inside)


def _json(piece: Piece, notes: ReadNotes, names: Names) -> Iterator[pa.RecordBatch | list[ReadRow]]:
    file, begin = piece.file, piece.begin
    with opened(file, notes) as stream:
        if isinstance(stream, Transcoded):  # offsets would not be those of the file
            rows = read_json_lines(file, stream, notes)
            yield from _in_lists(ReadRow(row.fields, number=n) for n, row in enumerate(rows))
            return
        if begin:
            stream.seek(begin)
        blocks = Blocks(stream, begin, None if piece.is_whole else piece.end)
        good, num_rejects = False, notes.reasons.total()
        for offset, num_lines_before, block in blocks:
            documents = _parsed(block, offset, file, names)
            if documents is not None:
                good = True
                yield documents
                continue
            rows = read_json_lines(
                file, io.BytesIO(block), notes, offset, offset + len(block), num_lines_before
            )
            for listed in _in_lists(rows):
                good = True
                yield listed
        _check(piece, blocks, good, notes, num_rejects)


def _check(piece: Piece, blocks: Blocks, good: bool, notes: ReadNotes, num_rejects: int) -> None:
    for line in blocks.long_lines:
        notes.reject(rejected_line(piece.file, line, "line_too_long"))
    if piece.is_whole and not good and notes.reasons.total() > num_rejects:
        numbered = enumerate(blocks.first.split(b"\n"), start=1)
        number, data = next(((n, line) for n, line in numbered if line.strip()), (1, b""))
        long = [line for line in blocks.long_lines if line.number == number]
        raise no_object(long[0] if long else Line(0, number, data, len(data)))


class Blocks:
    """Whole lines in blocks of 1 MB: (offset, lines before it, bytes). Lines over the limit are left out."""

    def __init__(self, stream: IO[bytes], begin: int, end: int | None) -> None:
        self._stream, self._offset = stream, begin
        self._left = None if end is None else max(0, end - begin)
        self._num_lines = 0
        self.long_lines: list[Line] = []
        self.first = b""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        held = b""
        while data := self._read():
            self.first = self.first or data[:HELD_OF_LONG_BYTES]
            cut = data.rfind(b"\n") + 1
            if cut:
                block, held = held + data[:cut], data[cut:]
                yield self._offset, self._num_lines, block
                self._num_lines += block.count(b"\n")
                self._offset += len(block)
            else:
                held += data
                if len(held) > MAX_LINE_BYTES:
                    held = self._pass_over(held)
        if held:
            yield self._offset, self._num_lines, held

    def _read(self) -> bytes:
        size = JSON_BLOCK_BYTES if self._left is None else min(JSON_BLOCK_BYTES, self._left)
        data = self._stream.read(size)
        if self._left is not None:
            self._left -= len(data)
        return data

    def _pass_over(self, held: bytes) -> bytes:
        """Read on to the end of a line that is too long; what comes after it in the last block."""
        head, num_bytes = held[:HELD_OF_LONG_BYTES], len(held)
        rest = b""
        while data := self._read():
            position = data.find(b"\n")
            num_bytes += len(data) if position < 0 else position
            if position >= 0:
                rest = data[position + 1 :]
                break
        self._num_lines += 1
        self.long_lines.append(Line(self._offset, self._num_lines, head, num_bytes))
        self._offset += num_bytes + 1
        return rest


def _parsed(block: bytes, begin: int, file: SourceFile, names: Names) -> pa.RecordBatch | None:
    """The lines of a block as documents, parsed by Arrow; None where rows would mean something else."""
    begins, ends = _lines(block)
    wanted = {names.text_field, names.title_field, *TEXT_FIELDS, *TITLE_FIELDS, "kind"}
    wanted |= {*LICENCE_FIELDS, *URL_FIELDS}
    try:
        first = json.loads(block[begins[0] : ends[0]])
        # As strings, or Arrow would make times of what looks like one.
        fields = [(name, pa.string()) for name in first if name in wanted]
        table = pj.read_json(
            pa.BufferReader(block),
            pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pj.ParseOptions(explicit_schema=pa.schema(fields)),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, TypeError, IndexError):
        return None
    if table.num_rows != len(begins) or not table.num_columns:
        return None
    numbers = np.full(len(begins), -1, np.int64)
    try:
        batch = table.combine_chunks().to_batches()[0]
        if not _all_have_the_same(batch, names):
            return None
        return _documents(batch, file, names, (begins + begin, ends + begin, numbers))
    except UnicodeDecodeError:  # a name of a field, which Arrow's JSON reader does not check either
        return None


def _lines(block: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines that are not empty begin and end."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    full = ends > begins
    return begins[full], ends[full]


def _all_have_the_same(batch: pa.RecordBatch, names: Names) -> bool:
    """Whether every row has the fields that decide on it: an absent one and a null look alike to Arrow."""
    form = recognise(dict.fromkeys(batch.schema.names), *names)
    if form is None or form.name not in batch.schema.names or batch.column(form.name).null_count:
        return False
    titles = [name for name in TITLE_FIELDS if name in batch.schema.names]
    return bool(names.title_field) or len(titles) < 2 or not batch.column(titles[0]).null_count

"""Large files in pieces that can be read apart from each other, on one machine or on many.

Parquet is cut between row groups; uncompressed JSON Lines and CSV without quotes at line ends; running text
between its documents. Everything else is one piece. The cuts depend on nothing but the bytes, so every
machine finds the same ones, and the pieces together give the rows of the whole file, none twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from stages.corpus_prep.reading.damage import DamagedFile
from stages.corpus_prep.reading.parquet_files import opened_parquet
from stages.corpus_prep.reading.plain_text import CELL_BYTES, num_cells
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import FileState, read_head, utf16_encoding

PIECE_BYTES = 64 << 20
SCAN_BYTES = 1 << 20
TEXT_KINDS = (".txt", ".md", ".rst", ".org")


@dataclass(frozen=True)
class Piece:
    """Part `index` of `count` of a file, from `begin` to `end` (exclusive).

    They count bytes, row groups (Parquet), or documents (running text); end -1 stands for the whole file.
    state: the file when it was cut, to notice that it changed since.
    """

    file: SourceFile
    begin: int = 0
    end: int = -1
    index: int = 0
    count: int = 1
    state: FileState | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the piece is all of its file."""
        return self.end < 0


def pieces(file: SourceFile, max_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Pieces of about `max_bytes` each, of a file that lies here; one for a file that cannot be cut or read.

    A row group or a line that is longer stays whole. Damage is left to `read_piece` to report.
    """
    try:
        state = FileState.of(file)
        cuts = list(_cuts(file, max_bytes, state.size))
    except DamagedFile:
        return [Piece(file)]
    if len(cuts) < 3:
        return [Piece(file, state=state)]
    count = len(cuts) - 1
    spans = pairwise(cuts)
    return [Piece(file, begin, end, index, count, state) for index, (begin, end) in enumerate(spans)]


def _cuts(file: SourceFile, max_bytes: int, size: int) -> Iterator[int]:
    """Where the pieces begin, and the end of the last one; nothing for a file that is one piece."""
    if size <= max_bytes or file.compression:
        return
    if file.kind == ".parquet":
        yield from _between_row_groups(file, max_bytes)
    elif utf16_encoding(read_head(file)):
        return
    elif file.kind in TEXT_KINDS:
        cells = num_cells(size)
        yield from (*range(0, cells, max(1, max_bytes // CELL_BYTES)), cells)
    elif file.kind == ".jsonl" or (file.kind in (".csv", ".tsv") and not _has_quotes(file)):
        yield from _at_line_ends(file, max_bytes, size)


def _between_row_groups(file: SourceFile, max_bytes: int) -> Iterator[int]:
    with opened_parquet(file) as table:
        sizes = [table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)]
    yield 0
    held = 0
    for index, size in enumerate(sizes):
        if held and held + size > max_bytes:
            yield index
            held = 0
        held += size
    yield len(sizes)


def _at_line_ends(file: SourceFile, max_bytes: int, size: int) -> Iterator[int]:
    """The first line that begins at or after each multiple of max_bytes; a long line is passed over once."""
    yield 0
    cut = 0
    with open(file.path, "rb") as stream:
        while (wanted := (cut // max_bytes + 1) * max_bytes) < size:
            stream.seek(wanted - 1)
            cut = wanted - 1
            while data := stream.read(SCAN_BYTES):
                if (position := data.find(b"\n")) >= 0:
                    cut += position + 1
                    break
                cut += len(data)
            if cut >= size:
                break
            yield cut
    yield size


def _has_quotes(file: SourceFile) -> bool:
    """Whether a field may hold a line end: only a quoted one can, and only reading all before tells which."""
    with open(file.path, "rb") as stream:
        return any(b'"' in data for data in iter(lambda: stream.read(SCAN_BYTES), b""))

"""Rows of the user's files, one at a time, whatever their kind; memory stays bounded whatever their size.

`pieces` cuts a file, `read_piece` reads what it cut; `read_rows` reads a whole file. Each kind has its own
module, imported when the first file of that kind comes, because most runs need one or two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from stages.corpus_prep.reading.damage import DamagedFile, ReadNotes, Reject
from stages.corpus_prep.reading.json_files import read_json, read_notebook
from stages.corpus_prep.reading.lines import read_json_lines, read_separated
from stages.corpus_prep.reading.parquet_files import read_parquet
from stages.corpus_prep.reading.pieces import TEXT_KINDS, Piece
from stages.corpus_prep.reading.plain_text import read_text
from stages.corpus_prep.reading.rows import Fields, ReadRow, WholeReader
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.reading.streams import FileState, Transcoded, opened, read_head

Row = Fields
#: An empty file of these has no rows, which is no damage but is noted; of any other kind it is broken.
MAY_BE_EMPTY = (*TEXT_KINDS, ".jsonl", ".csv", ".tsv")


def _web_pages() -> WholeReader:
    from stages.corpus_prep.reading.web_pages import read_html

    return read_html


def _pdf() -> WholeReader:
    from stages.corpus_prep.reading.pdf import read_pdf

    return read_pdf


def _word() -> WholeReader:
    from stages.corpus_prep.reading.word import read_docx

    return read_docx


def _open_document() -> WholeReader:
    from stages.corpus_prep.reading.open_document import read_odt

    return read_odt


def _slides() -> WholeReader:
    from stages.corpus_prep.reading.slides import read_pptx

    return read_pptx


def _spreadsheets() -> WholeReader:
    from stages.corpus_prep.reading.spreadsheets import read_xlsx

    return read_xlsx


def _books() -> WholeReader:
    from stages.corpus_prep.reading.books import read_epub

    return read_epub


def _rich_text() -> WholeReader:
    from stages.corpus_prep.reading.rich_text import read_rtf

    return read_rtf


def _mail() -> WholeReader:
    from stages.corpus_prep.reading.mail import read_eml

    return read_eml


#: Kinds that need a library or much code: kind -> what imports their reader.
LAZY: dict[str, Callable[[], WholeReader]] = {
    ".html": _web_pages,
    ".pdf": _pdf,
    ".docx": _word,
    ".odt": _open_document,
    ".pptx": _slides,
    ".xlsx": _spreadsheets,
    ".epub": _books,
    ".rtf": _rich_text,
    ".eml": _mail,
}


def read_rows(file: SourceFile, notes: ReadNotes) -> Iterator[Row]:
    """Fields of the rows of one file; text files give {"title", "text"} rows. Errors as in `read_piece`."""
    for row in read_piece(Piece(file), notes):
        yield row.fields


def read_piece(piece: Piece, notes: ReadNotes) -> Iterator[ReadRow]:
    """Rows of one piece with their places.

    What is damaged is noted or raised as UserError, as `notes.on_damage` says; rows before the damage have
    been given by then. Raises RetryableError where the file changed since it was cut, or while it was read.
    """
    file, state = piece.file, piece.state
    with notes.damage_of(file.origin, str(file.path)):
        state = state or FileState.of(file)
        state.check(file)
        if state.size == 0 and file.kind in MAY_BE_EMPTY:
            notes.reject(Reject(file.origin, "empty", "is empty"))
            return
        try:
            yield from _rows(piece, notes)
        except DamagedFile:
            state.check(file)  # half-written by somebody else is no damage
            raise
        state.check(file)


def _rows(piece: Piece, notes: ReadNotes) -> Iterator[ReadRow]:
    file = piece.file
    if file.kind == ".parquet":
        read_head(file)
        yield from read_parquet(file, None if piece.is_whole else range(piece.begin, piece.end))
    elif file.kind in LAZY:
        try:
            yield from LAZY[file.kind]()(file, notes)
        except RecursionError:
            raise DamagedFile("broken", "is nested too deeply to be read", "leave it out") from None
    else:
        with opened(file, notes) as stream:
            rows = _streamed(piece, stream, notes)
            # The offsets would be those of the UTF-8 that it was turned into.
            yield from _numbered(rows) if isinstance(stream, Transcoded) else rows


def _numbered(rows: Iterator[ReadRow]) -> Iterator[ReadRow]:
    for number, row in enumerate(rows):
        yield ReadRow(row.fields, number=number)


_WHOLE: dict[str, Callable[[SourceFile, IO[bytes], ReadNotes], Iterator[ReadRow]]] = {
    ".json": read_json,
    ".ipynb": read_notebook,
}


def _streamed(piece: Piece, stream: Any, notes: ReadNotes) -> Iterator[ReadRow]:
    file, end = piece.file, None if piece.is_whole else piece.end
    if file.kind in TEXT_KINDS:
        return read_text(file, stream, notes, None if end is None else range(piece.begin, end))
    if file.kind == ".jsonl":
        if piece.begin:
            stream.seek(piece.begin)
        return read_json_lines(file, stream, notes, piece.begin, end)
    if file.kind in (".csv", ".tsv"):
        return read_separated(file, stream, notes, piece.begin, end)
    return _WHOLE[file.kind](file, stream, notes)

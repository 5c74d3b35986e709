"""Running text: a file is one document, or, where it is long, one per piece of 256 to 512 KB.

Where a long file is cut depends only on the bytes around the cut: document k ends at the last paragraph end
before byte (k + 1) * 256 KB. So a file can be read from the middle, and gives the same documents in one go or
in pieces on several machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.kinds import COMPRESSIONS
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.text_repair import decode_bytes

CELL_BYTES = 256 << 10


def read_text(
    file: SourceFile, stream: IO[bytes], notes: ReadNotes, cells: range | None = None
) -> Iterator[ReadRow]:
    """Documents of a text file; `stream` stands at its start. cells: only these; it must be seekable then."""
    stem = _stem(file)
    for number, begin, data in _documents(stream, cells):
        if not data.strip():
            continue
        text = decoded(data, notes)
        title = heading(text) if number == 0 else ""
        named = stem if number == 0 else f"{stem} (part {number + 1})"
        yield ReadRow({"title": title or named, "text": text}, begin, begin + len(data), number)


def num_cells(num_bytes: int) -> int:
    """Documents that a text of this size is cut into: the last one takes what is left over."""
    return max(1, num_bytes // CELL_BYTES)


def _documents(stream: IO[bytes], cells: range | None) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset of its first byte, bytes) of each document."""
    number, begin, held = (cells.start if cells else 0), 0, b""
    if number:
        stream.seek((number - 1) * CELL_BYTES)
        window = stream.read(CELL_BYTES)
        held = window[cut_of(window) :]
        begin = number * CELL_BYTES - len(held)
    window = stream.read(CELL_BYTES)
    while True:
        following = stream.read(CELL_BYTES)
        if len(following) < CELL_BYTES:  # too little for a document of its own
            yield number, begin, held + window + following
            return
        cut = cut_of(window)
        document = held + window[:cut]
        yield number, begin, document
        begin, held = begin + len(document), window[cut:]
        number, window = number + 1, following
        if cells is not None and number >= cells.stop:
            return


def cut_of(data: bytes) -> int:
    """Where a document ends: after the last blank line, else the last line, else before a whole character."""
    for mark in (b"\n\n", b"\r\n\r\n", b"\n"):
        position = data.rfind(mark)
        if position > 0:
            return position + len(mark)
    end = len(data)
    while end > 1 and data[end - 1] & 0xC0 == 0x80:  # continuation bytes of UTF-8
        end -= 1
    return max(1, end - 1)


def decoded(data: bytes, notes: ReadNotes) -> str:
    """Text of bytes in an encoding that is guessed, and counted in `notes`."""
    text, encoding = decode_bytes(data)
    notes.count(encoding)
    return text


def _stem(file: SourceFile) -> str:
    name = file.path.name
    if file.path.suffix.lower() in COMPRESSIONS:
        name = name.rpartition(".")[0]
    return name.rpartition(".")[0] or name


def heading(text: str) -> str:
    """The first Markdown heading, if the text opens with one."""
    match = re.match(r"\s*#{1,3}\s+([^\n]{1,120})", text)
    return match.group(1).strip().strip("#`* ") if match else ""

"""A row as the readers give it, and where in its file it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.sources import SourceFile

Fields = dict[str, Any]
LICENCE_FIELDS = ("license", "licence", "licenses")
URL_FIELDS = ("url", "source_url", "uri", "link")
ABOUT_FIELDS = ("metadata", "meta")
PREVIEW_CHARACTERS = 400


class ReadRow(NamedTuple):
    """One row: its fields, and its place: a range of bytes, or a number where bytes make no sense.

    begin, end: offsets in the uncompressed file, end exclusive; -1 where it is none (Parquet, a page,
    text that was UTF-16). number: of the row in its file from 0; -1 where only the offset is known,
    because a piece of a file does not know how many lines come before it.
    """

    fields: Fields
    begin: int = -1
    end: int = -1
    number: int = -1

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"row {self.number + 1}" if self.number >= 0 else f"at byte {self.begin:,}"

    @property
    def preview(self) -> str:
        """The beginning of its fields as JSON."""
        return json.dumps(self.fields, ensure_ascii=False, default=str)[:PREVIEW_CHARACTERS]


#: Reads the rows of one file of a kind, as a whole.
WholeReader = Callable[[SourceFile, ReadNotes], Iterator[ReadRow]]


def licence_of(fields: Mapping[str, Any], file: SourceFile) -> str:
    """What the row says its licence is, or its metadata; else what was said of the source; else ""."""
    for holder in (fields, *(fields.get(name) for name in ABOUT_FIELDS)):
        if not isinstance(holder, Mapping):
            continue
        for name in LICENCE_FIELDS:
            if value := holder.get(name):
                return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return file.licence


def url_of(fields: Mapping[str, Any]) -> str:
    """The address that the row or its metadata says the document is from, or ""."""
    for holder in (fields, *(fields.get(name) for name in ABOUT_FIELDS)):
        if isinstance(holder, Mapping):
            for name in URL_FIELDS:
                if isinstance(value := holder.get(name), str) and value:
                    return value
    return ""

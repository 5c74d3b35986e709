"""What conversations, pairs and questions need to know of a document: its title, and what tools say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stages.whitebox.tool_results import (
    join_lookup,
    join_search,
    short_sentence,
    short_signature,
    without_title,
)

MIN_SENTENCE_CHARACTERS = 12
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*\Z")


@dataclass(frozen=True)
class Entry:
    """One titled document, without its text.

    sentence: its first sentence as the tools give it; lookup and search: the tools' results for it.
    """

    doc_id: str
    source: str
    title: str
    kind: str
    language: str
    split: str
    signature: str
    sentence: str
    lookup: str
    search: str
    licence: str = ""
    origin: str = ""

    @cached_property
    def is_symbol(self) -> bool:
        """Whether `lookup` can be asked for it: its argument is names joined by dots."""
        return bool(_SYMBOL.match(self.title))

    @property
    def is_code(self) -> bool:
        """Whether it documents a class or a function."""
        return self.kind in ("class", "function")


def entry_of(row: Mapping[str, Any], split: str) -> Entry | None:
    """The entry of a document row, or None for one without a title or without a first sentence."""
    title, text = row["title"], row["text"]
    if not title:
        return None
    sentence = short_sentence(without_title(title, text))
    if len(sentence) < MIN_SENTENCE_CHARACTERS:
        return None
    signature = short_signature(text)
    return Entry(
        doc_id=row["doc_id"],
        source=row["source"],
        title=title,
        kind=row["kind"],
        language=row["language"],
        split=split,
        signature=signature,
        sentence=sentence,
        lookup=join_lookup(title, signature, sentence),
        search=join_search(title, sentence),
        licence=row.get("licence", ""),
        origin=row.get("origin", ""),
    )


class EntryBook:
    """Entries of a corpus: of the documents that the selection chose, whose titles stand for no other."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, row: Mapping[str, Any], split: str) -> None:
        """Take a document row if it makes an entry."""
        entry = entry_of(row, split)
        if entry is not None:
            self._entries.append(entry)

    def as_json(self) -> Iterator[dict[str, Any]]:
        """Everything that it holds, for `merge`."""
        return (asdict(entry) for entry in self._entries)

    def merge(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add what the book of another shard holds."""
        self._entries += (Entry(**row) for row in rows)

    def entries(self, without: Iterable[str] = ()) -> list[Entry]:
        """Entries in the order of their ids; `without` are doc_ids to leave out."""
        gone = set(without)
        left = [entry for entry in self._entries if entry.doc_id not in gone]
        return sorted(left, key=lambda entry: entry.doc_id)


def of_split(entries: Sequence[Entry], split: str) -> list[Entry]:
    """Entries of one split."""
    return [entry for entry in entries if entry.split == split]

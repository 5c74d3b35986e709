"""The first thing that is done to a shard: its files are read, repaired and judged.

A shard is a group of files (or parts of one). What comes out lies in the shard's folder: `texts.parquet`,
`measures.parquet` with what they are judged by, `records.jsonl` with conversations and preference pairs,
`rejects/`; and its counts are the result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.corpus_prep.cleaning import Cleaner, RawDocument, utf8_length
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.reading.readers import ReadNotes, Row, read_rows
from stages.corpus_prep.reading.record_forms import (
    Conversation,
    Document,
    Form,
    Message,
    PreferencePair,
    recognise,
)
from stages.corpus_prep.sampling import Smallest, hashed_id, in_fraction
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.text_repair import repair_text

TEXTS_NAME = "texts.parquet"
MEASURES_NAME = "measures.parquet"
RECORDS_NAME = "records.jsonl"
REJECTS_NAME = "rejects"


@dataclass(frozen=True)
class Share:
    """A file, and which fraction of its documents is wanted."""

    file: SourceFile
    fraction: float
    is_ours: bool = False
    """Whether its rows are documents that we made: {"source", "title", "kind", "text"}."""


@dataclass(frozen=True)
class Preparation:
    """What to read, and how."""

    shares: tuple[Share, ...]
    text_field: str
    title_field: str
    languages: tuple[str, ...]
    max_conversations: int
    max_preferences: int


@dataclass
class Records:
    """Conversations and pairs by source, the ones with the smallest ids."""

    max_conversations: int
    max_preferences: int
    conversations: dict[str, Smallest[Conversation]] = field(default_factory=dict)
    preferences: dict[str, Smallest[PreferencePair]] = field(default_factory=dict)

    def add(self, source: str, key: str, record: Conversation | PreferencePair) -> None:
        """Offer one record."""
        if isinstance(record, Conversation):
            self.conversations.setdefault(source, Smallest(self.max_conversations)).add(key, record)
        else:
            self.preferences.setdefault(source, Smallest(self.max_preferences)).add(key, record)

    def write(self, path: Path) -> None:
        """As JSON lines, for `read`."""
        with path.open("w", encoding="utf-8") as file:
            for held in (self.conversations, self.preferences):
                for source, sample in held.items():
                    for key, record in sample.items():
                        file.write(json.dumps([source, key, _as_json(record)], ensure_ascii=False) + "\n")

    def read(self, path: Path) -> None:
        """Offer the records that `write` wrote."""
        with path.open(encoding="utf-8") as file:
            for line in file:
                source, key, fields = json.loads(line)
                self.add(source, key, _from_json(fields))

    def __iter__(self) -> Iterator[tuple[str, Conversation | PreferencePair]]:
        """(source, record) in a fixed order."""
        for held in (self.conversations, self.preferences):
            for source, sample in held.items():
                yield from ((source, record) for _, record in sample.items())


def prepare(task: Preparation, folder: Path) -> dict[str, Any]:
    """Do it; the result holds counts of what was read, repaired and left out."""
    return _Preparer(task, folder).run()


class _Preparer:
    def __init__(self, task: Preparation, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.funnel = Funnel(folder / REJECTS_NAME)
        self.records = Records(task.max_conversations, task.max_preferences)
        self.forms: Counter[str] = Counter()
        self.files: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        tables = (self.folder / TEXTS_NAME, self.folder / MEASURES_NAME)
        with Cleaner(*tables, self.funnel, self.task.languages) as self.cleaner:
            for share in self.task.shares:
                self._read(share)
        self.funnel.close()
        self.records.write(self.folder / RECORDS_NAME)
        return {
            "num_documents": self.cleaner.num_documents,
            "bad": dict(self.cleaner.bad),
            "repairs": dict(self.cleaner.repairs),
            "forms": dict(self.forms),
            "files": self.files,
            "funnel": self.funnel.counts(),
        }

    def _read(self, share: Share) -> None:
        file, notes = share.file, ReadNotes()
        if share.is_ours:
            for row in read_rows(file, notes):
                self._take_document(RawDocument(row["source"], row["title"], row["kind"], row["text"]), 1.0)
            return
        num_rows = 0
        forms: dict[tuple[str, ...], Form | None] = {}
        for row in read_rows(file, notes):
            num_rows += 1
            self._take_row(file, num_rows, row, share.fraction, forms)
        for number, start in notes.bad_lines:
            self._reject_row(file, start, "bad_json", f"line {number}")
        self.files[file.name] = {
            "rows": num_rows,
            "bad_lines": len(notes.bad_lines),
            "encodings": notes.encodings,
        }

    def _take_row(
        self,
        file: SourceFile,
        number: int,
        row: Row,
        fraction: float,
        forms: dict[tuple[str, ...], Form | None],
    ) -> None:
        shape = tuple(sorted(row))
        if shape not in forms:
            forms[shape] = recognise(row, self.task.text_field, self.task.title_field)
        form = forms[shape]
        record = form.convert(row) if form is not None else None
        self.forms[form.name if form is not None else "unknown"] += 1
        if isinstance(record, Document):
            document = RawDocument(file.name, record.title, record.kind, record.text, origin=file.name)
            self._take_document(document, fraction)
        elif isinstance(record, (Conversation, PreferencePair)):
            mended = _mended_record(record)
            self.records.add(file.name, key_of(mended), mended)
        else:
            reason = "empty_record" if form is not None else "unknown_fields"
            text = json.dumps(row, ensure_ascii=False, default=str)[:400]
            self._reject_row(file, text, reason, f"row {number}")

    def _take_document(self, document: RawDocument, fraction: float) -> None:
        size = utf8_length(document.text)
        self.funnel.passed("read", size)
        if fraction < 1.0 and not in_fraction(document.text, "sample", fraction):
            self.funnel.left_out("sampled", size)
            return
        self.funnel.passed("sampled", size)
        self.cleaner.add(document)

    def _reject_row(self, file: SourceFile, text: str, reason: str, detail: str) -> None:
        about = {"doc_id": hashed_id("row", file.name, text), "source": file.name, "title": ""}
        self.funnel.dropped("records", reason, text, detail, num_bytes=utf8_length(text), **about)


def record_id(kind: str, messages: Iterable[Message]) -> str:
    """Id of a record: a hash of what is said in it."""
    return hashed_id(kind, *(json.dumps(message.as_row(), ensure_ascii=False) for message in messages))


def key_of(record: Conversation | PreferencePair) -> str:
    """Id of a conversation or pair."""
    if isinstance(record, Conversation):
        return record_id("conversation", record.messages)
    answers = (Message("assistant", record.chosen), Message("assistant", record.rejected))
    return record_id("pair", (*record.prompt, *answers))


def said(record: Conversation | PreferencePair) -> str:
    """What is said in a record, as a text."""
    if isinstance(record, PreferencePair):
        return "\n\n".join([*(message.content for message in record.prompt), record.chosen])
    return "\n\n".join(message.content for message in record.messages if message.content)


def _mended_record(record: Conversation | PreferencePair) -> Conversation | PreferencePair:
    if isinstance(record, Conversation):
        return Conversation(tuple(map(_mended, record.messages)))
    chosen, rejected = (repair_text(text).text for text in (record.chosen, record.rejected))
    return PreferencePair(tuple(map(_mended, record.prompt)), chosen, rejected)


def _mended(message: Message) -> Message:
    return Message(message.role, repair_text(message.content).text, message.tool_calls)


def _as_json(record: Conversation | PreferencePair) -> dict[str, Any]:
    if isinstance(record, Conversation):
        return {"messages": [vars(message) for message in record.messages]}
    prompt = [vars(message) for message in record.prompt]
    return {"prompt": prompt, "chosen": record.chosen, "rejected": record.rejected}


def _from_json(fields: dict[str, Any]) -> Conversation | PreferencePair:
    turns = tuple(
        Message(m["role"], m["content"], tuple(m["tool_calls"]))
        for m in fields.get("messages") or fields.get("prompt") or ()
    )
    if "messages" in fields:
        return Conversation(turns)
    return PreferencePair(turns, fields["chosen"], fields["rejected"])

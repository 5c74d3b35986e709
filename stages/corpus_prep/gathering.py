"""Everything that comes in, the harvest or the user's files: documents, conversations and pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.corpus_prep.benchmark_forms import (
    Question,
    looks_like_benchmark,
    questions_of,
    unknown_question_form,
)
from stages.corpus_prep.cleaning import Cleaner, RawDocument, utf8_length
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.harvest import harvest
from stages.corpus_prep.harvest_files import harvested_packages
from stages.corpus_prep.reading.readers import ReadNotes, Row, read_rows
from stages.corpus_prep.reading.record_forms import (
    Conversation,
    Document,
    Form,
    Message,
    PreferencePair,
    recognise,
    unknown_form,
)
from stages.corpus_prep.reading.sources import SourceFile, expand
from stages.corpus_prep.sampling import Smallest, fair_shares, hashed_id, in_fraction
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.text_repair import repair_text
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession

OVERSAMPLE = 2.0
"""How much more than its share of the limit a source may read: filters and duplicates take their part."""
GZIP_FACTOR = 4


@dataclass
class Gathered:
    """Records by source, and what the readers noticed. Documents are in the cleaner's scratch file."""

    conversations: dict[str, Smallest[Conversation]] = field(default_factory=dict)
    preferences: dict[str, Smallest[PreferencePair]] = field(default_factory=dict)
    forms: Counter[tuple[str, str]] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)


class Gatherer:
    """Reads all sources of a configuration into a cleaner and a `Gathered`."""

    def __init__(
        self, config: CorpusPrepConfig, cleaner: Cleaner, funnel: Funnel, session: StageSession
    ) -> None:
        self.config = config
        self.cleaner = cleaner
        self.funnel = funnel
        self.session = session
        self.result = Gathered()
        self.max_bytes = int(config.max_megabytes * 1e6)
        self.without_rows: list[str] = []

    def gather(self) -> Gathered:
        """Read everything. Raises UserError for files that are missing, broken or of unknown form."""
        if self.config.sources:
            self._read_files(expand("sources", self.config.sources))
        else:
            self._harvest()
        if self.cleaner.num_kept == 0:
            self._documents_from_records()
        if self.cleaner.num_kept == 0:
            raise UserError(
                "corpus_prep found no document that it could keep",
                hint=self._why(),
            )
        return self.result

    def _why(self) -> str:
        """`dropped: too_short (quality) 3, bad_json (records) 1; nothing is in notes.jsonl`."""
        reasons = [f"{reason} ({step}) {n:,}" for (step, reason), n in self.funnel.reasons.most_common()]
        told = [f"dropped: {', '.join(reasons)}"] if reasons else []
        if self.without_rows:
            told.append(f"nothing is in {', '.join(self.without_rows)}")
        return "; ".join(told) or "the sources are empty"

    def _harvest(self) -> None:
        packages = harvested_packages(self.config.packages)
        self.session.log(f"reading the documentation of {len(packages)} packages of this Python")
        documents = harvest(packages, self.max_bytes, lambda d, t: self.session.progress(d, t, "files"))
        for number, document in enumerate(documents, start=1):
            self._take_document(
                RawDocument(document.package, document.title, document.kind, document.text), 1.0
            )
            self.session.progress(number, len(documents), "documents")

    def _read_files(self, files: list[SourceFile]) -> None:
        sizes = {file.name: max(1, _text_size(file)) for file in files}
        texts = {file.name: sizes[file.name] for file in files if self._holds_documents(file)}
        shares = sizes | fair_shares(texts, int(self.max_bytes * OVERSAMPLE))
        done, total = 0, sum(sizes.values())
        for file in files:
            self.session.log(f"reading {file.name} ({sizes[file.name] / 1e6:.1f} MB)")
            fraction = min(1.0, shares[file.name] / sizes[file.name])
            notes = ReadNotes()
            forms: dict[tuple[str, ...], Form | None] = {}
            used = num_rows = 0
            for number, row in enumerate(read_rows(file, notes)):
                num_rows += 1
                self._take_row(file, number, row, fraction, forms)
                used = min(sizes[file.name], used + _row_size(row))
                self.session.progress(int((done + used) / 1e3), int(total / 1e3), "kB", file=file.name)
            done += sizes[file.name]
            if num_rows == 0:
                self.without_rows.append(file.name)
                self.session.warn(f"{file.name} holds no rows")
            self._note(file, notes)
        self.session.progress(int(total / 1e3), int(total / 1e3), "kB")

    def _holds_documents(self, file: SourceFile) -> bool:
        """Whether the first row is a document: only those compete for the size limit."""
        first = next(read_rows(file, ReadNotes()), None)
        form = (
            recognise(first, self.config.text_field, self.config.title_field) if first is not None else None
        )
        return form is not None and form.kind == "document"

    def _note(self, file: SourceFile, notes: ReadNotes) -> None:
        self.result.encodings.update(notes.encodings)
        if notes.encodings:
            self.session.log(f"{file.name}: read as {', '.join(sorted(notes.encodings))}")
        for number, start in notes.bad_lines:
            self._reject_row(file, start, "bad_json", f"line {number}")
        if notes.bad_lines:
            self.session.warn(
                f"{file.name}: {len(notes.bad_lines)} lines are no JSON objects and were left out"
            )

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
            forms[shape] = self._form_of(file, row, is_first=not forms)
        form = forms[shape]
        record = form.convert(row) if form is not None else None
        self.result.forms[file.name, form.name if form is not None else "unknown"] += 1
        if isinstance(record, Document):
            self._take_document(RawDocument(file.name, record.title, record.kind, record.text), fraction)
        elif isinstance(record, Conversation):
            self._take_conversation(file.name, record)
        elif isinstance(record, PreferencePair):
            self._take_pair(file.name, record)
        else:
            reason = "empty_record" if form is not None else "unknown_fields"
            self._reject_row(
                file, json.dumps(row, ensure_ascii=False, default=str)[:400], reason, f"row {number + 1}"
            )

    def _form_of(self, file: SourceFile, row: Row, is_first: bool) -> Form | None:
        """A file's first row must be of a known form; later ones that are not are rejects."""
        if looks_like_benchmark(row) and not self.config.text_field:
            raise UserError(
                f"{file.name} holds benchmark questions ({', '.join(row)})",
                hint="give it as corpus_prep.benchmark_sources: training on it would spoil the scores",
            )
        form = recognise(row, self.config.text_field, self.config.title_field)
        if form is None and is_first:
            raise unknown_form(file.name, row, self.config.text_field)
        return form

    def _take_document(self, document: RawDocument, fraction: float) -> None:
        size = utf8_length(document.text)
        self.funnel.passed("read", size)
        if fraction < 1.0 and not in_fraction(document.text, "sample", fraction):
            self.funnel.left_out("sampled", size)
            return
        self.funnel.passed("sampled", size)
        self.cleaner.add(document)

    def _take_conversation(self, source: str, record: Conversation) -> None:
        mended = Conversation(tuple(_mended(message) for message in record.messages))
        key = record_id("conversation", mended.messages)
        held = self.result.conversations.setdefault(source, Smallest(self.config.max_conversations))
        held.add(key, mended)

    def _take_pair(self, source: str, record: PreferencePair) -> None:
        prompt = tuple(_mended(message) for message in record.prompt)
        chosen, rejected = (repair_text(text).text for text in (record.chosen, record.rejected))
        key = record_id("pair", (*prompt, Message("assistant", chosen), Message("assistant", rejected)))
        held = self.result.preferences.setdefault(source, Smallest(self.config.max_preferences))
        held.add(key, PreferencePair(prompt, chosen, rejected))

    def _reject_row(self, file: SourceFile, text: str, reason: str, detail: str) -> None:
        about = {"doc_id": hashed_id("row", file.name, text), "source": file.name, "title": ""}
        self.funnel.dropped("records", reason, text, detail, num_bytes=utf8_length(text), **about)

    def _documents_from_records(self) -> None:
        """Without documents, what was said in conversations and pairs is what there is to learn from."""
        records = [
            (source, record)
            for held in (self.result.conversations, self.result.preferences)
            for source, sample in held.items()
            for _, record in sample.items()
        ]
        for source, record in records:
            self._take_document(RawDocument(source, "", "text", _said(record)), 1.0)


def _said(record: Conversation | PreferencePair) -> str:
    if isinstance(record, PreferencePair):
        return "\n\n".join([*(message.content for message in record.prompt), record.chosen])
    return "\n\n".join(message.content for message in record.messages if message.content)


def record_id(kind: str, messages: Iterable[Message]) -> str:
    """Id of a record: a hash of what is said in it."""
    return hashed_id(kind, *(json.dumps(message.as_row(), ensure_ascii=False) for message in messages))


def _mended(message: Message) -> Message:
    return Message(message.role, repair_text(message.content).text, message.tool_calls)


def _row_size(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str)) + 64


def _text_size(file: SourceFile) -> int:
    """About how many bytes of text a file holds, without reading it."""
    if file.kind == ".parquet":
        return _parquet_size(file.path)
    size = file.path.stat().st_size
    return size * GZIP_FACTOR if file.is_compressed else size


def _parquet_size(path: Path) -> int:
    """Uncompressed bytes by the footer; 1 for a file that has none, which its reader then reports."""
    try:
        footer = pq.read_metadata(path)
    except (OSError, ValueError):
        return 1
    return sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))


def read_own_questions(config: CorpusPrepConfig, session: StageSession) -> dict[str, Smallest[Question]]:
    """Source -> questions of `benchmark_sources`. Raises UserError for a file without any of a known form."""
    found: dict[str, Smallest[Question]] = {}
    for file in expand("benchmark_sources", config.benchmark_sources) if config.benchmark_sources else []:
        sample: Smallest[Question] = Smallest(config.max_questions_per_source)
        first: dict[str, Any] = {}
        for row in read_rows(file, ReadNotes()):
            first = first or row
            for question in questions_of(row) or ():
                key = hashed_id("question", question.question, *question.choices)
                sample.add(key, question)
        if not len(sample):
            raise unknown_question_form(file.name, first)
        session.log(f"{file.name}: {sample.num_added:,} questions, {len(sample):,} taken")
        found[file.name] = sample
    return found

"""The first thing that is done to a shard: its files are read, repaired and judged.

A shard is a group of files (or parts of one). What comes out lies in the shard's folder: `texts.parquet`,
`measures.parquet` with what they are judged by, `records.jsonl` with conversations and preference pairs,
`rejects/`; and its counts are the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.cleaning import RAW_SCHEMA, Cleaner, RawDocument, text_bytes, utf8_length
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.held_records import HeldRecord, Records
from stages.corpus_prep.reading.batches import Names, read_batches
from stages.corpus_prep.reading.damage import OnDamage, ReadNotes, Reject
from stages.corpus_prep.reading.pieces import Piece
from stages.corpus_prep.reading.readers import read_rows
from stages.corpus_prep.reading.record_forms import (
    Conversation,
    Document,
    Form,
    PreferencePair,
    Refused,
    recognise,
)
from stages.corpus_prep.reading.rows import ReadRow, licence_of, url_of
from stages.corpus_prep.reading.sources import SourceFile
from stages.corpus_prep.sampling import hashed_id, in_fraction
from stages.corpus_prep.screening.clean_records import RecordCleaner, mask_text
from stages.corpus_prep.screening.identify_languages import why_no_model
from stages.corpus_prep.screening.screen_documents import Screening
from stages.corpus_prep.screening.screen_records import duplicate_key, record_text
from stages.corpus_prep.text_repair import without_surrogates

TEXTS_NAME = "texts.parquet"
MEASURES_NAME = "measures.parquet"
RECORDS_NAME = "records.jsonl"
REJECTS_NAME = "rejects"


@dataclass(frozen=True)
class Share:
    """A piece of a file, and which fraction of its documents is wanted."""

    piece: Piece
    fraction: float
    is_ours: bool = False
    """Whether its rows are documents that we made: {"source", "title", "kind", "text"}."""


@dataclass(frozen=True)
class Preparation:
    """What to read, and how."""

    shares: tuple[Share, ...]
    on_damage: OnDamage
    max_conversations: int
    max_preferences: int
    screening: Screening = field(default_factory=Screening)


def prepare(task: Preparation, folder: Path) -> dict[str, Any]:
    """Do it; the result holds counts of what was read, repaired and left out."""
    return _Preparer(task, folder).run()


def new_file_counts() -> dict[str, Any]:
    """rows: of any kind; read, sampled: documents, and those of them that the size limit lets in."""
    return {"rows": 0, "read": 0, "sampled": 0, "rejects": Counter(), "encodings": {}}


class _Preparer:
    def __init__(self, task: Preparation, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.funnel = Funnel(folder / REJECTS_NAME)
        self.records = Records(task.max_conversations, task.max_preferences)
        self.talk = RecordCleaner(task.screening)
        self.forms: dict[tuple[str, ...], Form | None] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.num_read = self.num_sampled = 0
        self.reasons: Counter[str] = Counter()

    def run(self) -> dict[str, Any]:
        tables = (self.folder / TEXTS_NAME, self.folder / MEASURES_NAME)
        with Cleaner(*tables, self.funnel, self.task.screening) as self.cleaner:
            for share in self.task.shares:
                self._read_ours(share) if share.is_ours else self._read(share)
        self.funnel.close()
        self.records.write(self.folder / RECORDS_NAME)
        return {
            "num_documents": self.cleaner.num_documents,
            "repairs": dict(self.cleaner.repairs),
            "masked": self._masked(),
            "warnings": list(filter(None, [why_no_model()])) if self.cleaner.num_documents else [],
            "files": self.files,
            "funnel": self.funnel.counts(),
        }

    def _masked(self) -> dict[str, dict[str, int]]:
        """What was masked in documents and in records, by kind, and in how many of them."""
        screen, talk = self.cleaner.screen, self.talk
        return {
            "documents": {**screen.masked, "with_any": screen.num_masked},
            "records": {**talk.masked, "with_any": talk.num_masked, "simplified": talk.num_simplified},
        }

    def _read_ours(self, share: Share) -> None:
        """Documents of our own making, which are of many sources."""
        for row in read_rows(share.piece.file, ReadNotes()):
            self._count_read(np.array([utf8_length(row["text"])]), np.array([True]))
            self.cleaner.add(RawDocument(row["title"], row["kind"], row["text"]), row["source"])

    def _read(self, share: Share) -> None:
        file = share.piece.file
        notes = ReadNotes(self.task.on_damage, on_reject=lambda reject: self._reject(file, reject))
        num_rows, before, self.reasons = 0, (self.num_read, self.num_sampled), Counter()
        for found in read_batches(share.piece, notes, Names(file.text_field, file.title_field)):
            if isinstance(found, pa.RecordBatch):
                num_rows += found.num_rows
                self._take_documents(file, found, share.fraction)
            else:
                num_rows += len(found)
                for row in found:
                    self._take_row(file, row, share.fraction)
        about = self.files.setdefault(file.name, new_file_counts())
        about["rows"] += num_rows
        about["read"] += self.num_read - before[0]
        about["sampled"] += self.num_sampled - before[1]
        about["rejects"] = dict(Counter(about["rejects"]) + self.reasons)
        about["encodings"] |= notes.encodings

    def _take_documents(self, file: SourceFile, documents: pa.RecordBatch, fraction: float) -> None:
        wanted = np.ones(documents.num_rows, bool)
        texts = documents.column("text")
        if fraction < 1.0:
            wanted[:] = [in_fraction(text.as_py(), "sample", fraction) for text in texts]
        self._count_read(text_bytes(texts), wanted)
        chosen = documents.select(RAW_SCHEMA.names).filter(pa.array(wanted))
        self.cleaner.add_batch(chosen, file.name, file.origin, file.language)

    def _take_row(self, file: SourceFile, row: ReadRow, fraction: float) -> None:
        shape = (file.text_field, file.title_field, *sorted(row.fields))
        if shape not in self.forms:
            self.forms[shape] = recognise(row.fields, file.text_field, file.title_field)
        form = self.forms[shape]
        record = form.convert(row.fields) if form is not None else Refused("unknown_fields")
        if isinstance(record, Document):
            self._take_document(file, row, record, fraction)
        elif isinstance(record, Conversation | PreferencePair):
            self._take_record(file, row, record)
        else:
            detail = "; ".join(filter(None, (record.detail, row.place)))
            self._reject_row(file, row.preview, record.reason, detail, licence_of(row.fields, file))

    def _take_document(self, file: SourceFile, row: ReadRow, record: Document, fraction: float) -> None:
        wanted = fraction >= 1.0 or in_fraction(record.text, "sample", fraction)
        self._count_read(np.array([utf8_length(record.text)]), np.array([wanted]))
        if wanted:
            about = (licence_of(row.fields, file), row.begin, row.end, url_of(row.fields))
            document = RawDocument(record.title, record.kind, record.text, *about)
            self.cleaner.add(document, file.name, file.origin, file.language)

    def _count_read(self, sizes: NDArray[np.int64], wanted: NDArray[np.bool_]) -> None:
        self.num_read += len(sizes)
        self.num_sampled += int(wanted.sum())
        self.funnel.passed("read", int(sizes.sum()), documents=len(sizes))
        self.funnel.left_out("sampled", int(sizes[~wanted].sum()), int((~wanted).sum()))
        self.funnel.passed("sampled", int(sizes[wanted].sum()), documents=int(wanted.sum()))

    def _take_record(self, file: SourceFile, row: ReadRow, record: Conversation | PreferencePair) -> None:
        mended, reason, detail = self.talk.clean(record)
        licence = licence_of(row.fields, file)
        if reason:
            self._reject_row(file, record_text(mended), reason, detail, licence)
        else:
            held = HeldRecord(mended, licence, file.origin, row.begin, row.end)
            self.records.add(file.name, duplicate_key(mended), held)

    def _reject(self, file: SourceFile, reject: Reject) -> None:
        self._reject_row(file, reject.excerpt, reject.reason, reject.detail, file.licence)

    def _reject_row(self, file: SourceFile, text: str, reason: str, detail: str, licence: str) -> None:
        self.reasons[reason] += 1
        dropped = Reject(file.origin, reason, detail, text)
        drop_row(self.funnel, file, dropped, licence, self.task.screening.mask)


def drop_row(funnel: Funnel, file: SourceFile, reject: Reject, licence: str, mask: Collection[str]) -> None:
    """Record a row that was left out. mask: kinds of personal data that its excerpt may not show."""
    about = {"doc_id": hashed_id("row", file.name, reject.excerpt), "source": file.name, "title": ""}
    text = mask_text(without_surrogates(reject.excerpt), mask)
    lineage = {"licence": licence, "origin": file.origin, "num_bytes": utf8_length(text)}
    funnel.dropped("records", reject.reason, text, reject.detail, **about, **lineage)

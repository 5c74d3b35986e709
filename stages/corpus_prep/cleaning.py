"""Documents on their way through repair into a shard's tables, by batches, with what they are judged by.

Every document that is not empty is kept here, good or bad: whether it stays is decided later, on skinny
columns, over all shards. The text itself is only ever streamed, because engines that buffer rows of long text
run out of memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.quality_filters import judge
from stages.corpus_prep.sampling import hashed_id
from stages.corpus_prep.text_repair import repair_text

#: What decisions are made by; row for row beside the texts.
MEASURES_SCHEMA = pa.schema(
    {
        "doc_id": pa.string(),
        "source": pa.string(),
        "language": pa.string(),
        "num_bytes": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)
TEXTS_SCHEMA = pa.schema(
    {
        "doc_id": pa.string(),
        "source": pa.string(),
        "title": pa.string(),
        "kind": pa.string(),
        "language": pa.string(),
        "licence": pa.string(),
        "origin": pa.string(),
        "byte_start": pa.int64(),
        "byte_end": pa.int64(),
        "num_bytes": pa.int64(),
        "text": pa.large_string(),
    }
)
ROWS_PER_BATCH = 256
BYTES_PER_BATCH = 8 << 20
MAX_TITLE_CHARACTERS = 200


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read or harvested, and where it came from."""

    source: str
    title: str
    kind: str
    text: str
    licence: str = ""
    origin: str = ""
    byte_start: int | None = None
    byte_end: int | None = None


class Cleaner:
    """Repairs and measures documents; use as a context manager, then read `texts` and `measures`."""

    def __init__(self, texts: Path, measures: Path, funnel: Funnel, languages: tuple[str, ...] = ()) -> None:
        self.funnel = funnel
        self.languages = languages
        self.repairs: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.num_documents = 0
        self._waiting: list[RawDocument] = []
        self._buffered = 0
        self._texts = pq.ParquetWriter(texts, TEXTS_SCHEMA, compression="zstd", compression_level=1)
        self._measures = pq.ParquetWriter(measures, MEASURES_SCHEMA, compression="zstd", compression_level=1)

    def add(self, document: RawDocument) -> None:
        """Take one document; an empty one is recorded as dropped."""
        self._waiting.append(document)
        self._buffered += len(document.text)
        if len(self._waiting) >= ROWS_PER_BATCH or self._buffered >= BYTES_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            rows = [asdict(document) for document in self._waiting]
            self.add_batch(pa.Table.from_pylist(rows))
        self._waiting, self._buffered = [], 0

    def add_batch(self, documents: pa.Table) -> None:
        """Take a batch of documents with the columns of `RawDocument`."""
        rows = []
        for row in documents.to_pylist():
            size = utf8_length(row["text"])
            repaired = repair_text(row["text"])
            self.repairs.update(repaired.repairs)
            row["text"] = repaired.text
            row["title"] = repair_text(row["title"]).text[:MAX_TITLE_CHARACTERS]
            row["doc_id"] = content_id(repaired.text)
            row["num_bytes"] = utf8_length(repaired.text)
            if not repaired.text.strip():
                about = {name: row[name] for name in ("doc_id", "source", "title")}
                self.funnel.dropped("repaired", "empty", "", num_bytes=size, **about)
                continue
            self.funnel.passed("repaired", size, row["num_bytes"])
            rows.append({**row, **self._judged(repaired.text)})
        if rows:
            self.num_documents += len(rows)
            self._texts.write_table(_table(rows, TEXTS_SCHEMA))
            self._measures.write_table(_table(rows, MEASURES_SCHEMA))

    def _judged(self, text: str) -> dict[str, str]:
        language = detect_language(text)
        _, reason, detail = judge(text, language)
        if not reason and self.languages and language not in self.languages:
            reason, detail = "other_language", language
        if reason:
            self.bad[reason] += 1
        return {"language": language, "reason": reason, "detail": detail}

    def __enter__(self) -> Cleaner:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._texts.close()
        self._measures.close()


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)


def utf8_length(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


_WHITE_SPACE = re.compile(r"\s+")


def content_id(text: str) -> str:
    """Id of a document: a hash of its text up to letter case and white space, so equal texts share it."""
    return hashed_id("document", _WHITE_SPACE.sub(" ", text).strip().casefold())


def stream(path: Path) -> Iterator[pa.RecordBatch]:
    """A shard's table, one batch in memory at a time; batches begin where they were written."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group])

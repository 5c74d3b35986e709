"""Documents on their way through repair into a shard's tables, by batches, with what they are judged by.

Every document that is not empty is kept here, good or bad: whether it stays is decided later, on skinny
columns, over all shards. The text itself is only ever streamed, because engines that buffer rows of long text
run out of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.measuring.measures import SCHEMA as STATISTICS_SCHEMA
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.screening.identify_languages import identify_languages
from stages.corpus_prep.screening.repair_batches import repair_batch
from stages.corpus_prep.text_repair import REPAIRS

#: What decisions are made by; row for row beside the texts.
MEASURES_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("num_bytes", pa.int64()),
        *STATISTICS_SCHEMA,
    ]
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
ROWS_PER_BATCH = 1024
BYTES_PER_BATCH = 16 << 20
MAX_TITLE_CHARACTERS = 200
ID_DIGITS = 24


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read or harvested, and its place in the file."""

    title: str
    kind: str
    text: str
    licence: str = ""
    begin: int = -1
    end: int = -1


RAW_SCHEMA = pa.schema(
    {
        "title": pa.large_string(),
        "kind": pa.large_string(),
        "text": pa.large_string(),
        "licence": pa.large_string(),
        "begin": pa.int64(),
        "end": pa.int64(),
    }
)


class Cleaner:
    """Repairs and measures documents; use as a context manager, then read the two tables."""

    def __init__(self, texts: Path, measures: Path, funnel: Funnel) -> None:
        self.funnel = funnel
        self.repairs: Counter[str] = Counter()
        self.num_documents = 0
        self._waiting: list[RawDocument] = []
        self._about: tuple[str, str, str] = ("", "", "")
        self._buffered = 0
        self._texts = pq.ParquetWriter(texts, TEXTS_SCHEMA, compression="zstd", compression_level=1)
        self._measures = pq.ParquetWriter(measures, MEASURES_SCHEMA, compression="lz4")

    def add(self, document: RawDocument, source: str, origin: str = "", language: str = "") -> None:
        """Take one document; an empty one is recorded as dropped. language: "" to find it out."""
        if self._about != (source, origin, language):
            self._flush()
            self._about = (source, origin, language)
        self._waiting.append(document)
        self._buffered += len(document.text)
        if len(self._waiting) >= ROWS_PER_BATCH or self._buffered >= BYTES_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            columns = zip(*(vars(document).values() for document in self._waiting), strict=True)
            named = dict(zip(vars(self._waiting[0]), columns, strict=True))
            arrays = [pa.array(named[field.name], field.type) for field in RAW_SCHEMA]
            self._take(pa.RecordBatch.from_arrays(arrays, schema=RAW_SCHEMA), *self._about)
        self._waiting, self._buffered = [], 0

    def add_batch(self, documents: pa.RecordBatch, source: str, origin: str = "", language: str = "") -> None:
        """Take a batch of documents with the columns of RAW_SCHEMA."""
        self._flush()
        if documents.num_rows:
            self._take(documents, source, origin, language)

    def _take(self, documents: pa.RecordBatch, source: str, origin: str, language: str) -> None:
        before = text_bytes(documents.column("text"))
        texts, repairs = repair_batch(documents.column("text"))
        self._count_repairs(repairs)
        statistics = measure(texts)
        filled = statistics.column("visible_characters").to_numpy() > 0
        for place in np.flatnonzero(~filled).tolist():
            about = {"doc_id": "", "source": source, "title": documents.column("title")[place].as_py()}
            self.funnel.dropped("repaired", "empty", "", num_bytes=int(before[place]), **about)
        after = text_bytes(texts)
        self.funnel.passed("repaired", int(before[filled].sum()), int(after[filled].sum()), int(filled.sum()))
        if not filled.any():
            return
        columns = {
            **self._described(documents, texts, language),
            "doc_id": document_ids(statistics.column("text_hash")),
            "source": pa.repeat(source, len(filled)),
            "origin": pa.repeat(origin, len(filled)),
            "num_bytes": pa.array(after),
            **{field.name: statistics.column(field.name) for field in STATISTICS_SCHEMA},
        }
        self._write(columns, pa.array(filled))

    @staticmethod
    def _described(documents: pa.RecordBatch, texts: pa.Array, language: str) -> dict[str, pa.Array]:
        """Columns that follow from the text and from what its file says of it."""
        titles, _ = repair_batch(documents.column("title"))
        spoken = identify_languages(texts)
        scores = spoken.column("language_score")
        begins, ends = documents.column("begin"), documents.column("end")
        nowhere = pc.less(begins, 0)
        return {
            "title": pc.utf8_slice_codeunits(titles, 0, MAX_TITLE_CHARACTERS).cast(pa.string()),
            "kind": documents.column("kind").cast(pa.string()),
            "licence": documents.column("licence").cast(pa.string()),
            "language": pa.repeat(language, len(texts)) if language else spoken.column("language"),
            "language_score": pa.repeat(pa.scalar(1.0, pa.float32()), len(texts)) if language else scores,
            "byte_start": pc.if_else(nowhere, pa.scalar(None, pa.int64()), begins),
            "byte_end": pc.if_else(nowhere, pa.scalar(None, pa.int64()), ends),
            "text": texts,
        }

    def _write(self, columns: dict[str, Any], filled: pa.Array) -> None:
        for writer, schema in ((self._texts, TEXTS_SCHEMA), (self._measures, MEASURES_SCHEMA)):
            arrays = [columns[name] for name in schema.names]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema).filter(filled))
        self.num_documents += pc.sum(filled).as_py()

    def _count_repairs(self, repairs: NDArray[np.uint32]) -> None:
        for bit, name in enumerate(REPAIRS):
            if count := int(((repairs >> np.uint32(bit)) & np.uint32(1)).sum()):
                self.repairs[name] += count

    def __enter__(self) -> Cleaner:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._texts.close()
        self._measures.close()


def text_bytes(texts: pa.Array) -> NDArray[np.int64]:
    """int64 [texts]: bytes of each in UTF-8."""
    return pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)


def document_ids(text_hashes: pa.Array) -> pa.Array:
    """Ids of documents: 24 hex digits of the hash of the text up to letter case and white space."""
    return pa.array([value.hex()[:ID_DIGITS] for value in text_hashes.to_pylist()], pa.string())


def utf8_length(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def content_id(text: str) -> str:
    """The id of a document with this (repaired) text."""
    measured = measure(pa.array([text], pa.large_string()))
    return str(document_ids(measured.column("text_hash"))[0].as_py())


def stream(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A shard's table, one batch in memory at a time; batches begin where they were written."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(ROWS_PER_BATCH, [group], columns, use_threads=False)

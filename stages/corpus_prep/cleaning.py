"""Documents on their way through repair into a shard's tables, by batches, with what they are judged by.

Every document that is not empty is kept here, good or bad: whether it stays is decided later, on skinny
columns, over all shards. The text itself is only ever streamed, because engines that buffer rows of long text
run out of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.measuring.edited_lines import LEFT_SCHEMA
from stages.corpus_prep.measuring.measures import SCHEMA as STATISTICS_SCHEMA
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.screening.repair_batches import repair_batch
from stages.corpus_prep.screening.screen_documents import DocumentScreen, Screening
from stages.corpus_prep.screening.screen_rules import SCREEN_SCHEMA
from stages.corpus_prep.text_repair import REPAIRS, without_surrogates
from stages.corpus_prep.titles import title_hashes

#: What decisions are made by; row for row beside the texts.
MEASURES_SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("num_bytes", pa.int64()),
        ("title_hash", pa.uint64()),
        *STATISTICS_SCHEMA,
        *LEFT_SCHEMA,
        *SCREEN_SCHEMA,
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
    url: str = ""


RAW_SCHEMA = pa.schema(
    {
        "title": pa.large_string(),
        "kind": pa.large_string(),
        "text": pa.large_string(),
        "licence": pa.large_string(),
        "begin": pa.int64(),
        "end": pa.int64(),
        "url": pa.large_string(),
    }
)


class Cleaner:
    """Repairs, screens and measures documents; use as a context manager, then read the two tables."""

    def __init__(
        self, texts: Path, measures: Path, funnel: Funnel, screening: Screening | None = None
    ) -> None:
        self.funnel = funnel
        self.screen = DocumentScreen(screening or Screening())
        self.repairs: Counter[str] = Counter()
        self.num_documents = 0
        self._waiting: list[RawDocument] = []
        self._about: tuple[str, str, str] = ("", "", "")
        self._buffered = 0
        self._texts = pq.ParquetWriter(texts, TEXTS_SCHEMA, compression="zstd", compression_level=1)
        self._measures = pq.ParquetWriter(measures, MEASURES_SCHEMA, compression="lz4")

    def add(self, document: RawDocument, source: str, origin: str = "", language: str = "") -> None:
        """Take one document; an empty one is recorded as dropped. language: "" to find it out."""
        document = self._with_utf8(document)
        if self._about != (source, origin, language):
            self._flush()
            self._about = (source, origin, language)
        self._waiting.append(document)
        self._buffered += len(document.text)
        if len(self._waiting) >= ROWS_PER_BATCH or self._buffered >= BYTES_PER_BATCH:
            self._flush()

    def _with_utf8(self, document: RawDocument) -> RawDocument:
        """Without lone surrogates, which the escapes of JSON bring and Arrow refuses."""
        text, title, url = map(without_surrogates, (document.text, document.title, document.url))
        if text != document.text:
            self.repairs["lone_surrogates"] += 1
        return replace(
            document, text=text, title=title, url=url, licence=without_surrogates(document.licence)
        )

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
        urls, _ = repair_batch(documents.column("url"))
        screened = self.screen.run(texts, _addresses(urls, origin), source, language)
        self._count_repairs(repairs | screened.repairs)
        texts, languages = screened.texts, screened.columns["language"]
        filled = screened.columns["visible_characters"].to_numpy() > 0
        for place in np.flatnonzero(~filled).tolist():
            one = (column.slice(place, 1) for column in (documents.column("title"), languages))
            title = self.screen.screened_titles(*one)[0].as_py()
            licence = documents.column("licence")[place].as_py()
            about = {"doc_id": "", "source": source, "title": title, "licence": licence, "origin": origin}
            self.funnel.dropped("repaired", "empty", "", num_bytes=int(before[place]), **about)
        after = text_bytes(texts)
        self.funnel.passed("repaired", int(before[filled].sum()), int(after[filled].sum()), int(filled.sum()))
        if not filled.any():
            return
        columns = {
            **self._described(documents, languages),
            "origin": _or_else(urls, origin).cast(pa.string()),
            **screened.columns,
            "doc_id": document_ids(screened.columns["text_hash"]),
            "source": pa.repeat(source, len(filled)),
            "num_bytes": pa.array(after),
            "text": texts,
        }
        self._write(columns, pa.array(filled))

    def _described(self, documents: pa.RecordBatch, languages: pa.Array) -> dict[str, pa.Array]:
        """Columns that follow from what the file says of the documents."""
        titles, _ = repair_batch(documents.column("title"))
        titles = self.screen.screened_titles(titles, languages)
        titles = pc.utf8_slice_codeunits(titles, 0, MAX_TITLE_CHARACTERS)
        begins, ends = documents.column("begin"), documents.column("end")
        nowhere = pc.less(begins, 0)
        return {
            "title": titles.cast(pa.string()),
            "title_hash": pa.array(title_hashes(titles)),
            "kind": documents.column("kind").cast(pa.string()),
            "licence": documents.column("licence").cast(pa.string()),
            "byte_start": pc.if_else(nowhere, pa.scalar(None, pa.int64()), begins),
            "byte_end": pc.if_else(nowhere, pa.scalar(None, pa.int64()), ends),
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


def _addresses(urls: pa.Array, origin: str) -> pa.Array:
    """Where each document is from: its own address, or that of its file; "" where neither is known."""
    return _or_else(urls, origin if "://" in origin else "")


def _or_else(texts: pa.Array, other: str) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(other, texts.type), texts)


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

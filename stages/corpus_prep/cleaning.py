"""Documents on their way through repair into a shard's table, one at a time, each with what it was judged by.

Every document that is not empty is kept here, good or bad: whether it stays is decided later, on skinny
columns, over all shards. The text itself is only ever streamed, because engines that buffer rows of long text
run out of memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.quality_filters import judge
from stages.corpus_prep.sampling import hashed_id
from stages.corpus_prep.text_repair import repair_text

SCRATCH_SCHEMA = pa.schema(
    {
        "doc_id": pa.string(),
        "source": pa.string(),
        "title": pa.string(),
        "kind": pa.string(),
        "language": pa.string(),
        "num_bytes": pa.int64(),
        "reason": pa.string(),
        "detail": pa.string(),
        "text": pa.large_string(),
    }
)
ROWS_PER_GROUP = 256
BYTES_PER_GROUP = 8 << 20
MAX_TITLE_CHARACTERS = 200


@dataclass(frozen=True)
class RawDocument:
    """A document as it was read or harvested."""

    source: str
    title: str
    kind: str
    text: str


class Cleaner:
    """Repairs and judges documents; use as a context manager, then read `scratch`."""

    def __init__(self, scratch: Path, funnel: Funnel, languages: tuple[str, ...] = ()) -> None:
        self.scratch = scratch
        self.funnel = funnel
        self.languages = languages
        self.repairs: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.num_documents = 0
        self._rows: list[dict[str, Any]] = []
        self._buffered = 0
        self._writer = pq.ParquetWriter(scratch, SCRATCH_SCHEMA, compression="zstd", compression_level=1)

    def add(self, document: RawDocument) -> None:
        """Take one document; an empty one is recorded as dropped."""
        size = utf8_length(document.text)
        repaired = repair_text(document.text)
        self.repairs.update(repaired.repairs)
        text, title = repaired.text, repair_text(document.title).text[:MAX_TITLE_CHARACTERS]
        doc_id = content_id(text)
        about = {"doc_id": doc_id, "source": document.source, "title": title}
        if not text.strip():
            self.funnel.dropped("repaired", "empty", "", num_bytes=size, **about)
            return
        num_bytes = utf8_length(text)
        self.funnel.passed("repaired", size, num_bytes)
        language = detect_language(text)
        _, reason, detail = judge(text, language)
        if not reason and self.languages and language not in self.languages:
            reason, detail = "other_language", language
        if reason:
            self.bad[reason] += 1
        judged = {"language": language, "reason": reason, "detail": detail}
        self._keep({**about, **judged, "kind": document.kind, "num_bytes": num_bytes, "text": text})

    def _keep(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.num_documents += 1
        self._buffered += row["num_bytes"]
        if len(self._rows) >= ROWS_PER_GROUP or self._buffered >= BYTES_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCRATCH_SCHEMA))
        self._rows, self._buffered = [], 0

    def __enter__(self) -> Cleaner:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()


def utf8_length(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


_WHITE_SPACE = re.compile(r"\s+")


def content_id(text: str) -> str:
    """Id of a document: a hash of its text up to letter case and white space, so equal texts share it."""
    return hashed_id("document", _WHITE_SPACE.sub(" ", text).strip().casefold())


def scratch_batches(scratch: Path) -> Iterator[pa.RecordBatch]:
    """Stream a shard's table; memory holds one batch."""
    with pq.ParquetFile(scratch) as file:
        for group in range(file.num_row_groups):
            yield from file.iter_batches(batch_size=ROWS_PER_GROUP, row_groups=[group])

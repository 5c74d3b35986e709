"""What conversations and questions need of the documents that stay: gathered by shard, then put together.

Memory is bounded whatever the corpus: the selection says which few documents make entries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.benchmark_questions import Passage
from stages.corpus_prep.cleaning import stream
from stages.corpus_prep.decontamination import ContaminationIndex, Overlap
from stages.corpus_prep.entries import Entry, EntryBook
from stages.corpus_prep.sampling import Smallest
from stages.corpus_prep.selection import KEPT, SPLIT_NAMES
from stages.runtime.shard_map import Shard

MAX_PASSAGES = 2000
ENTRIES_NAME = "entries.jsonl"
PASSAGES_NAME = "passages.jsonl"
LEAKS_NAME = "leaks.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class SurveyTask:
    """A shard's texts and what was decided about them."""

    texts: Path
    decision: Path


@dataclass(frozen=True)
class LeakTask:
    """A shard, and a JSON list of (doc_id, sentence) of held-out documents."""

    texts: Path
    decision: Path
    held_out: Path


@dataclass
class Survey:
    """Entries of titled documents, passages of held-out ones."""

    book: EntryBook = field(default_factory=EntryBook)
    passages: Smallest[Passage] = field(default_factory=lambda: Smallest(MAX_PASSAGES))

    def merge(self, shard: Shard) -> None:
        """Add what was found in a shard."""
        self.book.merge(_lines(shard.folder / ENTRIES_NAME))
        for fields in _lines(shard.folder / PASSAGES_NAME):
            self.passages.add(fields["doc_id"], Passage(**fields))


@dataclass(frozen=True)
class DecidedBatch:
    """Some neighbouring documents of a shard. verdicts, splits: uint8 [documents], see `Selection`."""

    texts: pa.RecordBatch
    verdicts: NDArray[np.uint8]
    splits: NDArray[np.uint8]
    entries: NDArray[np.bool_]
    """Whether it shall make an entry."""
    start: int
    """Position of the first one in the shard."""

    def rows(self, where: NDArray[np.bool_]) -> Iterator[tuple[int, Row]]:
        """(place in the batch, columns) of some of the documents."""
        places = np.flatnonzero(where)
        return zip(places.tolist(), self.texts.take(places).to_pylist(), strict=True)

    def kept_of(self, split: str) -> NDArray[np.bool_]:
        """bool [documents]: whether it stays so far, in this split."""
        return (self.verdicts == KEPT) & (self.splits == SPLIT_NAMES.index(split))


def decided(texts: Path, decision: Path) -> Iterator[DecidedBatch]:
    """A shard's documents with what was decided about them, streamed."""
    with pq.ParquetFile(decision) as file:
        table = file.read(columns=["verdict", "split", "entry"])
    verdicts, splits, entries = (column.to_numpy() for column in table.columns)
    start = 0
    for batch in stream(texts):
        rows = slice(start, start + batch.num_rows)
        yield DecidedBatch(batch, verdicts[rows], splits[rows], entries[rows], start)
        start += batch.num_rows


def survey_shard(task: SurveyTask, folder: Path) -> dict[str, Any]:
    """Stream a shard's kept rows once."""
    found = Survey()
    for batch in decided(task.texts, task.decision):
        for place, row in batch.rows(batch.entries):
            found.book.add(row, SPLIT_NAMES[batch.splits[place]])
        for _, row in batch.rows(batch.kept_of("validation")):
            if found.passages.wants(row["doc_id"]) and (passage := _passage(row)) is not None:
                found.passages.add(row["doc_id"], passage)
    _write_lines(folder / ENTRIES_NAME, found.book.as_json())
    _write_lines(folder / PASSAGES_NAME, (asdict(passage) for _, passage in found.passages.items()))
    return {}


def find_leaks(task: LeakTask, folder: Path) -> dict[str, Any]:
    """Training documents that hold the first sentence of a held-out one: doc_id -> which."""
    index = ContaminationIndex([tuple(item) for item in json.loads(task.held_out.read_text("utf-8"))])
    leaks: dict[str, list[dict[str, str]]] = {}
    for batch in decided(task.texts, task.decision):
        places = pa.array(np.flatnonzero(batch.kept_of("train")))
        documents = batch.texts.select(["doc_id", "text"]).take(places)
        found = index.find_batch(documents.column("text"))
        for number, overlap in zip(found.document.tolist(), index.overlaps(found), strict=True):
            leaks.setdefault(documents.column("doc_id")[number].as_py(), []).append(asdict(overlap))
    (folder / LEAKS_NAME).write_text(json.dumps(leaks), encoding="utf-8")
    return {}


def write_held_out(entries: Sequence[Entry], path: Path) -> None:
    """What `find_leaks` looks for."""
    items = [(entry.doc_id, entry.sentence) for entry in entries]
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def read_leaks(path: Path) -> dict[str, list[Overlap]]:
    """What `find_leaks` found in a shard."""
    found: Mapping[str, list[dict[str, str]]] = json.loads(path.read_text(encoding="utf-8"))
    return {doc_id: [Overlap(**overlap) for overlap in overlaps] for doc_id, overlaps in found.items()}


_SENTENCES = re.compile(r"[^.!?。！？؟]{12,160}[.!?。！？؟]")


def _passage(row: Row) -> Passage | None:
    """Two sentences that follow each other, from the beginning of a document."""
    found = islice(_SENTENCES.finditer(row["text"], 0, 2000), 2)
    sentences = [" ".join(sentence[0].split()) for sentence in found]
    if len(sentences) < 2:
        return None
    return Passage(row["doc_id"], row["source"], row["language"], sentences[0], sentences[1])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

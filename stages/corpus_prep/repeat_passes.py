"""What is done to a shard to find and cut text that other documents hold, too; `repeats.py` is the story."""

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

from stages.corpus_prep.cleaning import ROWS_PER_BATCH, document_ids, stream, text_bytes
from stages.corpus_prep.duplicates.partitioned_files import (
    PARTITION_BITS,
    PartitionedFiles,
    create_hash_files,
)
from stages.corpus_prep.duplicates.repeat_counts import read_shared, share_repeated
from stages.corpus_prep.duplicates.repeated_runs import RepeatedRuns
from stages.corpus_prep.duplicates.repeated_spans import RepeatedSpans, Spans, cut_spans
from stages.corpus_prep.funnel import LINEAGE, Funnel
from stages.corpus_prep.measuring.edited_lines import LEFT_SCHEMA
from stages.corpus_prep.measuring.measures import SCHEMA as STATISTICS_SCHEMA
from stages.corpus_prep.measuring.measures import measure
from stages.corpus_prep.preparation import MEASURES_NAME, REJECTS_NAME, TEXTS_NAME
from stages.corpus_prep.screening.repair_batches import repair_batch
from stages.corpus_prep.screening.screen_documents import DocumentScreen, Screening

STEP = "repeats_cut"
ONLY_REPEATS = "only_repeats"
RUN = "run"
NUM_PARTITIONS = 1 << PARTITION_BITS
NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = 80
PORTION_BYTES = 4 << 20
CODE = "code"


@dataclass(frozen=True)
class RepeatRules:
    """What to cut; 0 is off. See the settings `repeated_...`."""

    paragraph_documents: int = 0
    line_documents: int = 0
    min_characters: int = 30
    run_words: int = 0

    @property
    def more_than(self) -> dict[str, int]:
        """Kind -> how many documents may hold one and the same; only kinds that are on."""
        limits = {"paragraph": self.paragraph_documents, "line": self.line_documents}
        return {kind: n for kind, n in limits.items() if n} | ({RUN: 1} if self.run_words else {})

    def finder(self, kind: str) -> RepeatedSpans | RepeatedRuns:
        """Who finds the repeats of a kind."""
        if kind == RUN:
            return RepeatedRuns(self.run_words)
        return RepeatedSpans("line" if kind == "line" else "paragraph", self.min_characters)


@dataclass(frozen=True)
class MeasuredShard:
    """A shard's tables and its place among all shards.

    originals: a file of uint32 [documents of the corpus], the first document with the same text.
    """

    texts: Path
    measures: Path
    originals: Path
    number: int
    starts: tuple[int, ...]
    """[shards + 1]: the number of each shard's first document."""

    def own_originals(self) -> NDArray[np.uint32]:
        """Those of this shard."""
        rows = slice(self.starts[self.number], self.starts[self.number + 1])
        return np.array(np.load(self.originals, mmap_mode="r")[rows])

    def repeated(self, counted: Path, kind: str) -> Any:
        """What `count_repeats` found of this shard's hashes."""
        folders = [folder / kind for folder in sorted(counted.glob("?????"))]
        return read_shared(folders, self.number, len(self.starts) - 1)


@dataclass(frozen=True)
class NoteTask:
    """counted: folder of what was counted of the fingerprints of runs; None for the first pass."""

    shard: MeasuredShard
    rules: RepeatRules
    counted: Path | None = None


@dataclass(frozen=True)
class CountTask:
    """noted: folder of the shards' notes. first, last: partitions."""

    noted: Path
    originals: Path
    more_than: tuple[tuple[str, int], ...]
    starts: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class CutTask:
    """counted: kind -> folder of what was counted."""

    shard: MeasuredShard
    rules: RepeatRules
    counted: tuple[tuple[str, Path], ...]
    screening: Screening


def note_shard(task: NoteTask, folder: Path) -> dict[str, Any]:
    """Write down the hashes of everything in a shard that could be repeated."""
    kinds = [RUN] if task.counted else list(task.rules.more_than)
    files = {kind: create_hash_files(folder / kind) for kind in kinds}
    runs = RepeatedRuns(task.rules.run_words)
    repeated = task.shard.repeated(task.counted, RUN) if task.counted else None
    for texts, documents in _prose(task.shard):
        for kind in kinds:
            if repeated is None:
                task.rules.finder(kind).note(texts, documents, files[kind])
            else:
                runs.note_runs(texts, documents, repeated, files[kind])
    for file in files.values():
        file.flush()
    return {}


def _prose(shard: MeasuredShard) -> Iterator[tuple[pa.Array, NDArray[np.int64]]]:
    """(texts, numbers) without source code."""
    number = shard.starts[shard.number]
    for batch in stream(shard.texts, ["language", "text"]):
        prose = np.flatnonzero(~_is_code(batch))
        for places, texts in _portions(batch.column("text").take(pa.array(prose))):
            yield texts, prose[places] + number
        number += batch.num_rows


def _portions(texts: pa.Array) -> Iterator[tuple[slice, pa.Array]]:
    """Neighbouring texts of about 4 MB: their words take ten times as much memory."""
    ends, begin = np.cumsum(text_bytes(texts)), 0
    while begin < len(texts):
        most = PORTION_BYTES + (ends[begin - 1] if begin else 0)
        end = max(begin + 1, int(np.searchsorted(ends, most, "right")))
        yield slice(begin, end), texts[begin:end]
        begin = end


def _is_code(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    return pc.equal(batch.column("language"), CODE).to_numpy(zero_copy_only=False)


def count_repeats(task: CountTask, folder: Path) -> dict[str, Any]:
    """Count what all shards noted in some partitions."""
    starts, originals = np.array(task.starts, np.int64), np.load(task.originals, mmap_mode="r")
    for kind, more_than in task.more_than:
        (folder / kind).mkdir()
        noted = [task.noted / f"{number:05d}" / kind for number in range(len(starts) - 1)]
        files = [PartitionedFiles(path, NUM_PARTITIONS) for path in noted]
        partitions = range(task.first, task.last)
        share_repeated(files, starts, originals, partitions, more_than, folder / kind)
    return {}


def cut_shard(task: CutTask, folder: Path) -> dict[str, Any]:
    """Write a shard's tables again, without what earlier documents hold."""
    return _Cutter(task, folder).run()


class _Cutter:
    def __init__(self, task: CutTask, folder: Path) -> None:
        self.shard, self.folder = task.shard, folder
        self.screen = DocumentScreen(task.screening)
        self.finders = {kind: task.rules.finder(kind) for kind, _ in task.counted}
        self.repeated = {kind: task.shard.repeated(counted, kind) for kind, counted in task.counted}
        self.funnel = Funnel(folder / REJECTS_NAME)
        self.num_documents = self.num_changed = 0
        self.num_spans = Counter(dict.fromkeys(self.finders, 0))
        self.examples: dict[str, list[str]] = {kind: [] for kind in self.finders}

    def run(self) -> dict[str, Any]:
        originals, place = self.shard.own_originals(), 0
        with (
            pq.ParquetFile(self.shard.texts) as texts,
            pq.ParquetFile(self.shard.measures) as measures,
            pq.ParquetWriter(
                self.folder / TEXTS_NAME, texts.schema_arrow, compression="zstd", compression_level=1
            ) as texts_out,
            pq.ParquetWriter(
                self.folder / MEASURES_NAME, measures.schema_arrow, compression="lz4"
            ) as measures_out,
        ):
            for documents, about in _side_by_side(texts, measures):
                own = originals[place : place + documents.num_rows]
                place += documents.num_rows
                left, about_left = self._cut(documents, about, own)
                texts_out.write_table(left)
                measures_out.write_table(about_left)
                self.num_documents += left.num_rows
        self.funnel.close()
        names = ("num_documents", "num_changed", "num_spans", "examples")
        return {name: getattr(self, name) for name in names} | {"funnel": self.funnel.counts()}

    def _cut(
        self, documents: pa.RecordBatch, about: pa.Table, originals: NDArray[np.uint32]
    ) -> tuple[pa.Table, pa.Table]:
        """The batch and its measures after the cut."""
        before = documents.column("num_bytes").to_numpy()
        texts, spans = documents.column("text"), self._find(documents, originals)
        changed = np.unique(spans.text)
        left, _ = repair_batch(
            cut_spans(
                texts.take(pa.array(changed)),
                Spans(np.searchsorted(changed, spans.text), spans.begin, spans.end),
            )
        )
        columns = measured_again(left, self.screen)
        filled = columns["visible_characters"].to_numpy() > 0
        after = before.copy()
        after[changed] = text_bytes(left)
        stays = np.ones(len(before), bool)
        stays[changed[~filled]] = False
        self._record(documents.filter(pa.array(~stays)))
        self.funnel.passed(STEP, int(before[stays].sum()), int(after[stays].sum()), int(stays.sum()))
        self.num_changed += int(filled.sum())
        whole = pa.Table.from_batches([documents])
        return tuple(_replaced(table, changed, columns).filter(pa.array(stays)) for table in (whole, about))

    def _find(self, documents: pa.RecordBatch, originals: NDArray[np.uint32]) -> Spans:
        """What to cut out of the batch, of all kinds; counted."""
        prose = np.flatnonzero(~_is_code(documents))
        found = [(prose[:0],) * 3]
        for places, texts in _portions(documents.column("text").take(pa.array(prose))):
            numbers = originals[prose[places]].astype(np.int64)
            for kind, finder in self.finders.items():
                if len(self.repeated[kind].hashes):
                    spans = finder.find(texts, numbers, self.repeated[kind])
                    self.num_spans[kind] += len(spans.text)
                    self._show(kind, texts, spans)
                    found.append((prose[places][spans.text], spans.begin, spans.end))
        return Spans(*map(np.concatenate, zip(*found, strict=True)))

    def _show(self, kind: str, texts: pa.Array, spans: Spans) -> None:
        shown = self.examples[kind]
        for text, begin, end in zip(spans.text, spans.begin, spans.end, strict=True):
            if len(shown) == NUM_EXAMPLES:
                return
            words = texts[int(text)].as_py().encode()[begin:end].decode().split()
            shown.append(" ".join(words)[:EXAMPLE_CHARACTERS])

    def _record(self, emptied: pa.RecordBatch) -> None:
        """Documents of which nothing is left."""
        for row in emptied.to_pylist():
            about = {name: row[name] for name in LINEAGE}
            self.funnel.dropped(STEP, ONLY_REPEATS, row["text"], "all of it stands elsewhere", **about)


def measured_again(texts: pa.Array, screen: DocumentScreen) -> dict[str, pa.Array]:
    """Every column of a shard's two tables that follows from the text of a document, for changed texts.

    `left_*` are empty: C4's edits were made before, so all statistics are now those of the edited text.
    """
    statistics = measure(texts)
    return {
        "doc_id": document_ids(statistics.column("text_hash")),
        "num_bytes": pa.array(text_bytes(texts)),
        "text": texts,
        **{field.name: statistics.column(field.name) for field in STATISTICS_SCHEMA},
        **{field.name: pa.nulls(len(texts), field.type) for field in LEFT_SCHEMA},
        **screen.text_scores(texts),
    }


def _side_by_side(
    texts: pq.ParquetFile, measures: pq.ParquetFile
) -> Iterator[tuple[pa.RecordBatch, pa.Table]]:
    """Batches of documents, each with its rows of measures."""
    for group in range(texts.num_row_groups):
        about, place = measures.read_row_group(group, use_threads=False), 0
        for batch in texts.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=[group], use_threads=False):
            yield batch, about.slice(place, batch.num_rows)
            place += batch.num_rows


def _replaced(table: pa.Table, rows: NDArray[np.int64], columns: dict[str, pa.Array]) -> pa.Table:
    """`table` with other values in some rows of those of the columns that it has."""
    if not len(rows):
        return table
    new = table.take(pa.array(rows))
    for name in set(columns) & set(table.column_names):
        place = table.column_names.index(name)
        new = new.set_column(place, table.schema.field(name), columns[name])
    order = np.arange(table.num_rows)
    order[rows] = table.num_rows + np.arange(len(rows))
    return pa.concat_tables([table, new]).take(pa.array(order))

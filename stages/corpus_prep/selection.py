"""Which documents stay, decided over all shards on skinny columns: quality, duplicates, size limit, splits.

No text is read, but for pairs that are nearly near-duplicates. What comes out is a small table per shard,
with one row per document in the shard's order. DuckDB is told how much memory it may use, and spills to the
work folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.cleaning import MEASURES_SCHEMA
from stages.corpus_prep.duplicates.clusters import rank_documents
from stages.corpus_prep.duplicates.deduplication import KEPT as UNIQUE
from stages.corpus_prep.duplicates.deduplication import NEAR_DUPLICATE as NEAR
from stages.corpus_prep.duplicates.deduplication import Decisions, Deduplicator
from stages.corpus_prep.duplicates.near_duplicates import NearDuplicateReport, NearDuplicateSettings
from stages.corpus_prep.duplicates.verification import FetchWords, words_of_parquet
from stages.corpus_prep.filtering import Filters, judge_documents
from stages.corpus_prep.measuring.measures import word_hashes
from stages.corpus_prep.measuring.rules import REASONS
from stages.corpus_prep.sampling import Mixture, split_of
from stages.corpus_prep.screening.screen_rules import NOT_JUDGED
from stages.corpus_prep.titles import choose_entries

MEMORY_LIMIT = "256MB"
BATCH_ROWS = 8192

KEPT, LOW_QUALITY, DUPLICATE, NEAR_DUPLICATE, OVER_LIMIT, OTHER_LANGUAGE = range(6)
SPLIT_NAMES = ("train", "validation")
NO_KEEPER = ""
ONLY_EQUAL = 2.0
"""A similarity that no two texts have."""
DECISION_SCHEMA = pa.schema(
    {
        "verdict": pa.uint8(),
        "split": pa.uint8(),
        "keeper": pa.string(),  # the document that stays in the place of a duplicate
        "similarity": pa.float32(),
        "split_key": pa.string(),  # the id whose hash decides on the split: near-duplicates share it
        "entry": pa.bool_(),  # whether tools are taught to find it by its title
    }
)


@dataclass(frozen=True)
class Shards:
    """The tables of all shards, in order. counts: documents in each."""

    texts: Sequence[Path]
    measures: Sequence[Path]
    counts: Sequence[int]

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64 [shards + 1]: position of each shard's first document in the corpus."""
        return np.concatenate(([0], np.cumsum(self.counts))).astype(np.int64)


@dataclass(frozen=True)
class Choice:
    """What the user set of what is decided here."""

    max_bytes: int
    validation_fraction: float = 0.05
    filters: Filters = field(default_factory=lambda: Filters(("documentation",)))
    languages: Sequence[str] = ()
    similarity: float = 0.0
    """From which near-duplicates go; 0 keeps them."""
    earlier: Sequence[Path] = ()
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mixture: Mixture = field(default_factory=Mixture)


@dataclass(frozen=True)
class Selection:
    """What becomes of every document; arrays of [documents], splits say nothing of those that do not stay."""

    verdicts: NDArray[np.uint8]
    splits: NDArray[np.uint8]
    keepers: Sequence[str]
    similarities: NDArray[np.float32]
    split_keys: pa.Array
    entries: NDArray[np.bool_]
    """Whether tools are taught to find it by its title."""
    bad: Counter[str]
    """First reason of documents of low quality -> how many."""
    report: NearDuplicateReport
    crowded_out: Sequence[str]
    """Sources of which nothing stays, because their first document is larger than their share."""

    @property
    def keeps_any(self) -> bool:
        """Whether any document stays."""
        return bool((self.verdicts == KEPT).any())

    def write(self, folder: Path, counts: Sequence[int]) -> list[Path]:
        """One Parquet file per shard."""
        folder.mkdir(parents=True, exist_ok=True)
        paths, start = [], 0
        for number, count in enumerate(counts):
            rows = slice(start, start + count)
            columns = (
                self.verdicts,
                self.splits,
                self.keepers,
                self.similarities,
                self.split_keys,
                self.entries,
            )
            arrays = [pa.array(c[rows], f.type) for c, f in zip(columns, DECISION_SCHEMA, strict=True)]
            path = folder / f"{number:05d}.parquet"
            pq.write_table(pa.Table.from_arrays(arrays, schema=DECISION_SCHEMA), path)
            paths.append(path)
            start += count
        return paths


def select(shards: Shards, choice: Choice, work_dir: Path) -> Selection:
    """Decide. Of equal or near documents the one stays whose source comes first, then the one of smaller id.

    Where a source is over its share, the documents with the smallest ids stay: ids are hashes, so that is a
    uniform sample which depends on nothing but the documents.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    return _Selecting(shards, choice, work_dir).run()


class _Selecting:
    def __init__(self, shards: Shards, choice: Choice, work_dir: Path) -> None:
        self.shards, self.choice, self.work_dir = shards, choice, work_dir
        total = int(shards.starts[-1])
        self.verdicts = np.zeros(total, np.uint8)
        self.keepers = np.full(total, NO_KEEPER, object)
        self.similarities = np.zeros(total, np.float32)
        self.bad: Counter[str] = Counter()
        self.crowded_out: list[str] = []

    def run(self) -> Selection:
        self._judge()
        skinny = self._skinny()
        good = np.flatnonzero(self.verdicts == KEPT)
        decisions, report = self._deduplicate(good, skinny)
        self._apply_duplicates(good, skinny, decisions)
        self._apply_limit(skinny)
        split_keys = self._split_keys(good, skinny, decisions)
        splits = self._splits(split_keys, good, decisions)
        entries = self._entries(skinny)
        return Selection(
            self.verdicts,
            splits,
            self.keepers,
            self.similarities,
            split_keys,
            entries,
            self.bad,
            report,
            self.crowded_out,
        )

    def _batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """(position of the first row, rows) of all shards' measures."""
        for first, path in zip(self.shards.starts.tolist(), self.shards.measures, strict=False):
            position = first
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
                    yield position, pa.Table.from_batches([batch])
                    position += batch.num_rows

    def _judge(self) -> None:
        skip = {"doc_id", "num_bytes", "text_hash", "signature", "title_hash", *NOT_JUDGED}
        names = [name for name in pq.read_schema(self.shards.measures[0]).names if name not in skip]
        for start, measures in self._batches(names):
            rows = slice(start, start + measures.num_rows)
            masks = judge_documents(measures, self.choice.filters, self.choice.switches)
            self.bad.update(first_reasons(masks))
            verdicts = np.where(masks != 0, LOW_QUALITY, KEPT).astype(np.uint8)
            if self.choice.languages:
                wanted = pc.is_in(measures["language"], pa.array(self.choice.languages)).to_numpy()
                verdicts[(verdicts == KEPT) & ~wanted] = OTHER_LANGUAGE
                self.bad["other_language"] += int((verdicts == OTHER_LANGUAGE).sum())
            self.verdicts[rows] = verdicts

    def _skinny(self) -> pa.Table:
        """doc_id, source and num_bytes of all documents."""
        names = ["doc_id", "source", "num_bytes"]
        none = MEASURES_SCHEMA.empty_table().select(names)
        return pa.concat_tables([none, *(table for _, table in self._batches(names))]).combine_chunks()

    def _deduplicate(
        self, good: NDArray[np.int64], skinny: pa.Table
    ) -> tuple[Decisions, NearDuplicateReport]:
        """Decisions about the good documents, numbered as in `good`."""
        settings = NearDuplicateSettings(threshold=self.choice.similarity or ONLY_EQUAL)
        dedup = Deduplicator(self.work_dir / "dedup", settings, self.choice.earlier)
        for start, batch in self._batches(["text_hash", "signature"]):
            chosen = pa.array(self.verdicts[start : start + batch.num_rows] == KEPT)
            kept = batch.filter(chosen).combine_chunks()
            if kept.num_rows:
                dedup.add(_whole(kept["text_hash"]), _whole(kept["signature"]))
        ids = skinny["doc_id"].take(pa.array(good)).combine_chunks()
        priority = _first_seen(skinny["source"]).take(pa.array(good))
        rank = rank_documents(np.zeros(len(good)), priority, ids)
        found = dedup.decide(rank, self._fetch_words(good) if self.choice.similarity else None)
        dedup.near.remove()
        return found

    def _fetch_words(self, good: NDArray[np.int64]) -> FetchWords:
        fetch = words_of_parquet(self.shards.texts, "text", word_hashes)
        return lambda numbers: fetch(good[numbers])

    def _apply_duplicates(self, good: NDArray[np.int64], skinny: pa.Table, decisions: Decisions) -> None:
        out = decisions.verdict != UNIQUE
        verdicts = np.where(decisions.verdict == NEAR, NEAR_DUPLICATE, DUPLICATE)
        self.verdicts[good[out]] = verdicts[out]
        self.similarities[good[out]] = decisions.similarity[out]
        earlier = decisions.earlier_documents()
        ids = skinny["doc_id"]
        for place in np.flatnonzero(out).tolist():
            keeper = int(decisions.keeper[place])
            self.keepers[good[place]] = (
                f"{earlier[keeper].doc_id} of an earlier corpus"
                if keeper < 0
                else ids[int(good[keeper])].as_py()
            )

    def _apply_limit(self, skinny: pa.Table) -> None:
        kept = pa.array(self.verdicts == KEPT)
        positions = pa.array(np.arange(skinny.num_rows))
        left = skinny.append_column("position", positions).filter(kept)
        with _connect(self.work_dir) as database:
            database.register("skinny", left)
            by_source = "select source, sum(num_bytes)::bigint, count(*) from skinny group by source"
            found = sorted(database.execute(by_source).fetchall())
            sizes, counts = ({row[0]: row[column] for row in found} for column in (1, 2))
            shares = self.choice.mixture.shares(sizes, self.choice.max_bytes)
            for source, share in shares.items():
                if share < sizes[source]:
                    over = database.execute(_OVER_SHARE, [source, share]).fetchnumpy()["position"]
                    self.verdicts[over] = OVER_LIMIT
                    if len(over) == counts[source]:
                        self.crowded_out.append(source)

    def _split_keys(self, good: NDArray[np.int64], skinny: pa.Table, decisions: Decisions) -> pa.Array:
        """string [documents]: own id, or that of the best document of the cluster."""
        ids, earlier = _whole(skinny["doc_id"]), decisions.earlier_documents()
        shared = np.flatnonzero(decisions.representative != np.arange(len(good)))
        others = decisions.representative[shared].tolist()
        keys = [earlier[other].split_key if other < 0 else ids[int(good[other])].as_py() for other in others]
        mask = np.zeros(len(ids), bool)
        mask[good[shared]] = True
        return pc.replace_with_mask(ids, pa.array(mask), pa.array(keys, pa.string()))

    def _splits(self, keys: pa.Array, good: NDArray[np.int64], decisions: Decisions) -> NDArray[np.uint8]:
        """Train or validation by hash of the key; a corpus of a few documents still gets one of each."""
        validation = SPLIT_NAMES.index("validation")
        splits = np.zeros(len(keys), np.uint8)
        kept = np.flatnonzero(self.verdicts == KEPT)
        for start in range(0, len(kept), BATCH_ROWS):  # as Python strings only a few at a time
            some = kept[start : start + BATCH_ROWS]
            names = [split_of(key, self.choice.validation_fraction) for key in _at(keys, some).to_pylist()]
            splits[some] = [SPLIT_NAMES.index(name) for name in names]
        splits[good[decisions.train_only]] = 0
        chosen = splits[kept] == validation
        if len(kept) > 1 and (chosen.all() or not chosen.any()):
            own = _at(keys, kept)
            ends = pc.min_max(own)
            odd = ends["max"] if chosen.all() else ends["min"]
            splits[kept[pc.index(own, odd).as_py()]] = 0 if chosen.all() else validation
        elif len(kept) and chosen.all():
            splits[kept] = 0
        return splits

    def _entries(self, skinny: pa.Table) -> NDArray[np.bool_]:
        none = np.empty(0, np.uint64)
        hashes = [table["title_hash"].to_numpy() for _, table in self._batches(["title_hash"])]
        sources = _first_seen(skinny["source"]).to_numpy()
        return choose_entries(np.concatenate([none, *hashes]), self.verdicts == KEPT, sources)


def first_reasons(masks: NDArray[np.uint64]) -> list[str]:
    """The first reason of each document that has one."""
    found = []
    for mask in masks[masks != 0].tolist():
        found.append(REASONS[(mask & -mask).bit_length() - 1])
    return found


def _at(column: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    return column.take(pa.array(rows))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _first_seen(values: pa.ChunkedArray) -> pa.Array:
    """int32 [values]: which distinct value it is, in the order in which they come first."""
    return _whole(values.dictionary_encode()).indices


_OVER_SHARE = """
select position from (
    select position, sum(num_bytes) over (order by doc_id rows unbounded preceding) as used
    from skinny where source = ?
) where used > ? order by position
"""


def _connect(work_dir: Path) -> duckdb.DuckDBPyConnection:
    spill = work_dir / "duckdb_spill"
    spill.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(
        config={
            "memory_limit": MEMORY_LIMIT,
            "threads": 1,
            "temp_directory": str(spill),
            "preserve_insertion_order": "false",
        }
    )

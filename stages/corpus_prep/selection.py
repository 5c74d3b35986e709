"""Which documents stay, decided over all shards on skinny columns: quality, duplicates, size limit, splits.

DuckDB sees no text. It is told how much memory it may use, and spills to the work folder. What comes out is a
small table per shard, with one row per document in the shard's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.sampling import fair_shares, split_of

MEMORY_LIMIT = "256MB"

KEPT, LOW_QUALITY, DUPLICATE, OVER_LIMIT = 0, 1, 2, 3
SPLIT_NAMES = ("train", "validation")
DECISION_SCHEMA = pa.schema({"verdict": pa.uint8(), "split": pa.uint8()})


@dataclass(frozen=True)
class Selection:
    """What becomes of every document. verdicts: uint8 [documents]; splits: uint8 [documents], an index of
    SPLIT_NAMES, which says nothing about documents that do not stay."""

    verdicts: NDArray[np.uint8]
    splits: NDArray[np.uint8]
    counts: Sequence[int]
    """Documents per shard."""

    def write(self, folder: Path) -> list[Path]:
        """One Parquet file per shard."""
        folder.mkdir(parents=True, exist_ok=True)
        paths, start = [], 0
        for number, count in enumerate(self.counts):
            rows = slice(start, start + count)
            columns = [pa.array(self.verdicts[rows]), pa.array(self.splits[rows])]
            path = folder / f"{number:05d}.parquet"
            pq.write_table(pa.Table.from_arrays(columns, schema=DECISION_SCHEMA), path)
            paths.append(path)
            start += count
        return paths


def select(
    measures: Sequence[Path],
    counts: Sequence[int],
    max_bytes: int,
    work_dir: Path,
    validation_fraction: float = 0.05,
    weights: Mapping[str, float] | None = None,
) -> Selection:
    """Keep what is good, the first document of each id, and of each source its fair share of `max_bytes`.

    measures: the table of each shard, of `counts` rows. Where a source is too large, the documents with the
    smallest ids stay: ids are hashes, so that is a uniform sample which depends on nothing but the documents.
    """
    verdicts = np.zeros(sum(counts), np.uint8)
    with _connect(work_dir) as database:
        _fill(database, measures, counts)
        bad = database.execute("select position from skinny where reason <> ''").fetchnumpy()["position"]
        verdicts[bad] = LOW_QUALITY
        database.execute("delete from skinny where reason <> ''")
        verdicts[database.execute(_DUPLICATES).fetchnumpy()["position"]] = DUPLICATE
        database.execute("delete from skinny where position in (select position from duplicates)")
        for over in _over_shares(database, max_bytes, weights):
            verdicts[over] = OVER_LIMIT
        kept = database.execute("select position, doc_id from skinny order by position")
        splits = _splits(kept, verdicts, validation_fraction)
    return Selection(verdicts, splits, tuple(counts))


def _fill(database: duckdb.DuckDBPyConnection, measures: Sequence[Path], counts: Sequence[int]) -> None:
    """One row per document: its position in the corpus, and what decisions are made by."""
    columns = "doc_id, source, num_bytes, reason"
    database.execute(
        "create table skinny (position bigint, doc_id varchar, source varchar, "
        "num_bytes bigint, reason varchar)"
    )
    start = 0
    for path, count in zip(measures, counts, strict=True):
        database.execute(
            f"insert into skinny select file_row_number + ?, {columns} "
            "from read_parquet(?, file_row_number = true)",
            [start, str(path)],
        )
        start += count


def _over_shares(
    database: duckdb.DuckDBPyConnection, max_bytes: int, weights: Mapping[str, float] | None
) -> list[NDArray[np.int64]]:
    """Positions that are over the share of their source, and are deleted."""
    by_source = "select source, sum(num_bytes)::bigint from skinny group by source"
    sizes = dict(database.execute(by_source).fetchall())
    shares = fair_shares(dict(sorted(sizes.items())), max_bytes, weights)
    found = []
    for source, share in shares.items():
        if share < sizes[source]:
            database.execute(f"create or replace temp table over_share as {_OVER_SHARE}", [source, share])
            found.append(database.execute("select position from over_share").fetchnumpy()["position"])
            database.execute("delete from skinny where position in (select position from over_share)")
    return found


def _splits(
    kept: duckdb.DuckDBPyConnection, verdicts: NDArray[np.uint8], validation_fraction: float
) -> NDArray[np.uint8]:
    """Train or validation by hash of the id; a corpus of a few documents still gets one of each."""
    splits = np.zeros(len(verdicts), np.uint8)
    smallest, largest, held_out, total = ("g", -1), ("", -1), 0, 0  # ids are hexadecimal
    while rows := kept.fetchmany(10_000):
        for position, doc_id in rows:
            smallest, largest = min(smallest, (doc_id, position)), max(largest, (doc_id, position))
            splits[position] = SPLIT_NAMES.index(split_of(doc_id, validation_fraction))
            held_out += int(splits[position])
            total += 1
    if total > 1 and not held_out:
        splits[smallest[1]] = SPLIT_NAMES.index("validation")
    elif total and held_out == total:
        splits[largest[1]] = SPLIT_NAMES.index("train")
    return splits


_DUPLICATES = """
create temp table duplicates as
select skinny.position
from skinny
join (select doc_id, min(position) as first from skinny group by doc_id having count(*) > 1) as groups
  on skinny.doc_id = groups.doc_id and skinny.position <> groups.first;
select position from duplicates order by position
"""

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

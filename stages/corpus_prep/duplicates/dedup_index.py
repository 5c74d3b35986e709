"""What a build kept, in the form in which later builds compare with it: a growing corpus never starts again.

A folder of Parquet files, about 0.5 KB per document. The signature is stored and the band hashes are not:
they follow from it in 0.3 microseconds each, and a later build may choose other bands. A later build reads
any number of indexes, drops what is in them, and names the earlier document; indexes are merged by joining
their files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.exact_duplicates import exact_keepers, hash_halves
from stages.corpus_prep.duplicates.minhash_bands import NUM_HASHES

SIGNATURE = pa.list_(pa.field("item", pa.uint32(), nullable=False), NUM_HASHES)
DEDUP_INDEX_SCHEMA = pa.schema(
    {
        "doc_id": pa.string(),
        "source": pa.string(),
        "split_key": pa.string(),  # the id whose hash decides on the split: of the best of the cluster
        "text_hash": pa.binary(16),
        "signature": SIGNATURE,
    }
)
FILE_NAME = "part-00000.parquet"
ROWS_PER_GROUP = 16_384
BATCH_ROWS = 4096


def signature_rows(column: pa.Array) -> NDArray[np.uint32]:
    """uint32 [documents, 112] of a fixed_size_list<uint32>[112] array without nulls, without a copy."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def signature_column(rows: NDArray[np.uint32]) -> pa.Array:
    """fixed_size_list<uint32>[112] of uint32 [documents, 112]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), type=SIGNATURE)


def write_index(folder: Path, batches: Iterable[pa.RecordBatch | pa.Table]) -> int:
    """Write the index of a build from batches with the schema's columns; returns its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    count, waiting, held = 0, [], 0
    with pq.ParquetWriter(folder / FILE_NAME, DEDUP_INDEX_SCHEMA, compression="zstd") as writer:
        for batch in batches:
            table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            waiting.append(table.select(DEDUP_INDEX_SCHEMA.names).cast(DEDUP_INDEX_SCHEMA))
            held += len(table)
            # Row groups of one chunk each: pages end where chunks do, and bytes must not tell the batches.
            if held >= ROWS_PER_GROUP:
                joined = pa.concat_tables(waiting).combine_chunks()
                whole = held - held % ROWS_PER_GROUP
                writer.write_table(joined.slice(0, whole), row_group_size=ROWS_PER_GROUP)
                waiting, held, count = [joined.slice(whole)], held - whole, count + whole
        if held:
            writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=ROWS_PER_GROUP)
    return count + held


def read_index(folders: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of the indexes in the order given; memory holds one row group."""
    for folder in folders:
        for path in sorted(folder.glob("part-*.parquet")):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH_ROWS, columns=list(columns) if columns else None)


def merge_indexes(folders: Sequence[Path], target: Path) -> int:
    """Write the documents of all indexes, each text once (the first one); returns how many. Memory: 40 bytes
    each."""
    halves = [hash_halves(batch["text_hash"]).copy() for batch in read_index(folders, ["text_hash"])]
    joined = np.concatenate(halves) if halves else np.empty((0, 2), np.uint64)
    numbers = np.arange(len(joined))
    return write_index(target, _chosen(read_index(folders), exact_keepers(joined, numbers) == numbers))


def _chosen(batches: Iterable[pa.RecordBatch], chosen: NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
    begin = 0
    for batch in batches:
        yield batch.filter(pa.array(chosen[begin : begin + len(batch)]))
        begin += len(batch)


@dataclass(frozen=True)
class EarlierDocument:
    """A document of an earlier build that took one of this build out."""

    doc_id: str
    source: str
    split_key: str


def name_documents(folders: Sequence[Path], rows: NDArray[np.integer]) -> dict[int, EarlierDocument]:
    """Row number (over all indexes in order) -> document, for the rows asked for; one pass over three
    columns."""
    wanted, found, begin = np.unique(rows), {}, 0
    for batch in read_index(folders, ["doc_id", "source", "split_key"]):
        inside = wanted[(wanted >= begin) & (wanted < begin + len(batch))]
        for number, row in zip(inside, batch.take(pa.array(inside - begin)).to_pylist(), strict=True):
            found[int(number)] = EarlierDocument(**row)
        begin += len(batch)
    return found


def earlier_batches(folders: Sequence[Path]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """(text hashes uint64 [documents, 2], signatures uint32 [documents, 112]) in order."""
    for batch in read_index(folders, ["text_hash", "signature"]):
        yield hash_halves(batch["text_hash"]), signature_rows(batch["signature"])

"""Parquet: rows in small batches, any row groups of a file; null and nested fields as Python has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from stages.corpus_prep.reading.damage import DamagedFile
from stages.corpus_prep.reading.rows import ReadRow
from stages.corpus_prep.reading.sources import SourceFile

ROWS_PER_BATCH = 128


@contextmanager
def opened_parquet(file: SourceFile) -> Iterator[pq.ParquetFile]:
    """The file, read as it is needed. Raises DamagedFile from whatever Arrow finds wrong while it is open."""
    try:
        with pq.ParquetFile(file.path, memory_map=False, pre_buffer=False) as table:
            yield table
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        size = file.path.stat().st_size
        raise DamagedFile(
            "broken",
            f"is no whole Parquet file: {str(error).splitlines()[0][:160]}",
            f"it has {size:,} bytes; copy it again, it was probably cut short",
        ) from None


def read_parquet(file: SourceFile, groups: range | None = None) -> Iterator[ReadRow]:
    """Rows of some row groups, or of all, with their numbers in the file."""
    with opened_parquet(file) as table:
        groups = range(table.num_row_groups) if groups is None else groups
        number = first_row(table, groups)
        for batch in table.iter_batches(
            batch_size=ROWS_PER_BATCH, row_groups=list(groups), use_threads=False
        ):
            for fields in batch.to_pylist():
                yield ReadRow(fields, number=number)
                number += 1


def first_row(table: pq.ParquetFile, groups: range) -> int:
    """The number of the first row of `groups` in the file."""
    return sum(table.metadata.row_group(index).num_rows for index in range(groups.start))

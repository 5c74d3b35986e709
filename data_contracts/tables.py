"""Writing and reading the Parquet tables of a part, always with the same settings.

Fixed settings are what makes a table reproducible: the same rows give the same bytes, so a stage that reruns
to the same result lets everything downstream be reused. Row groups stay small because readers stream them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.contract import Contract

ROWS_PER_GROUP = 1024


class PartWriter:
    """Streams rows into `part-00000.parquet` of a folder; use as a context manager.

    `write` takes dictionaries with the contract's columns and buffers one row group of them.
    """

    def __init__(self, folder: Path, contract: Contract, file_name: str = "part-00000.parquet") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.schema = contract.schema.with_metadata({"contract": contract.identity})
        self.num_rows = 0
        self._rows: list[Mapping[str, Any]] = []
        self._writer = pq.ParquetWriter(folder / file_name, self.schema, compression="zstd")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; missing columns become null, unknown columns raise KeyError."""
        if unknown := row.keys() - set(self.schema.names):
            raise KeyError(f"columns {sorted(unknown)} are not in {self.schema.names}")
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def write_table(self, table: pa.Table | pa.RecordBatch) -> None:
        """Append many rows at once as row groups of their own; columns come in any order."""
        self._flush()
        self.num_rows += table.num_rows
        columns = [table.column(name) for name in self.schema.names]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))

    def write_all(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append many rows, holding one row group of them at a time."""
        for row in rows:
            self.write(row)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(list(self._rows), schema=self.schema))
            self._rows.clear()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()


def write_part(folder: Path, contract: Contract, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write all `rows` as the part's one Parquet file and return how many there were."""
    with PartWriter(folder, contract) as writer:
        writer.write_all(rows)
    return writer.num_rows


def part_files(folder: Path) -> list[Path]:
    """The part's Parquet files in order."""
    return sorted(folder.glob("part-*.parquet"))


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Stream the part's rows as dictionaries, one row group in memory at a time."""
    for path in part_files(folder):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns):
                yield from batch.to_pylist()


def read_part(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole part as one Arrow table: for skinny columns, not for text."""
    tables = []
    for path in part_files(folder):
        with pq.ParquetFile(path) as file:
            tables.append(file.read(columns=list(columns) if columns else None))
    return pa.concat_tables(tables)

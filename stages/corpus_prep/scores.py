"""The part `document_scores`: what every document was judged by and what became of it, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_contracts import DOCUMENT_SCORES
from data_contracts.tables import PartWriter
from stages.corpus_prep.filtering import Filters, judge_documents
from stages.corpus_prep.measuring.rules import reasons_of

#: Rows of a row group: many, because who decides anew reads single columns of all of them.
ROWS_PER_GROUP = 1 << 14
OTHER_LANGUAGE = "other_language"
#: Columns of the measures that are no scores.
NOT_SCORES = frozenset({"text_hash", "signature", "title_hash"})


class RowReader:
    """Rows of a Parquet file in order, as many at a time as are asked for; memory holds these and a batch."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = pq.ParquetFile(path)
        self._batches = self._file.iter_batches(columns=list(columns), use_threads=False)
        self._left = pq.read_schema(path).empty_table().select(list(columns))

    def take(self, count: int) -> pa.Table:
        """The next `count` rows. Raises ValueError where there are fewer."""
        while self._left.num_rows < count:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"{count} rows were asked for, {self._left.num_rows} are left")
            self._left = pa.concat_tables([self._left, pa.Table.from_batches([batch])])
        taken, self._left = self._left.slice(0, count), self._left.slice(count)
        return taken.combine_chunks()


class ScoreWriter:
    """Writes the scores of a shard; use as a context manager."""

    def __init__(
        self,
        folder: Path,
        filters: Filters,
        languages: Sequence[str],
        switches: Mapping[str, tuple[str, ...]],
    ) -> None:
        """languages: those to keep, none for all. switches: source -> filters that its entry switches."""
        self.filters, self.languages, self.switches = filters, frozenset(languages), dict(switches)
        self._writer = PartWriter(folder, DOCUMENT_SCORES)
        self._waiting: list[pa.Table] = []

    def add(
        self,
        documents: pa.RecordBatch,
        measures: pa.Table,
        split_keys: pa.Array,
        verdicts: Sequence[str],
        others: Mapping[int, str],
    ) -> None:
        """Take a batch of documents, row for row with their measures.

        verdicts: of the contract. others: place in the batch -> why it went, where no filter says so.
        """
        own = {name: documents.column(name) for name in documents.schema.names if name != "text"}
        scores = {name: measures.column(name) for name in measures.column_names if name not in NOT_SCORES}
        sources = documents.column("source").to_pylist()
        columns = scores | own
        columns["switches"] = pa.array([" ".join(self.switches.get(source, ())) for source in sources])
        columns["split_key"] = split_keys
        columns["verdict"] = pa.array(verdicts, pa.string())
        columns["reasons"] = pa.array(self._reasons(measures, others), pa.list_(pa.string()))
        self._waiting.append(_in_order(columns, len(verdicts)))
        if sum(table.num_rows for table in self._waiting) >= ROWS_PER_GROUP:
            self._flush()

    def _reasons(self, measures: pa.Table, others: Mapping[int, str]) -> list[list[str]]:
        masks: NDArray[np.uint64] = judge_documents(measures, self.filters, self.switches)
        found = [reasons_of(mask) if mask else [] for mask in masks.tolist()]
        if self.languages:
            for place, language in enumerate(measures.column("language").to_pylist()):
                found[place] += [OTHER_LANGUAGE] if language not in self.languages else []
        for place, reason in others.items():
            found[place].append(reason)
        return found

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting.clear()

    def __enter__(self) -> ScoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._writer.__exit__()


def _in_order(columns: Mapping[str, pa.Array | pa.ChunkedArray], count: int) -> pa.Table:
    """The columns of the contract; null where nobody computed one."""
    schema = DOCUMENT_SCORES.schema
    arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)

"""First pass: the documents are encoded unit by unit, each one's into files of its own.

A unit is some row groups of a Parquet file. Its documents are sorted by split and by *key*, a hash of seed
and document id: the order of the shuffle. The keys are cut into *buckets* of equal width, so that the
second pass can gather one bucket of all units at a time. What a unit writes depends on nothing but the unit,
so units can be encoded in any order, by any number of workers, and need not be encoded again after a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.documents import SPLITS
from data_contracts.tables import part_files
from stages.runtime.arrays import write_array
from stages.tokenizer.document_encoder import DocumentEncoder, Encoded, token_dtype

UNIT_BYTES = 32 << 20  # of text, or one row group
BATCH_BYTES = 2 << 20  # of text that is decoded and encoded at once
BATCH_DOCUMENTS = 4096
DOCUMENT = np.dtype([("key", "<u8"), ("num_tokens", "<i8"), ("num_bytes", "<i8")])
"""What is kept of a document besides its tokens."""


@dataclass
class LanguageCount:
    """What the validation documents of one language cost in tokens, BOS and EOS not counted."""

    num_documents: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_byte_tokens: int = 0

    def add(self, other: LanguageCount) -> None:
        """Count the other's documents, too."""
        self.num_documents += other.num_documents
        self.num_bytes += other.num_bytes
        self.num_tokens += other.num_tokens
        self.num_byte_tokens += other.num_byte_tokens


@dataclass(frozen=True)
class Unit:
    """Row groups `first_group` up to `stop_group` of one file of the documents."""

    number: int
    file: str
    first_group: int
    stop_group: int
    num_documents: int
    num_bytes: int


@dataclass(frozen=True)
class UnitFiles:
    """Where a unit keeps its results. `summary` is written last: what has one is whole."""

    folder: Path
    number: int

    @property
    def tokens(self) -> Path:
        """The ids of all its documents, one behind another, in the order of the shuffle."""
        return self.folder / f"unit-{self.number:06}.tokens"

    @property
    def documents(self) -> Path:
        """A row of `DOCUMENT` for each, in the same order."""
        return self.folder / f"unit-{self.number:06}.documents"

    @property
    def summary(self) -> Path:
        """Where its buckets begin, and its counts: see `UnitSummary`."""
        return self.folder / f"unit-{self.number:06}.npz"


class UnitSummary(NamedTuple):
    """Counts of one unit, and where its buckets lie."""

    bucket_starts: np.ndarray
    """int64 [buckets of all splits + 1, 2]: first document and first token of each bucket."""
    usage: np.ndarray
    """int64 [vocabulary]: how often each id occurs, BOS and EOS not counted."""
    languages: dict[str, LanguageCount]


class Encoding(NamedTuple):
    """What every unit is encoded with."""

    encoder: DocumentEncoder
    is_byte: np.ndarray
    """bool [vocabulary]: the tokens that stand for one byte."""
    bos_id: int
    eos_id: int
    seed: int
    num_buckets: Mapping[str, int]
    """Split -> number of buckets."""


def list_units(documents: Path) -> list[Unit]:
    """The units of a documents part; they follow from the files alone."""
    units: list[Unit] = []
    for path in part_files(documents):
        with pq.ParquetFile(path) as file:
            sizes = [_group_size(file.metadata.row_group(i)) for i in range(file.num_row_groups)]
        first = 0
        for stop in range(1, len(sizes) + 1):
            num_bytes = sum(size for _, size in sizes[first:stop])
            if num_bytes >= UNIT_BYTES or stop == len(sizes):
                num_documents = sum(rows for rows, _ in sizes[first:stop])
                units.append(Unit(len(units), path.name, first, stop, num_documents, num_bytes))
                first = stop
    return units


def _group_size(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Rows of a row group, and bytes of its text before compression."""
    columns = (group.column(i) for i in range(group.num_columns))
    text = next(column for column in columns if column.path_in_schema == "text")
    return group.num_rows, text.total_uncompressed_size


def encode_unit(documents: Path, unit: Unit, encoding: Encoding, scratch: Path) -> None:
    """Encode the documents of `unit` and write its three files. Memory: its tokens twice, and one batch."""
    parts: list[tuple[Encoded, np.ndarray, np.ndarray]] = []
    usage = np.zeros(len(encoding.is_byte), dtype=np.int64)
    languages: dict[str, LanguageCount] = defaultdict(LanguageCount)
    for batch in _read_batches(documents, unit):
        encoded = encoding.encoder.encode(batch.column("text"))
        rows = _document_rows(batch, encoded, encoding.seed)
        parts.append((encoded, rows, np.array(_split_numbers(batch))))
        usage += np.bincount(encoded.tokens, minlength=len(usage))
        _count_languages(batch, encoded, rows, encoding.is_byte, languages)
    usage[[encoding.bos_id, encoding.eos_id]] = 0
    _write_unit(parts, usage, languages, encoding, UnitFiles(scratch, unit.number))


def _read_batches(documents: Path, unit: Unit) -> Iterator[pa.RecordBatch]:
    """Documents of about `BATCH_BYTES` at a time: of books few, of poems many."""
    with pq.ParquetFile(documents / unit.file) as file:
        for group in range(unit.first_group, unit.stop_group):
            num_documents, num_bytes = _group_size(file.metadata.row_group(group))
            some = BATCH_BYTES * num_documents // max(1, num_bytes)
            yield from file.iter_batches(
                batch_size=min(BATCH_DOCUMENTS, max(1, some)),
                row_groups=[group],
                columns=["doc_id", "language", "split", "text"],
                use_threads=False,
            )


def _document_rows(batch: pa.RecordBatch, encoded: Encoded, seed: int) -> np.ndarray:
    rows = np.zeros(batch.num_rows, dtype=DOCUMENT)
    rows["key"] = [shuffle_key(doc_id, seed) for doc_id in batch.column("doc_id").to_pylist()]
    rows["num_tokens"] = np.diff(encoded.offsets)
    num_bytes = pc.fill_null(pc.binary_length(batch.column("text")), 0)
    rows["num_bytes"] = num_bytes.to_numpy(zero_copy_only=False)
    return rows


def shuffle_key(doc_id: str, seed: int) -> int:
    """64 bits that depend on seed and id alone: a document's place in the order of the shuffle."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{doc_id}".encode(), digest_size=8).digest(), "big")


def bucket_of(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    """The bucket of each key (uint64), int64: `num_buckets` ranges of equal width."""
    return ((keys >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.int64)


def _split_numbers(batch: pa.RecordBatch) -> list[int]:
    return [SPLITS.index(split) for split in batch.column("split").to_pylist()]


def _count_languages(
    batch: pa.RecordBatch,
    encoded: Encoded,
    rows: np.ndarray,
    is_byte: np.ndarray,
    languages: dict[str, LanguageCount],
) -> None:
    held_out = np.flatnonzero(np.array(_split_numbers(batch)) == SPLITS.index("validation"))
    names = batch.column("language").to_pylist() if len(held_out) else []
    for row in held_out.tolist():
        tokens = encoded.tokens[encoded.offsets[row] : encoded.offsets[row + 1]]
        num_byte_tokens = int(np.count_nonzero(is_byte[tokens]))
        languages[names[row]].add(
            LanguageCount(1, int(rows["num_bytes"][row]), len(tokens) - 2, num_byte_tokens)
        )


def _write_unit(
    parts: Sequence[tuple[Encoded, np.ndarray, np.ndarray]],
    usage: np.ndarray,
    languages: Mapping[str, LanguageCount],
    encoding: Encoding,
    files: UnitFiles,
) -> None:
    rows = np.concatenate([np.zeros(0, DOCUMENT), *(rows for _, rows, _ in parts)])
    splits = np.concatenate([np.zeros(0, np.int64), *(splits for _, _, splits in parts)])
    tokens = np.concatenate(
        [np.zeros(0, token_dtype(len(usage))), *(encoded.tokens for encoded, _, _ in parts)]
    )
    order = np.lexsort((rows["key"], splits))  # stable: equal keys keep the order of the table
    with files.tokens.open("wb") as file:
        copy_documents(file, tokens, np.cumsum(rows["num_tokens"]) - rows["num_tokens"], rows, order)
        os.fsync(file.fileno())
    with files.documents.open("wb") as file:
        write_array(file, rows[order])
        os.fsync(file.fileno())
    starts = _bucket_starts(rows[order], splits[order], encoding.num_buckets)
    counts = json.dumps({name: asdict(count) for name, count in sorted(languages.items())})
    partial = files.summary.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, bucket_starts=starts, usage=usage, languages=np.array(counts))
        os.fsync(file.fileno())
    partial.replace(files.summary)


def copy_documents(
    file: IO[bytes], tokens: np.ndarray, starts: np.ndarray, rows: np.ndarray, order: np.ndarray
) -> None:
    """Append the tokens of the documents `order` to a file, 4,096 documents at a time."""
    for first in range(0, len(order), 4096):
        some = order[first : first + 4096]
        pieces = [
            tokens[start : start + size]
            for start, size in zip(starts[some].tolist(), rows["num_tokens"][some].tolist(), strict=True)
        ]
        write_array(file, np.concatenate(pieces))


def _bucket_starts(rows: np.ndarray, splits: np.ndarray, num_buckets: Mapping[str, int]) -> np.ndarray:
    """First document and first token of every bucket of sorted documents, splits one after another."""
    first_bucket = np.cumsum([0, *(num_buckets[split] for split in SPLITS)])
    buckets = first_bucket[splits]
    for number, split in enumerate(SPLITS):
        mine = splits == number
        buckets[mine] += bucket_of(rows["key"][mine], num_buckets[split])
    documents = np.searchsorted(buckets, np.arange(first_bucket[-1] + 1))
    token_starts = np.concatenate([[0], np.cumsum(rows["num_tokens"])])
    return np.stack([documents, token_starts[documents]], axis=1)


def read_summary(files: UnitFiles) -> UnitSummary:
    """What `encode_unit` found."""
    with np.load(files.summary) as arrays:
        counts = json.loads(str(arrays["languages"]))
        return UnitSummary(
            arrays["bucket_starts"],
            arrays["usage"],
            {name: LanguageCount(**count) for name, count in counts.items()},
        )

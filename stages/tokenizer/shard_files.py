"""Second pass: buckets of all units, gathered and sorted, become shards.

A shard is some whole buckets, so its size is known before anything is written: header, offsets and tokens go
to the file in one go. Memory is the rows of its documents and the tokens of one bucket.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_contracts.documents import SPLITS
from stages.runtime.arrays import write_array
from stages.tokenizer.shard_units import DOCUMENT, UnitFiles, copy_documents


@dataclass(frozen=True)
class Shard:
    """Buckets `first_bucket` up to `stop_bucket` as one file of a split."""

    split: str
    number: int
    first_bucket: int
    stop_bucket: int
    num_tokens: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.split}-{self.number:05}.safetensors"


def plan_shards(bucket_tokens: np.ndarray, num_buckets: Mapping[str, int], shard_tokens: int) -> list[Shard]:
    """Neighbouring buckets together, up to `shard_tokens`; a bucket that has more is a shard of its own."""
    shards: list[Shard] = []
    first = 0
    for split in SPLITS:
        stop, number, tokens = first + num_buckets[split], 0, 0
        begin = first
        for bucket in range(first, stop):
            if tokens and tokens + bucket_tokens[bucket] > shard_tokens:
                shards.append(Shard(split, number, begin, bucket, tokens))
                begin, number, tokens = bucket, number + 1, 0
            tokens += int(bucket_tokens[bucket])
        shards.append(Shard(split, number, begin, stop, tokens))
        first = stop
    return shards


def write_shard(
    shard: Shard,
    units: Sequence[UnitFiles],
    bucket_starts: Sequence[np.ndarray],
    dtype: type[np.unsignedinteger[Any]],
    metadata: Mapping[str, str],
    path: Path,
) -> None:
    """Write one shard; the file has its name only when it is whole.

    Args:
        bucket_starts: of each unit, see `UnitSummary`.
    """
    buckets = range(shard.first_bucket, shard.stop_bucket)
    rows = [_read_documents(units, bucket_starts, bucket) for bucket in buckets]
    orders = [np.argsort(some["key"], kind="stable") for some in rows]
    ordered = np.concatenate(
        [np.zeros(0, DOCUMENT), *(some[order] for some, order in zip(rows, orders, strict=True))]
    )
    small = {
        "doc_num_bytes": ordered["num_bytes"].astype("<i8"),
        "doc_offsets": np.concatenate([[0], np.cumsum(ordered["num_tokens"])]).astype("<i8"),
    }
    sizes = {name: ("I64", len(array), array.nbytes) for name, array in small.items()}
    kind = {np.uint16: "U16", np.uint32: "U32"}[dtype]
    sizes["tokens"] = (kind, shard.num_tokens, shard.num_tokens * np.dtype(dtype).itemsize)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(safetensors_header(sizes, metadata | {"split": shard.split}))
        for array in small.values():
            write_array(file, array)
        for bucket, some, order in zip(buckets, rows, orders, strict=True):
            tokens = _read_tokens(units, bucket_starts, bucket, dtype)
            copy_documents(file, tokens, np.cumsum(some["num_tokens"]) - some["num_tokens"], some, order)
    partial.chmod(0o644)
    partial.replace(path)


def _read_documents(
    units: Sequence[UnitFiles], bucket_starts: Sequence[np.ndarray], bucket: int
) -> np.ndarray:
    """The rows of one bucket of all units."""
    found = [np.zeros(0, DOCUMENT)]
    for unit, starts in zip(units, bucket_starts, strict=True):
        first, count = int(starts[bucket, 0]), int(starts[bucket + 1, 0] - starts[bucket, 0])
        if count:
            offset = first * DOCUMENT.itemsize
            found.append(np.fromfile(unit.documents, dtype=DOCUMENT, count=count, offset=offset))
    return np.concatenate(found)


def _read_tokens(
    units: Sequence[UnitFiles],
    bucket_starts: Sequence[np.ndarray],
    bucket: int,
    dtype: type[np.unsignedinteger[Any]],
) -> np.ndarray:
    """The tokens of the same documents in the same order."""
    found = [np.zeros(0, dtype)]
    for unit, starts in zip(units, bucket_starts, strict=True):
        first, count = int(starts[bucket, 1]), int(starts[bucket + 1, 1] - starts[bucket, 1])
        if count:
            offset = first * np.dtype(dtype).itemsize
            found.append(np.fromfile(unit.tokens, dtype=dtype, count=count, offset=offset))
    return np.concatenate(found)


def safetensors_header(tensors: Mapping[str, tuple[str, int, int]], metadata: Mapping[str, str]) -> bytes:
    """Header of a safetensors file of flat tensors: name -> (dtype, elements, bytes), in file order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (dtype, elements, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [elements], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin on a multiple of 8
    return struct.pack("<Q", len(text)) + text

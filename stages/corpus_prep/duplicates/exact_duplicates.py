"""Documents with the same normalised text, by their 128-bit hashes: 16 bytes per document in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.partitioned_files import seen_again


def hash_halves(hashes: pa.Array) -> NDArray[np.uint64]:
    """uint64 [documents, 2] of a fixed_size_binary(16) array without nulls."""
    hashes = hashes.combine_chunks() if isinstance(hashes, pa.ChunkedArray) else hashes
    if len(hashes) == 0:
        return np.empty((0, 2), np.uint64)
    data = np.frombuffer(hashes.buffers()[1], np.uint64).reshape(-1, 2)
    return data[hashes.offset : hashes.offset + len(hashes)]


def exact_keepers(halves: NDArray[np.uint64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [documents]: the best-ranked document with the same hash, itself where there is no better one.

    halves: uint64 [documents, 2]; rank: int64 [documents], 0 is the best.
    """
    keepers = np.arange(len(halves), dtype=np.int64)
    suspects = np.flatnonzero(seen_again(halves[:, 0] ^ (halves[:, 1] >> np.uint64(1))))
    low, high = halves[suspects, 0], halves[suspects, 1]
    order = np.lexsort((rank[suspects], high, low))
    suspects, low, high = suspects[order], low[order], high[order]
    new_group = np.ones(len(order), np.bool_)
    new_group[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    starts = np.flatnonzero(new_group)
    keepers[suspects] = suspects[starts[np.cumsum(new_group) - 1]] if len(starts) else suspects
    return keepers

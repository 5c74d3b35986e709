"""Pairs of documents that share a band, written as candidates for verification.

Of a small bucket every pair is a candidate. Star edges (each document with the bucket's first one) would be
fewer, but miss a pair whose first one is a stranger to both. A huge bucket (boilerplate that thousands share)
has too many pairs, so it is read once, the best-ranked document first, against up to 64 leaders: a document
that is surely similar to a leader follows it, any other becomes a leader itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.minhash_bands import NO_WORDS, band_hashes
from stages.corpus_prep.duplicates.partitioned_files import (
    PartitionedFiles,
    append_hashes,
    create_hash_files,
    repeated_records,
)
from stages.corpus_prep.duplicates.row_file import RowFile
from stages.runtime.compiled import njit

MAX_ALL_PAIRS = 16
"""Largest bucket of which every pair is a candidate: 120 pairs."""
MAX_LEADERS = 64
BLOCK_ROWS = 1 << 14
MIN_BLOCK_DOCUMENTS = 1 << 16
MAX_BLOCKS = 256
PAIR = np.dtype("<u8")


@dataclass
class CandidateCounts:
    """What the candidate stage met."""

    num_buckets: int = 0
    num_huge_buckets: int = 0
    largest_bucket: int = 0
    num_unresolved: int = 0
    """Times that a document of a huge bucket was like none of its 64 leaders and had no place to lead. Other
    bands may still find its pairs."""


class BandFiles:
    """Band hashes of one worker's documents on disk, 12 bytes per band and document."""

    def __init__(self, folder: Path, bands: int, rows: int) -> None:
        self.files = create_hash_files(folder)
        self.bands = bands
        self.rows = rows

    def append(self, signatures: NDArray[np.uint32], documents: NDArray[np.integer]) -> None:
        """Add signatures [n, hashes] of the documents of these numbers; those without words are left out."""
        worded = (signatures != NO_WORDS).any(axis=1)
        hashes = band_hashes(signatures[worded], self.bands, self.rows)
        append_hashes(self.files, hashes.ravel(), np.repeat(documents[worded], self.bands))


def pair_blocks(num_documents: int) -> int:
    """Documents per block of pairs: a block's signatures fit into memory."""
    return max(MIN_BLOCK_DOCUMENTS, -(-num_documents // MAX_BLOCKS))


def write_candidates(
    bands: Sequence[PartitionedFiles],
    signatures: RowFile,
    rank: NDArray[np.int64],
    sure_hashes: tuple[int, int],
    folder: Path,
) -> tuple[PartitionedFiles, CandidateCounts]:
    """Write every candidate pair (smaller number << 32 | larger number) into blocks by its smaller number.

    rank: int64 [documents], 0 is the best. sure_hashes: with fewer equal hashes than the first number two
    documents are surely strangers, from the second on they are surely duplicates.
    """
    block = pair_blocks(len(rank))
    pairs = PartitionedFiles.create(folder, -(-len(rank) // block), PAIR)
    counts = CandidateCounts()
    for hashes, documents in repeated_records(bands):
        for found in _partition_pairs(hashes, documents, signatures, rank, sure_hashes, counts):
            distinct = np.unique(found)
            pairs.append((distinct >> np.uint64(32)) // np.uint64(block), distinct)
    return pairs, counts


def _partition_pairs(
    hashes: NDArray[np.uint64],
    documents: NDArray[np.uint32],
    signatures: RowFile,
    rank: NDArray[np.int64],
    sure_hashes: tuple[int, int],
    counts: CandidateCounts,
) -> Iterator[NDArray[np.uint64]]:
    starts = np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1]))) if len(hashes) else hashes
    sizes = np.diff(np.append(starts, len(hashes))).astype(np.int64)
    counts.num_buckets += int((sizes > 1).sum())
    counts.largest_bucket = max(counts.largest_bucket, int(sizes.max(initial=0)))
    small = (sizes > 1) & (sizes <= MAX_ALL_PAIRS)
    yield _all_pairs(documents, starts[small].astype(np.int64), sizes[small])
    for bucket in np.flatnonzero(sizes > MAX_ALL_PAIRS):
        members = documents[starts[bucket] : starts[bucket] + sizes[bucket]]
        counts.num_huge_buckets += 1
        yield from _leader_pairs(members[np.argsort(rank[members])], signatures, sure_hashes, counts)


@njit(cache=True)
def _all_pairs(documents, starts, sizes):
    total = (sizes * (sizes - 1) // 2).sum()
    pairs = np.empty(total, np.uint64)
    count = 0
    for bucket in range(len(starts)):
        for i in range(starts[bucket], starts[bucket] + sizes[bucket]):
            for j in range(i + 1, starts[bucket] + sizes[bucket]):
                low, high = min(documents[i], documents[j]), max(documents[i], documents[j])
                pairs[count] = (np.uint64(low) << np.uint64(32)) | np.uint64(high)
                count += 1
    return pairs


def _leader_pairs(
    members: NDArray[np.uint32], signatures: RowFile, sure_hashes: tuple[int, int], counts: CandidateCounts
) -> Iterator[NDArray[np.uint64]]:
    """Pairs of a huge bucket, whose members come in the order of their rank; memory holds one block."""
    leaders = np.empty((MAX_LEADERS, signatures.width), signatures.dtype)
    names = np.zeros(MAX_LEADERS, np.uint32)
    num_leaders = 0
    for begin in range(0, len(members), BLOCK_ROWS):
        block = members[begin : begin + BLOCK_ROWS]
        num_leaders, unresolved, pairs = _follow(
            block, signatures.read(block), leaders, names, num_leaders, *sure_hashes
        )
        counts.num_unresolved += unresolved
        yield pairs


@njit(cache=True)
def _follow(members, rows, leaders, names, num_leaders, least, sure):
    """(leaders now, documents without a place, pairs); `leaders` and `names` are filled in place."""
    pairs = np.empty(len(members) * len(names), np.uint64)
    count, unresolved = 0, 0
    for index in range(len(members)):
        follows = False
        for leader in range(num_leaders):
            equal = 0
            for column in range(rows.shape[1]):
                equal += rows[index, column] == leaders[leader, column]
            if equal >= least:
                low, high = min(members[index], names[leader]), max(members[index], names[leader])
                pairs[count] = (np.uint64(low) << np.uint64(32)) | np.uint64(high)
                count += 1
            if equal >= sure:
                follows = True
                break
        if not follows and num_leaders < len(names):
            leaders[num_leaders], names[num_leaders] = rows[index], members[index]
            num_leaders += 1
        elif not follows:
            unresolved += 1
    return num_leaders, unresolved, pairs[:count]

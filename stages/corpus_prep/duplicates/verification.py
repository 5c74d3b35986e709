"""Every candidate pair is verified: by its 112 hashes, and where that is close, by the texts.

The share of equal MinHashes estimates the Jaccard similarity with a standard deviation of at most 0.047 (112
hashes; 0.042 at 0.72). Within 0.1 of the threshold the sets of word 5-grams decide, which are made of the
texts of those documents only, in one more streamed pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.minhash_bands import equal_hashes
from stages.corpus_prep.duplicates.partitioned_files import PartitionedFiles
from stages.corpus_prep.duplicates.row_file import RowFile
from stages.runtime.arrays import write_array
from stages.runtime.compiled import njit

NGRAM_WORDS = 5
PAIRS_AT_ONCE = 1 << 15
GRAMS_AT_ONCE = 1 << 22

FetchWords = Callable[[NDArray[np.int64]], Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]]
"""Given ascending numbers of documents, yields (offsets int64 [k + 1], word hashes uint64) for batches of
them, in order: what `word_hashes(texts)` gives for the texts of these documents. Reads no more than a batch
at once."""

_GRAM_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words_of_parquet(
    paths: Sequence[Path],
    column: str,
    hash_words: Callable[[pa.Array], tuple[NDArray[np.int64], NDArray[np.uint64]]],
) -> FetchWords:
    """Fetches words of documents that are numbered by their rows in these files; memory holds one row group.

    hash_words: texts (large_string) to (offsets int64 [texts + 1], word hashes uint64), as `word_hashes`.
    """

    def fetch(documents: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        begin = 0
        for path in paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    end = begin + file.metadata.row_group(group).num_rows
                    first, last = np.searchsorted(documents, (begin, end))
                    if last > first:
                        texts = file.read_row_group(group, [column], use_threads=False)[column]
                        chosen = pa.array(documents[first:last] - begin)
                        yield hash_words(texts.cast(pa.large_string()).combine_chunks().take(chosen))
                    begin = end

    return fetch


@dataclass(frozen=True)
class Edges:
    """Verified pairs: first, second uint32 [edges] (first < second), similarity float32 [edges]."""

    first: NDArray[np.uint32]
    second: NDArray[np.uint32]
    similarity: NDArray[np.float32]

    @classmethod
    def of_pairs(cls, pairs: NDArray[np.uint64], similarity: NDArray) -> Edges:
        """From packed pairs."""
        first, second = (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32)
        return cls(first, second, similarity.astype(np.float32))

    @classmethod
    def joined(cls, parts: list[Edges]) -> Edges:
        """All of them, sorted by their documents."""
        first = np.concatenate([part.first for part in parts]) if parts else np.empty(0, np.uint32)
        second = np.concatenate([part.second for part in parts]) if parts else np.empty(0, np.uint32)
        similarity = np.concatenate([part.similarity for part in parts]) if parts else np.empty(0, np.float32)
        order = np.lexsort((second, first))
        return cls(first[order], second[order], similarity[order])


@dataclass
class VerificationCounts:
    """What became of the candidates."""

    num_candidates: int = 0
    num_compared_exactly: int = 0
    num_verified: int = 0


def estimate_bounds(threshold: float, margin: float, num_hashes: int) -> tuple[int, int]:
    """(least, sure): fewer equal hashes than `least` reject a pair, `sure` or more accept it, both by
    estimate."""
    least = int(np.ceil((threshold - margin) * num_hashes - 1e-9))
    sure = int(np.ceil((threshold + margin) * num_hashes - 1e-9))
    return max(1, least), min(num_hashes, max(sure, least))


def estimated_similarities(
    pairs: PartitionedFiles, signatures: RowFile, num_earlier: int, counts: VerificationCounts
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
    """(packed pairs, equal hashes uint8) of every candidate, each pair once, in ascending order.

    Pairs of two documents that are both of earlier builds (numbers below num_earlier) were decided there.
    """
    for partition in range(pairs.num_partitions):
        block = np.unique(pairs.read(partition))
        block = block[(block & np.uint64(0xFFFFFFFF)) >= np.uint64(num_earlier)]
        counts.num_candidates += len(block)
        for begin in range(0, len(block), PAIRS_AT_ONCE):
            part = block[begin : begin + PAIRS_AT_ONCE]
            left = signatures.read(part >> np.uint64(32))
            right = signatures.read(part & np.uint64(0xFFFFFFFF))
            yield part, equal_hashes(left, right)


def verify(
    pairs: PartitionedFiles,
    signatures: RowFile,
    threshold: float,
    margin: float,
    fetch: FetchWords | None,
    scratch: Path,
    num_earlier: int = 0,
) -> tuple[Edges, VerificationCounts]:
    """The candidates whose Jaccard similarity reaches the threshold.

    fetch: where the texts' words come from for the pairs within `margin`; without it the estimate decides
    alone, and so it does for pairs with a document of an earlier build, whose text is not here.
    """
    counts, accepted, close = VerificationCounts(), [], []
    margin = margin if fetch is not None else 0.0
    least, sure = estimate_bounds(threshold, margin, signatures.width)
    plain = int(np.ceil(threshold * signatures.width - 1e-9))
    for part, equal in estimated_similarities(pairs, signatures, num_earlier, counts):
        earlier = (part >> np.uint64(32)) < np.uint64(num_earlier)
        taken = (equal >= sure) | (earlier & (equal >= plain))
        accepted.append(Edges.of_pairs(part[taken], equal[taken] / signatures.width))
        close.append(part[~earlier & (equal >= least) & (equal < sure)])
    unsure = np.concatenate(close) if close else np.empty(0, np.uint64)
    if fetch is not None and len(unsure):
        counts.num_compared_exactly = len(unsure)
        similarity = exact_similarities(unsure, fetch, scratch, num_earlier)
        reached = similarity >= threshold
        accepted.append(Edges.of_pairs(unsure[reached], similarity[reached]))
    edges = Edges.joined(accepted)
    counts.num_verified = len(edges.first)
    return edges, counts


def exact_similarities(
    pairs: NDArray[np.uint64], fetch: FetchWords, scratch: Path, num_earlier: int = 0
) -> NDArray[np.float64]:
    """Jaccard similarity of the documents' sets of word 5-grams, float64 [pairs].

    The sets go to a scratch file (8 bytes per distinct 5-gram); memory holds the sets of a few pairs.
    """
    left, right = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    needed = np.unique(np.concatenate((left, right))).astype(np.int64)
    offsets = _write_gram_sets(needed - num_earlier, fetch, scratch)
    rows = np.searchsorted(needed, left.astype(np.int64)), np.searchsorted(needed, right.astype(np.int64))
    sizes = np.diff(offsets)
    chunk = np.cumsum(sizes[rows[0]] + sizes[rows[1]]) // GRAMS_AT_ONCE
    similarity = np.empty(len(pairs), np.float64)
    for picked in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(chunk)) + 1):
        documents, places = np.unique(np.concatenate((rows[0][picked], rows[1][picked])), return_inverse=True)
        grams, bounds = _read_gram_sets(scratch, offsets, documents)
        similarity[picked] = _jaccard(grams, bounds, places[: len(picked)], places[len(picked) :])
    scratch.unlink()
    return similarity


def _write_gram_sets(documents: NDArray[np.int64], fetch: FetchWords, scratch: Path) -> NDArray[np.int64]:
    """Write the sorted distinct 5-grams of each document; returns int64 [documents + 1] offsets into the
    file."""
    sizes: list[NDArray[np.int64]] = []
    with scratch.open("wb") as file:
        for offsets, hashes in fetch(documents):
            grams, counted = gram_sets(offsets, hashes)
            write_array(file, grams)
            sizes.append(counted)
    found = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
    if len(found) != len(documents):
        raise ValueError(f"fetch gave {len(found)} documents, {len(documents)} were asked for")
    return np.concatenate(([0], np.cumsum(found)))


def _read_gram_sets(
    scratch: Path, offsets: NDArray[np.int64], documents: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    bounds = np.concatenate(([0], np.cumsum(np.diff(offsets)[documents])))
    grams = np.empty(bounds[-1], np.uint64)
    with scratch.open("rb", buffering=0) as file:
        for document, begin, end in zip(documents, bounds[:-1], bounds[1:], strict=True):
            file.seek(int(offsets[document]) * 8)
            file.readinto(memoryview(grams[begin:end]).cast("B"))  # type: ignore[attr-defined]
    return grams, bounds


def gram_sets(
    offsets: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(sorted distinct 5-gram hashes, how many per document int64). A shorter document is one gram of all its
    words."""
    return _gram_sets(offsets, hashes, NGRAM_WORDS)


@njit(cache=True)
def _gram_sets(offsets, hashes, size):
    grams = np.empty(len(hashes) + len(offsets), np.uint64)
    sizes = np.zeros(len(offsets) - 1, np.int64)
    count = 0
    for document in range(len(offsets) - 1):
        begin, end = offsets[document], offsets[document + 1]
        length = min(size, end - begin)
        number = end - begin - length + 1 if length else 0
        own = np.empty(number, np.uint64)
        for start in range(number):
            state = np.uint64(length)
            for word in range(begin + start, begin + start + length):
                state = (state ^ hashes[word]) * _GRAM_FACTOR
                state ^= state >> np.uint64(32)
            own[start] = state
        own.sort()
        for index in range(number):
            if index == 0 or own[index] != own[index - 1]:
                grams[count] = own[index]
                count += 1
                sizes[document] += 1
    return grams[:count].copy(), sizes


@njit(cache=True)
def _jaccard(grams, bounds, left, right):
    """|A and B| / |A or B| of sorted sets by merging them; two empty sets are strangers."""
    found = np.zeros(len(left), np.float64)
    for pair in range(len(left)):
        i, i_end = bounds[left[pair]], bounds[left[pair] + 1]
        j, j_end = bounds[right[pair]], bounds[right[pair] + 1]
        total, shared = (i_end - i) + (j_end - j), 0
        while i < i_end and j < j_end:
            if grams[i] == grams[j]:
                shared += 1
                i += 1
                j += 1
            elif grams[i] < grams[j]:
                i += 1
            else:
                j += 1
        if total > shared:
            found[pair] = shared / (total - shared)
    return found

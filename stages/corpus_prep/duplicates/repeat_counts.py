"""Which hashes more than so many documents hold, counted over all shards and told to each shard.

Each shard has written its hashes by their top bits (`partitioned_files.py`). One partition of all shards is
read at a time; what is repeated there goes into a file in which each shard finds the hashes that it holds
itself. So a shard never sees more than it wrote, and who counts never more than a part of one partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.partitioned_files import (
    HASHED_DOCUMENT,
    MAX_DOCUMENTS,
    PartitionedFiles,
    repeated_records,
)
from stages.corpus_prep.duplicates.repeated_spans import RepeatedHashes
from stages.runtime.arrays import write_array


def share_repeated(
    files: Sequence[PartitionedFiles],
    starts: NDArray[np.int64],
    originals: NDArray[np.integer],
    partitions: range,
    more_than_documents: int,
    folder: Path,
) -> None:
    """Write the repeated hashes of some partitions and their first documents, for each shard that holds them.

    starts: int64 [shards + 1], the number of each shard's first document. originals: [documents], the first
    document with the same text: only those count. folder must exist.
    """
    for number, (hashes, documents) in enumerate(repeated_records(files, partitions)):
        shards = np.searchsorted(starts, documents, "right") - 1
        counts = originals[documents] == documents
        chosen, first = _repeated(hashes, documents, shards, counts, more_than_documents)
        if len(chosen):
            records = np.empty(len(chosen), HASHED_DOCUMENT)
            records["hash"], records["document"] = hashes[chosen], first
            order = np.argsort(shards[chosen], kind="stable")
            sizes = np.bincount(shards[chosen], minlength=len(starts) - 1)
            with (folder / f"{partitions.start:05d}-{number:05d}.bin").open("wb") as file:
                write_array(file, np.concatenate(([0], np.cumsum(sizes))).astype("<i8"))
                write_array(file, records[order])


def _repeated(
    hashes: NDArray[np.uint64],
    documents: NDArray[np.uint32],
    shards: NDArray[np.int64],
    counts: NDArray[np.bool_],
    more_than_documents: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """(places, first document) of the hashes that more documents hold, once for each shard that holds them.

    All arrays are sorted by hash, then by document. counts: whether the document is one that counts.
    """
    new_hash = np.ones(len(hashes), np.bool_)
    new_hash[1:] = hashes[1:] != hashes[:-1]
    begins, group = np.flatnonzero(new_hash), np.cumsum(new_hash) - 1
    if not len(begins):
        return begins, documents
    new_document, new_shard = new_hash.copy(), new_hash.copy()
    new_document[1:] |= documents[1:] != documents[:-1]
    new_shard[1:] |= shards[1:] != shards[:-1]
    enough = np.add.reduceat((new_document & counts).astype(np.int64), begins) > more_than_documents
    first = np.minimum.reduceat(np.where(counts, documents, MAX_DOCUMENTS), begins)
    places = np.flatnonzero(new_shard & enough[group])
    return places, first[group[places]].astype(np.uint32)


def read_shared(folders: Sequence[Path], shard: int, num_shards: int) -> RepeatedHashes:
    """The repeated hashes that a shard holds. folders: of `share_repeated`, by ascending partitions."""
    found, head = [np.empty(0, HASHED_DOCUMENT)], 8 * (num_shards + 1)
    for path in (path for folder in folders for path in sorted(folder.glob("*.bin"))):
        begin, end = np.fromfile(path, "<i8", 2, offset=8 * shard).tolist()
        offset = head + begin * HASHED_DOCUMENT.itemsize
        found.append(np.fromfile(path, HASHED_DOCUMENT, end - begin, offset=offset))
    records = np.concatenate(found)
    return RepeatedHashes(np.ascontiguousarray(records["hash"]), np.ascontiguousarray(records["document"]))

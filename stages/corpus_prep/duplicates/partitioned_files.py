"""Fixed-size records on disk, divided by key, so that what belongs together fits into memory one part at a
time.

This is the shuffle of the deduplication: each worker writes its own folder, whoever reads takes one partition
of all folders. Files are raw little-endian records in the order in which they were appended, hence the same
bytes from the same input, whatever the number of workers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.runtime.arrays import write_array
from stages.runtime.compiled import njit

HASHED_DOCUMENT = np.dtype([("hash", "<u8"), ("document", "<u4")])
"""12 bytes: a hash and the number of the document that it was seen in."""
MAX_DOCUMENTS = 2**32
PARTITION_BITS = 8
BUFFERED_RECORDS = 1 << 19
"""So many are held until they are written: every writing opens each partition's file."""
MAX_RECORDS = 1 << 22
"""So many are sorted at once: a larger partition is read several times, a range of its hashes each time."""


class PartitionedFiles:
    """A folder with one file of records per partition."""

    def __init__(self, folder: Path, num_partitions: int, dtype: np.dtype = HASHED_DOCUMENT) -> None:
        self.folder = folder
        self.num_partitions = num_partitions
        self.dtype = dtype
        self._held: list[tuple[NDArray[np.uint16], NDArray]] = []

    @classmethod
    def create(cls, folder: Path, num_partitions: int, dtype: np.dtype = HASHED_DOCUMENT) -> PartitionedFiles:
        """Begin with an empty folder: what an interrupted worker left there is removed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return cls(folder, num_partitions, dtype)

    def _path(self, partition: int) -> Path:
        return self.folder / f"partition-{partition:05d}.bin"

    def append(self, partitions: NDArray[np.integer], records: NDArray) -> None:
        """Append each record to its partition; the order inside a partition stays."""
        self._held.append((partitions.astype(np.uint16), records.astype(self.dtype, copy=False)))
        if sum(len(held) for held, _ in self._held) >= BUFFERED_RECORDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held; before another process reads."""
        if not self._held:
            return
        partitions = np.concatenate([held for held, _ in self._held])
        order = np.argsort(partitions, kind="stable")  # of 16 bits: a radix sort
        records = np.concatenate([held for _, held in self._held])[order]
        self._held.clear()
        ends = np.cumsum(np.bincount(partitions, minlength=self.num_partitions))
        begin = 0
        for partition, end in enumerate(ends.tolist()):
            if end > begin:
                with self._path(partition).open("ab") as file:
                    write_array(file, records[begin:end])
            begin = end

    def read(self, partition: int) -> NDArray:
        """All records of a partition."""
        self.flush()
        path = self._path(partition)
        return np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)

    def num_records(self, partition: int) -> int:
        """How many records were written to a partition and flushed."""
        path = self._path(partition)
        return path.stat().st_size // self.dtype.itemsize if path.exists() else 0

    def remove(self) -> None:
        """Delete the folder."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def create_hash_files(folder: Path) -> PartitionedFiles:
    """An empty folder for records that are divided by the top bits of their hash."""
    return PartitionedFiles.create(folder, 1 << PARTITION_BITS)


def append_hashes(
    files: PartitionedFiles, hashes: NDArray[np.uint64], documents: NDArray[np.integer]
) -> None:
    """Append (hash, document) records.

    Raises:
        ValueError: a document's number does not fit into 32 bits.
    """
    if len(documents) and int(documents.max()) >= MAX_DOCUMENTS:
        raise ValueError(
            f"document number {int(documents.max())} is over {MAX_DOCUMENTS - 1}: build in parts"
        )
    records = np.empty(len(hashes), HASHED_DOCUMENT)
    records["hash"], records["document"] = hashes, documents
    files.append(hashes >> np.uint64(64 - PARTITION_BITS), records)


def repeated_records(
    sources: Sequence[PartitionedFiles], partitions: Iterable[int] | None = None
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """Per partition (hashes, documents) of the hashes that occur twice, sorted by hash; documents ascend if
    appended so. A partition of more than MAX_RECORDS records comes in ranges of its hashes.

    Most hashes occur once. Two bitmaps sort them out in two passes without sorting; only the rest is sorted.
    """
    for partition in range(sources[0].num_partitions if sources else 0) if partitions is None else partitions:
        for records in _ranges(sources, partition):
            hashes = np.ascontiguousarray(records["hash"])
            repeated = records[seen_again(hashes)]
            del records, hashes
            order = np.argsort(repeated["hash"], kind="stable")
            yield repeated["hash"][order], repeated["document"][order]


def _ranges(sources: Sequence[PartitionedFiles], partition: int) -> Iterator[NDArray]:
    """The records of a partition, divided by further bits of their hashes if there are too many."""
    for source in sources:
        source.flush()
    total = sum(source.num_records(partition) for source in sources)
    bits = (-(-total // MAX_RECORDS) - 1).bit_length() if total else 0
    for number in range(1 << bits):
        yield np.concatenate([_in_range(source.read(partition), bits, number) for source in sources])


def _in_range(records: NDArray, bits: int, number: int) -> NDArray:
    if not bits:
        return records
    return records[records["hash"] << np.uint64(PARTITION_BITS) >> np.uint64(64 - bits) == number]


def seen_again(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [hashes]: whether the hash occurs at least twice, or, seldom, shares its bit with another one."""
    bits = max(16, len(hashes).bit_length() + 4)
    return _seen_again(hashes, np.uint64(2**bits - 1))


@njit(cache=True)
def _seen_again(hashes, mask):
    once = np.zeros((mask >> np.uint64(3)) + np.uint64(1), np.uint8)
    twice = np.zeros_like(once)
    for value in hashes:
        slot = value & mask
        byte, bit = slot >> np.uint64(3), np.uint8(1 << (slot & np.uint64(7)))
        if once[byte] & bit:
            twice[byte] |= bit
        once[byte] |= bit
    found = np.empty(len(hashes), np.bool_)
    for index in range(len(hashes)):
        slot = hashes[index] & mask
        found[index] = (twice[slot >> np.uint64(3)] >> (slot & np.uint64(7))) & np.uint8(1)
    return found

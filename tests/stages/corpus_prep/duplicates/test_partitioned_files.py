"""Records by key and rows by number on disk: what is read is what was written, in its order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.corpus_prep.duplicates import partitioned_files
from stages.corpus_prep.duplicates.partitioned_files import (
    append_hashes,
    create_hash_files,
    repeated_records,
    seen_again,
)
from stages.corpus_prep.duplicates.row_file import MAX_RUN_ROWS, RowFile


@pytest.mark.parametrize("buffered", [1, 50, 10**6])
def test_repeated_records_of_two_workers_are_those_of_a_counter(
    buffered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitioned_files, "BUFFERED_RECORDS", buffered)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 300, np.uint64)
    hashes = values[rng.integers(0, 300, 400)]
    workers = [create_hash_files(tmp_path / name) for name in "ab"]
    for begin in range(0, 400, 40):
        part = slice(begin, begin + 40)
        append_hashes(workers[begin >= 200], hashes[part], np.arange(begin, begin + 40))
    found = [np.stack(pair, axis=1).tolist() for pair in repeated_records(workers)]
    expected = sorted([h, d] for d, h in enumerate(hashes.tolist()) if Counter(hashes.tolist())[h] > 1)
    # A hash that shares its bit with another one may be listed, too; of 400 in 65,536 bits hardly one does.
    assert [row for part in found for row in part] == expected


def test_seen_again_misses_none_and_adds_few() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, np.uint64)
    hashes[-5_000:] = hashes[:5_000]
    found = seen_again(hashes)
    assert found[:5_000].all() and found[-5_000:].all()
    assert found.sum() < 10_000 + 15_000


def test_what_an_interrupted_worker_left_is_removed(tmp_path: Path) -> None:
    files = create_hash_files(tmp_path / "a")
    append_hashes(files, np.array([1, 1], np.uint64), np.array([0, 1]))
    files.flush()
    assert [len(hashes) for hashes, _ in repeated_records([create_hash_files(tmp_path / "a")])] == [0] * 256


def test_a_document_number_of_more_than_32_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4294967296 is over 4294967295"):
        append_hashes(create_hash_files(tmp_path), np.zeros(1, np.uint64), np.array([2**32]))


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    count = 3 * MAX_RUN_ROWS
    rows = np.random.default_rng(0).integers(0, 2**32, (count, 3), np.uint32)
    file = RowFile.create(tmp_path / "deep" / "rows", np.dtype("<u4"), 3)
    file.append(rows[:10])
    file.append(rows[10:])
    assert len(file) == count
    rng = np.random.default_rng(1)
    for wanted in (np.arange(count), rng.integers(0, count, 500), np.array([count - 1, 0, 0]), np.arange(0)):
        assert (file.read(wanted) == rows[wanted]).all()
    assert file.read(np.arange(0)).shape == (0, 3)

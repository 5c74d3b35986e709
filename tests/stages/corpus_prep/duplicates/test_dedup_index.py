"""Deduplication as a whole, exact and near, and against what earlier builds kept."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.corpus_prep.duplicates.dedup_index import (
    DEDUP_INDEX_SCHEMA,
    FILE_NAME,
    merge_indexes,
    read_index,
    signature_column,
    write_index,
)
from stages.corpus_prep.duplicates.deduplication import (
    EXACT_DUPLICATE,
    KEPT,
    NEAR_DUPLICATE,
    Deduplicator,
)
from stages.corpus_prep.duplicates.exact_duplicates import exact_keepers, hash_halves
from stages.runtime.store import file_sha256


def _hashes(texts: list[str]) -> pa.Array:
    digests = [hashlib.blake2b(" ".join(t.lower().split()).encode(), digest_size=16).digest() for t in texts]
    return pa.array(digests, pa.binary(16))


def _batch(made, names: list[str]) -> pa.Table:
    size = len(names)
    columns = [
        pa.array(names),
        pa.array(["web"] * size),
        pa.array([f"key-{n}" for n in names]),
        _hashes(made.texts),
        signature_column(made.signatures),
    ]
    return pa.table(columns, schema=DEDUP_INDEX_SCHEMA)


def _texts(make_text, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [make_text(rng, 80, False) for _ in range(count)]


def test_exact_keepers_are_those_of_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 9, (400, 2)).astype(np.uint64)
    rank = rng.permutation(400)
    best: dict[tuple[int, ...], int] = {}
    for number in np.argsort(rank):
        best.setdefault(tuple(halves[number].tolist()), int(number))
    assert exact_keepers(halves, rank).tolist() == [best[tuple(row)] for row in halves.tolist()]
    assert exact_keepers(halves[:0], rank[:0]).tolist() == []


def test_hash_halves_tell_all_16_bytes_apart() -> None:
    values = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), bytes(7) + b"\1" + bytes(8)]
    array = pa.array([b"x" * 16, *values], pa.binary(16))
    assert len({tuple(row) for row in hash_halves(array[1:]).tolist()}) == 4
    assert hash_halves(array.slice(2, 2)).tobytes() == values[1] + values[2]


def test_exact_then_near_then_kept(corpus, make_text, perturb, tmp_path: Path) -> None:
    texts = _texts(make_text, 4, seed=1)
    near = perturb(random.Random(5), texts[0], 0.01, False)
    made = corpus([*texts, texts[1].upper(), near, near])
    dedup = Deduplicator(tmp_path / "work")
    for begin in range(0, 7, 3):
        part = made.texts[begin : begin + 3]
        dedup.add(_hashes(part), signature_column(made.signatures[begin : begin + 3]))
    decisions, report = dedup.decide(np.array([0, 1, 2, 3, 4, 5, 6]), made.fetch)
    assert decisions.verdict.tolist() == [KEPT] * 4 + [EXACT_DUPLICATE, NEAR_DUPLICATE, EXACT_DUPLICATE]
    # The last one equals one that went itself; what stays in its place is that one's keeper.
    assert decisions.keeper.tolist() == [0, 1, 2, 3, 1, 0, 0]
    assert decisions.representative.tolist() == [0, 1, 2, 3, 1, 0, 0]
    assert decisions.similarity[4] == 1.0 and 0.72 <= decisions.similarity[6] < 1.0
    assert not decisions.train_only.any() and report.num_dropped == 1


def test_a_later_build_names_the_earlier_document(corpus, make_text, perturb, tmp_path: Path) -> None:
    first, second = _texts(make_text, 3, seed=1), _texts(make_text, 2, seed=2)
    write_index(tmp_path / "monday", [_batch(corpus(first), ["m0", "m1", "m2"])])
    write_index(tmp_path / "tuesday", [_batch(corpus(second), ["t0", "t1"])])
    near = perturb(random.Random(5), second[1], 0.01, False)
    made = corpus([first[2].upper(), "something new that nobody has seen so far at all", near])
    dedup = Deduplicator(tmp_path / "work", earlier=[tmp_path / "monday", tmp_path / "tuesday"])
    dedup.add(_hashes(made.texts), signature_column(made.signatures))
    decisions, _ = dedup.decide(np.array([0, 1, 2]), made.fetch)
    assert decisions.verdict.tolist() == [EXACT_DUPLICATE, KEPT, NEAR_DUPLICATE]
    named = decisions.earlier_documents()
    assert [named[k].doc_id for k in decisions.keeper.tolist() if k < 0] == ["m2", "t1"]
    assert decisions.keeper[1] == decisions.representative[1] == 1
    assert named[int(decisions.representative[2])].split_key == "key-t1"
    assert made.fetched == []  # texts of earlier builds are not here: the estimate decides


def test_merged_indexes_do_what_both_do(corpus, make_text, tmp_path: Path) -> None:
    first, second = _texts(make_text, 3, seed=1), _texts(make_text, 2, seed=2)
    write_index(tmp_path / "a", [_batch(corpus(first), ["m0", "m1", "m2"])])
    write_index(tmp_path / "b", [_batch(corpus([first[1], *second]), ["again", "t0", "t1"])])
    assert merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "ab") == 5
    names = [name for batch in read_index([tmp_path / "ab"]) for name in batch["doc_id"].to_pylist()]
    assert names == ["m0", "m1", "m2", "t0", "t1"]
    assert merge_indexes([tmp_path / "ab"], tmp_path / "again") == 5
    assert file_sha256(tmp_path / "again" / FILE_NAME) == file_sha256(tmp_path / "ab" / FILE_NAME)


@pytest.mark.parametrize("size", [1, 700, 20_000])
def test_the_bytes_of_an_index_do_not_depend_on_the_batches(size: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2**32, (20_000, 112), np.uint32)
    names = pa.array([str(i) for i in range(20_000)])
    table = pa.table(
        [names, names, names, pa.array([bytes(16)] * 20_000, pa.binary(16)), signature_column(rows)],
        schema=DEDUP_INDEX_SCHEMA,
    )
    table = table.slice(0, 2 if size == 1 else 20_000)
    assert write_index(tmp_path / "one", [table]) == len(table)
    write_index(tmp_path / "many", table.to_batches(max_chunksize=size))
    assert file_sha256(tmp_path / "one" / FILE_NAME) == file_sha256(tmp_path / "many" / FILE_NAME)
    assert pq.read_table(tmp_path / "many" / FILE_NAME)["signature"].combine_chunks() == signature_column(
        rows[: len(table)]
    )

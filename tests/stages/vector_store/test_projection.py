"""The Chroma projection: one writer, verified, sealed, rebuilt when anything is in doubt; never the
network."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from stages.runtime.errors import ContractError, RetryableError, UserError
from stages.vector_store import projection
from stages.vector_store.collection import COLLECTION, chroma_client
from stages.vector_store.projection import (
    HnswSettings,
    Seal,
    Vectors,
    open_projection,
    recall_against_exact,
    write_projection,
)

SMALL = HnswSettings(20, 20, 8)
Write = Callable[..., Seal]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(300, 12)))
    rows[200:220] = rows[0]  # equal chunks have equal vectors
    return Vectors([f"chunk-{n}" for n in range(300)], rows, [{"doc_id": f"d{n}"} for n in range(300)])


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(40, 12)))


@pytest.fixture
def write(vectors: Vectors, queries: np.ndarray, tmp_path: Path) -> Write:
    def call(folder: Path = tmp_path / "chroma", **changes: Any) -> Seal:
        options = {"vectors": vectors, "queries_QxD": queries, "hnsw": SMALL, "min_recall": 0.9}
        return write_projection(
            folder=folder, on_progress=changes.pop("on_progress", ignore), **options | changes
        )

    return call


def ignore(done: int, total: int) -> None:
    """No progress wanted."""


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_written_is_found(
    write: Write, vectors: Vectors, queries: np.ndarray, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    seal = write(on_progress=lambda done, total: told.append((done, total)))
    assert (seal.num_vectors, seal.dimensions, seal.vectors_sha256) == (300, 12, vectors.sha256())
    assert seal.recall_at_10_vs_exact >= 0.9 and seal.num_recall_queries == 200
    assert told[-1] == (300, 300)
    with open_projection(tmp_path / "chroma") as opened:
        assert len(opened) == 300
        hits = opened.query(vectors.vectors_NxD[[7, 150]], k=3)
        assert [ids[0] for ids in hits] == ["chunk-7", "chunk-150"]
        assert recall_against_exact(opened, vectors, queries) >= 0.9
        stored = opened.collection.get(ids=["chunk-9"], include=["metadatas", "embeddings"])
    assert stored["metadatas"] == [{"doc_id": "d9"}]
    np.testing.assert_allclose(stored["embeddings"][0], vectors.vectors_NxD[9], atol=1e-6)


def test_reading_leaves_every_byte_as_it_was(write: Write, tmp_path: Path, queries: np.ndarray) -> None:
    write()
    before = digests(tmp_path / "chroma")
    for _ in range(2):
        with open_projection(tmp_path / "chroma") as opened:
            opened.query(queries[:2])
    assert digests(tmp_path / "chroma") == before


def test_a_second_build_of_the_same_is_no_work(write: Write, tmp_path: Path) -> None:
    write()
    before = digests(tmp_path / "chroma")
    assert write() == Seal.read(tmp_path / "chroma")
    assert digests(tmp_path / "chroma") == before


def test_other_vectors_are_written_anew(write: Write, vectors: Vectors, tmp_path: Path) -> None:
    write()
    fewer = Vectors(vectors.ids[:100], -vectors.vectors_NxD[:100], vectors.metadatas[:100])
    assert write(vectors=fewer).num_vectors == 100
    with open_projection(tmp_path / "chroma") as opened:
        assert opened.query(fewer.vectors_NxD[[3]], k=1) == [["chunk-3"]]


def test_an_interrupted_writer_leaves_no_seal_and_the_next_one_starts_over(
    write: Write, vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "VECTORS_PER_BATCH", 50)

    def interrupt(done: int, total: int) -> None:
        if done >= 150:
            raise InterruptedError("killed here")

    with pytest.raises(InterruptedError):
        write(on_progress=interrupt)
    assert (tmp_path / "chroma" / "chroma" / "chroma.sqlite3").is_file()
    with pytest.raises(UserError, match=r"no seal\.json: it was not written to the end") as error:
        with open_projection(tmp_path / "chroma"):
            pass
    assert "python -m stages.vector_store.rebuild" in error.value.hint
    # What is left over may hold batches that nobody acknowledged: they must not survive.
    shorter = Vectors(vectors.ids[:60], vectors.vectors_NxD[:60], vectors.metadatas[:60])
    write(vectors=shorter)
    with open_projection(tmp_path / "chroma") as opened:
        assert len(opened) == 60


def test_two_writers_are_one_too_many(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "chroma"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(RetryableError, match="another process is writing"):
            write()
        assert list(folder.iterdir()) == []
    finally:
        os.close(descriptor)
    assert write().num_vectors == 300


def test_too_low_recall_raises_the_settings_then_fails(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[HnswSettings] = []
    real = projection._write_files

    def spy(vectors: Vectors, files: Path, hnsw: HnswSettings, on_progress: Any) -> None:
        tried.append(hnsw)
        real(vectors, files, hnsw, on_progress)

    monkeypatch.setattr(projection, "_write_files", spy)
    with pytest.raises(ContractError, match=r"after 3 builds Chroma finds .* expected 1\.010"):
        write(min_recall=1.01)
    assert tried == [SMALL, HnswSettings(40, 40, 16), HnswSettings(80, 80, 32)]
    assert not (tmp_path / "chroma" / "seal.json").exists()


def test_raised_settings_are_in_the_seal(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.99])
    real = projection._verify
    monkeypatch.setattr(projection, "_verify", lambda *given: replace(real(*given), recall=next(shares)))
    assert write(min_recall=0.98).hnsw == {"ef_construction": 40, "ef_search": 40, "max_neighbors": 16}


def test_lost_vectors_are_noticed(write: Write, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    real = projection._write_files

    def lossy(vectors: Vectors, files: Path, hnsw: HnswSettings, on_progress: Any) -> None:
        real(vectors, files, hnsw, on_progress)
        with chroma_client(files) as client:
            client.get_collection(COLLECTION, embedding_function=None).delete(ids=["chunk-5"])

    monkeypatch.setattr(projection, "_write_files", lossy)
    with pytest.raises(ContractError, match="holds 299 vectors, 300 were written"):
        write()


def test_a_seal_that_counts_otherwise_is_refused(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "chroma" / "seal.json"
    write()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_vectors": 299}))
    with pytest.raises(ContractError, match="holds 300 vectors, its seal says 299"):
        with open_projection(tmp_path / "chroma"):
            pass


def test_texts_are_refused_before_anything_is_downloaded(write: Write, tmp_path: Path) -> None:
    """The fixture `no_network` fails the test at the first connection."""
    write()
    with open_projection(tmp_path / "chroma") as opened:
        for ask in (
            lambda: opened.collection.query(query_texts=["lamp"]),
            lambda: opened.collection.upsert(ids=["x"], documents=["a lamp"]),
        ):
            with pytest.raises(UserError, match="takes vectors, not texts"):
                ask()


def test_a_stranger_that_opens_the_files_downloads_nothing(write: Write, tmp_path: Path) -> None:
    """Chroma's default function does not match the stored one, and a client without any finds the stored
    one."""
    write()
    with chroma_client(tmp_path / "chroma" / "chroma") as client:
        with pytest.raises((ValueError, UserError)):
            client.get_collection(COLLECTION).query(query_texts=["lamp"])
        with pytest.raises(UserError, match="takes vectors, not texts"):
            client.get_collection(COLLECTION, embedding_function=None).query(query_texts=["lamp"])


def test_equally_near_vectors_count_as_each_other(write: Write, vectors: Vectors, tmp_path: Path) -> None:
    """Twenty-one equal vectors: any ten of them are the ten nearest."""
    write()
    with open_projection(tmp_path / "chroma") as opened:
        assert recall_against_exact(opened, vectors, vectors.vectors_NxD[[205]]) == 1


def test_batches_stay_below_chromas_limit(tmp_path: Path) -> None:
    with chroma_client(tmp_path) as client:
        assert client.get_max_batch_size() >= projection.VECTORS_PER_BATCH
    assert chromadb.__version__.startswith("1.5.")


def test_fewer_vectors_than_neighbors(write: Write, vectors: Vectors, queries: np.ndarray) -> None:
    three = Vectors(vectors.ids[:3], vectors.vectors_NxD[:3], vectors.metadatas[:3])
    seal = write(vectors=three, queries_QxD=queries[:0])
    assert (seal.num_vectors, seal.recall_at_10_vs_exact, seal.num_recall_queries) == (3, 1, 3)

"""The vectors as a Chroma collection: a projection of the store, which can always be rebuilt from it.

Chroma 1.5.9 is handled as what was measured, not as what is documented:

* Two writers lose a fifth of the vectors without any error. So there is one writer, held by a lock.
* A killed writer leaves up to one batch more than was acknowledged. So an index without a seal is thrown
  away.
* Its files cannot be opened for reading only, and two builds of equal vectors differ in bytes. So readers
  open a copy, and the seal names the vectors and settings, not the files.
* On hard data its recall can be far below what one expects (.16 of random vectors with the default
  settings). So recall is measured against exact search before the seal is set.
* A collection without an embedding function falls back to one that downloads a model. So ours has one that
  refuses.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import chromadb
import numpy as np

from stages.runtime.errors import ContractError, RetryableError, UserError
from stages.vector_store.collection import (
    COLLECTION,
    OpenedCollection,
    VectorsOnly,
    chroma_client,
    opened_copy,
)

SPACE = "cosine"
FILES_FOLDER, SEAL_FILE = "chroma", "seal.json"
VECTORS_PER_BATCH = 2048
"""Chroma takes at most 5,461 at once; smaller batches let progress and stop requests through."""
MOST_ATTEMPTS = 3
NEIGHBORS = 10
FEWEST_QUERIES = 200
SAMPLED_VECTORS = 500
QUERIES_AT_ONCE = 64
_TIE = 1e-5


@dataclass(frozen=True)
class HnswSettings:
    """Chroma's graph index (Malkov and Yashunin 2018, arXiv:1603.09320).

    On 59,000 chunks of English and Chinese Chroma's own defaults (100, 100, 16) find .957 of the nearest ten,
    twice the ef_search .968, twice the ef_construction, too, .990, for 1.7 times the time.
    """

    ef_construction: int = 200
    ef_search: int = 200
    max_neighbors: int = 16

    def raised(self) -> HnswSettings:
        """Twice of everything: slower, bigger, and closer to exact search."""
        return HnswSettings(self.ef_construction * 2, self.ef_search * 2, self.max_neighbors * 2)


@dataclass(frozen=True)
class Quality:
    """What a search in the index misses."""

    recall: float
    """Share of the 10 exact nearest of a question that it finds."""
    found: float
    """Share of sampled vectors that it finds by themselves."""

    def suffices(self, minimum: float) -> bool:
        """Neither share is below the minimum."""
        return min(self.recall, self.found) >= minimum


@dataclass(frozen=True)
class Seal:
    """What a finished projection was made of and how good it is."""

    vectors_sha256: str
    num_vectors: int
    dimensions: int
    recall_at_10_vs_exact: float
    found_by_own_vector: float
    num_recall_queries: int
    space: str
    hnsw: dict[str, int]
    chromadb_version: str

    @classmethod
    def read(cls, folder: Path) -> Seal:
        """Raises UserError when the projection has no seal: its writer was interrupted."""
        path = folder / SEAL_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {SEAL_FILE}: it was not written to the end", hint=_rebuild(folder)
            )
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        """In one step: the seal is there whole or not at all."""
        partial = folder / f"{SEAL_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / SEAL_FILE)


@dataclass(frozen=True)
class Vectors:
    """What is projected: an id, a unit vector and a few fields per chunk, row by row."""

    ids: Sequence[str]
    vectors_NxD: np.ndarray
    metadatas: Sequence[dict[str, str | int]]

    def sha256(self) -> str:
        """Digest of ids and vectors, in order."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        digest.update(np.ascontiguousarray(self.vectors_NxD, dtype=np.float32).data)
        return digest.hexdigest()


@contextmanager
def open_projection(folder: Path) -> Iterator[OpenedCollection]:
    """Open a sealed projection for reading, through a copy in a temporary folder.

    Chroma writes when it opens, and keeps one system per path and process that would go on showing an old
    state.

    Raises:
        UserError: there is no seal.
        ContractError: the collection does not hold as many vectors as the seal says.
    """
    seal = Seal.read(folder)
    with opened_copy(folder / FILES_FOLDER) as opened:
        if len(opened) != seal.num_vectors:
            raise ContractError(
                f"{folder} holds {len(opened)} vectors, its seal says {seal.num_vectors}",
                hint=_rebuild(folder),
            )
        yield opened


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` itself, which the kernel frees when its holder dies.

    Raises RetryableError when somebody else has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RetryableError(
            f"another process is writing {folder}; two writers would lose vectors without a word",
            hint="wait for it to end, or choose another folder",
        ) from None


def write_projection(
    vectors: Vectors,
    queries_QxD: np.ndarray,
    folder: Path,
    hnsw: HnswSettings,
    min_recall: float,
    on_progress: Callable[[int, int], None],
) -> Seal:
    """Write, verify and seal; returns at once if a seal for the same vectors is there.

    An index that misses too much is built again with raised settings, three times in all.
    `on_progress(done, total)` may raise to stop: then there is no seal, and the next call starts over.

    Raises:
        ContractError: vectors are missing, or recall stays below `min_recall`.
        RetryableError: another process is writing this folder.
    """
    with only_writer(folder):
        digest = vectors.sha256()
        if (folder / SEAL_FILE).is_file():
            seal = Seal.read(folder)
            if seal.vectors_sha256 == digest and seal.recall_at_10_vs_exact >= min_recall:
                return seal
            (folder / SEAL_FILE).unlink()
        queries_QxD = _enough_queries(queries_QxD, vectors.vectors_NxD)
        for _ in range(MOST_ATTEMPTS):
            _write_files(vectors, folder / FILES_FOLDER, hnsw, on_progress)
            quality = _verify(vectors, queries_QxD, folder / FILES_FOLDER)
            if quality.suffices(min_recall):
                return _seal(vectors, digest, quality, len(queries_QxD), hnsw, folder)
            hnsw = hnsw.raised()
    raise ContractError(
        f"after {MOST_ATTEMPTS} builds Chroma finds {quality.recall:.3f} of the {NEIGHBORS} nearest vectors, "
        f"and {quality.found:.3f} of single ones; expected {min_recall:.3f}",
        hint="raise hnsw_ef_construction and hnsw_ef_search, or lower min_recall_at_10, in [vector_store]",
    )


def _seal(
    vectors: Vectors, digest: str, quality: Quality, num_queries: int, hnsw: HnswSettings, folder: Path
) -> Seal:
    seal = Seal(
        vectors_sha256=digest,
        num_vectors=len(vectors.ids),
        dimensions=vectors.vectors_NxD.shape[1],
        recall_at_10_vs_exact=round(quality.recall, 6),
        found_by_own_vector=round(quality.found, 6),
        num_recall_queries=num_queries,
        space=SPACE,
        hnsw=asdict(hnsw),
        chromadb_version=chromadb.__version__,
    )
    seal.write(folder)
    return seal


def _write_files(
    vectors: Vectors, files: Path, hnsw: HnswSettings, on_progress: Callable[[int, int], None]
) -> None:
    shutil.rmtree(files, ignore_errors=True)  # whatever an interrupted writer left
    files.mkdir(parents=True)
    total = len(vectors.ids)
    with chroma_client(files) as client:
        collection = client.create_collection(
            COLLECTION,
            configuration={"hnsw": {"space": SPACE, **asdict(hnsw)}},
            embedding_function=VectorsOnly(),
        )
        step = min(VECTORS_PER_BATCH, client.get_max_batch_size())
        for first in range(0, total, step):
            rows = slice(first, first + step)
            # upsert: `add` would keep an old vector under the same id without saying so.
            collection.upsert(
                ids=list(vectors.ids[rows]),
                embeddings=vectors.vectors_NxD[rows],
                metadatas=list(vectors.metadatas[rows]),
            )
            on_progress(min(first + step, total), total)


def _verify(vectors: Vectors, queries_QxD: np.ndarray, files: Path) -> Quality:
    """Count what is there, then ask: for a sample of the vectors themselves, and for the neighbours of
    questions.

    On a fresh copy, as readers see it. The graph alone misses one vector in some hundreds; two writers had
    lost every fifth.
    """
    total = len(vectors.ids)
    with opened_copy(files) as opened:
        if len(opened) != total:
            raise ContractError(
                f"{files} holds {len(opened)} vectors, {total} were written", hint="build again"
            )
        sample = np.linspace(0, total - 1, min(total, SAMPLED_VECTORS)).astype(int)
        found = recall_against_exact(opened, vectors, vectors.vectors_NxD[sample], 1)
        return Quality(recall_against_exact(opened, vectors, queries_QxD), found)


def recall_against_exact(
    opened: OpenedCollection, vectors: Vectors, queries_QxD: np.ndarray, k: int = NEIGHBORS
) -> float:
    """Share of the k exact nearest that Chroma finds. Equally near ones count as each other."""
    k = min(k, len(vectors.ids))
    row_of = {chunk_id: row for row, chunk_id in enumerate(vectors.ids)}
    found = 0
    for first in range(0, len(queries_QxD), QUERIES_AT_ONCE):
        some_QxD = queries_QxD[first : first + QUERIES_AT_ONCE]
        scores_QxN = some_QxD @ vectors.vectors_NxD.T
        kth_Q = np.partition(scores_QxN, -k, axis=1)[:, -k]
        for ids, scores_N, kth in zip(opened.query(some_QxD, k), scores_QxN, kth_Q, strict=True):
            found += sum(bool(scores_N[row_of[chunk_id]] >= kth - _TIE) for chunk_id in ids)
    return found / (k * len(queries_QxD))


def _enough_queries(queries_QxD: np.ndarray, vectors_NxD: np.ndarray) -> np.ndarray:
    """Real questions first; where there are few, some of the vectors themselves are asked for, too."""
    missing = min(len(vectors_NxD), max(0, FEWEST_QUERIES - len(queries_QxD)))
    rows = np.linspace(0, len(vectors_NxD) - 1, missing).astype(int)
    return np.concatenate([queries_QxD, vectors_NxD[rows]])


def _rebuild(folder: Path) -> str:
    return f"rebuild it: python -m stages.vector_store.rebuild STORE_FOLDER {folder}"

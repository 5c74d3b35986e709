"""Search a vector store: BM25 and vectors over all chunks, exactly, fused with the weight that the store
ships.

At 20,000 chunks the exact product takes two milliseconds, and nothing has to be trusted but the arrays
themselves. They are memory-mapped: opening a store costs the vocabulary's strings and no more.

Shapes: N chunks, D width of a vector, K hits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from stages.whitebox.bm25 import Bm25Index
from stages.whitebox.fusion import fuse
from stages.whitebox.packed_strings import PackedStrings
from stages.whitebox.static_embedder import StaticEmbedder
from stages.whitebox.tokenizer import Tokenizer

INDEX_FILE = "search_index.safetensors"
VECTORS_FILE = "vectors.safetensors"
EMBEDDER_FILE = "embedder.safetensors"
FUSION_FILE = "fusion.json"
_TEXT_FIELDS = ("chunk_ids", "doc_ids", "titles", "texts", "terms")


@dataclass(frozen=True)
class Hit:
    """A chunk that was found; `score` is 1 for one that is best in both legs."""

    chunk_id: str
    doc_id: str
    title: str
    text: str
    score: float


def save_search_index(
    path: Path,
    bm25: Bm25Index,
    *,
    chunk_ids: Sequence[str],
    doc_ids: Sequence[str],
    titles: Sequence[str],
    texts: Sequence[str],
) -> None:
    """Write what a search needs beside the vectors as plain arrays, one row per chunk in the vectors' order.

    The store's Parquet tables hold the same for everybody else; this copy exists because it can be mapped.
    """
    tensors = {
        "posting_offsets": bm25.offsets_V1,
        "posting_rows": bm25.rows_P,
        "posting_counts": bm25.counts_P,
        "lengths": bm25.lengths_N,
    }
    columns = (chunk_ids, doc_ids, titles, texts, list(bm25.terms))
    for name, strings in zip(_TEXT_FIELDS, columns, strict=True):
        packed = PackedStrings.pack(strings)
        tensors |= {f"{name}_bytes": packed.bytes_B, f"{name}_offsets": packed.offsets_N1}
    save_file(tensors, path)


class HybridIndex:
    """A vector store opened for searching."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        embedder: StaticEmbedder,
        vectors_NxD: np.ndarray,
        bm25: Bm25Index,
        dense_weight: float,
        columns: dict[str, PackedStrings],
    ) -> None:
        self.tokenizer = tokenizer
        self.embedder = embedder
        self.vectors_NxD = vectors_NxD
        self.bm25 = bm25
        self.dense_weight = dense_weight
        self._columns = columns
        if len(vectors_NxD) != len(bm25.lengths_N) or len(vectors_NxD) != len(columns["texts"]):
            raise ValueError(
                f"{len(vectors_NxD)} vectors, {len(bm25.lengths_N)} indexed chunks, {len(columns['texts'])} "
                "texts: the files of this vector store do not belong together"
            )

    @classmethod
    def from_folder(cls, store_folder: Path) -> HybridIndex:
        """Open the part `store` of a vector_store artifact. Raises ValueError when a file is missing."""
        folder = Path(store_folder)
        for name in (INDEX_FILE, VECTORS_FILE, EMBEDDER_FILE, FUSION_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder / name} is missing: expected the part `store` of a vector_store artifact"
                )
        fusion = json.loads((folder / FUSION_FILE).read_text(encoding="utf-8"))
        index = _mapped(folder / INDEX_FILE)
        columns = {n: PackedStrings(index[f"{n}_bytes"], index[f"{n}_offsets"]) for n in _TEXT_FIELDS}
        bm25 = Bm25Index(
            {term: number for number, term in enumerate(columns["terms"])},
            index["posting_offsets"],
            index["posting_rows"],
            index["posting_counts"],
            index["lengths"],
            k1=fusion["bm25"]["k1"],
            b=fusion["bm25"]["b"],
        )
        vectors_NxD = _mapped(folder / VECTORS_FILE)["vectors"]
        embedder = StaticEmbedder.load(folder / EMBEDDER_FILE)
        tokenizer = Tokenizer.from_folder(folder)
        return cls(tokenizer, embedder, vectors_NxD, bm25, fusion["dense_weight"], columns)

    def __len__(self) -> int:
        return len(self.vectors_NxD)

    def embed(self, queries: Sequence[str]) -> np.ndarray:
        """Unit vectors of the queries, [len(queries), D], comparable with the stored ones."""
        return self.embedder.embed(self.tokenizer.encode_batch(list(queries)))

    def scores(self, query: str) -> np.ndarray:
        """Fused score of every chunk, 0..1: scores_N."""
        vectors_NxD, query_D = torch.from_numpy(self.vectors_NxD), torch.from_numpy(self.embed([query])[0])
        dense_N = (vectors_NxD @ query_D).numpy()
        return fuse(dense_N, self.bm25.scores(query), self.dense_weight)

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The k best chunks, best first; fewer where fewer have anything in common with the query.

        Equal scores keep the order of the documents, so that a search is repeatable.
        """
        if k < 1 or not query.strip() or not len(self):
            return []
        scores_N = self.scores(query)
        return [
            self._hit(int(row), float(scores_N[row])) for row in best_rows(scores_N, k) if scores_N[row] > 0
        ]

    def _hit(self, row: int, score: float) -> Hit:
        columns = self._columns
        return Hit(
            columns["chunk_ids"][row],
            columns["doc_ids"][row],
            columns["titles"][row],
            columns["texts"][row],
            score,
        )


def best_rows(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k highest scores, highest first, equal ones in their order; all rows where k is too
    large."""
    if k < len(scores_N):
        kth = np.partition(scores_N, -k)[-k]
        rows = np.flatnonzero(scores_N >= kth)
    else:
        rows = np.arange(len(scores_N))
    return rows[np.argsort(-scores_N[rows], kind="stable")][:k]


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file, mapped and not read: torch maps where safetensors' numpy would
    copy."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118  not a dict

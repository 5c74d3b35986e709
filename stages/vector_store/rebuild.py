"""Make the Chroma projection from a store: `python -m stages.vector_store.rebuild STORE_FOLDER
OUT_FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.runtime.errors import GlassworksError, UserError
from stages.vector_store.projection import HnswSettings, Seal, Vectors, write_projection
from stages.whitebox.search import HybridIndex

DEFAULT_MIN_RECALL = 0.98


def rebuild_projection(
    store_folder: Path,
    out_folder: Path,
    hnsw: HnswSettings | None = None,
    min_recall: float = DEFAULT_MIN_RECALL,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Seal:
    """Write, verify and seal the projection of the store in `store_folder` (the part `store`).

    Recall is measured with the store's own held-out questions. Raises UserError when `store_folder` is no
    store, else as `write_projection`.
    """
    try:
        index = HybridIndex.from_folder(store_folder)
    except ValueError as error:
        raise UserError(str(error), hint="pass the folder `store` of a vector_store artifact") from error
    columns = ["chunk_id", "doc_id", "ordinal", "title"]
    rows = _columns(store_folder / "chunks.parquet", columns).to_pylist()
    questions = _columns(store_folder / "qrels.parquet", ["query"])["query"].unique().to_pylist()
    vectors = Vectors(
        ids=[row.pop("chunk_id") for row in rows], vectors_NxD=index.vectors_NxD, metadatas=rows
    )
    queries_QxD = index.embed(questions)
    return write_projection(vectors, queries_QxD, out_folder, hnsw or HnswSettings(), min_recall, on_progress)


def _columns(path: Path, columns: Sequence[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=list(columns))


def main() -> None:
    """Entry of `python -m stages.vector_store.rebuild`."""
    parser = argparse.ArgumentParser(prog="python -m stages.vector_store.rebuild", description=__doc__)
    parser.add_argument("store_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    options = parser.parse_args()
    try:
        seal = rebuild_projection(options.store_folder, options.out_folder)
    except GlassworksError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{seal.num_vectors:,} vectors, recall@10 against exact search {seal.recall_at_10_vs_exact:.4f}")


if __name__ == "__main__":
    main()

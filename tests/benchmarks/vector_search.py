"""How fast the nearest vectors are found: exactly (NumPy, torch) and by Chroma, and what Chroma misses.

    python tests/benchmarks/vector_search.py [--store FOLDER] [--vectors 5000 20000 100000] [--queries 200]

With `--store` (the part `store` of a vector_store artifact) its real vectors and questions are measured,
else synthetic ones: points around a thousand centres in few dimensions, as text vectors lie. Prints a
Markdown table. Run by hand: timings are not tests.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from stages.vector_store.projection import HnswSettings, Vectors, open_projection, write_projection
from stages.whitebox.search import HybridIndex

NEIGHBORS, DIMENSIONS, RANK, CENTRES = 10, 256, 48, 1000
Search = Callable[[np.ndarray], list[str]]


def synthetic(count: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries around the same centres, of rank 48 in 256 dimensions."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(RANK, DIMENSIONS))
    centres = rng.normal(size=(CENTRES, RANK))
    near = centres[rng.integers(CENTRES, size=count + num_queries)]
    rows = (near + 0.6 * rng.normal(size=near.shape)) @ basis
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return rows[:count], rows[count:]


def of_store(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of a store and those of its held-out questions."""
    index = HybridIndex.from_folder(folder)
    questions = pq.ParquetFile(folder / "qrels.parquet").read(["query"])["query"].unique().to_pylist()
    return np.array(index.vectors_NxD), index.embed(questions)


def exact_numpy(vectors: np.ndarray) -> Search:
    def search(query: np.ndarray) -> list[str]:
        scores = vectors @ query
        best = np.argpartition(-scores, NEIGHBORS)[:NEIGHBORS]
        return [str(row) for row in best]

    return search


def exact_torch(vectors: np.ndarray, dtype: torch.dtype = torch.float32) -> Search:
    table = torch.from_numpy(vectors).to(dtype)

    def search(query: np.ndarray) -> list[str]:
        best = torch.topk(table @ torch.from_numpy(query).to(dtype), NEIGHBORS).indices
        return [str(row) for row in best.tolist()]

    return search


@contextmanager
def chroma(vectors: np.ndarray, queries: np.ndarray, hnsw: HnswSettings) -> Iterator[tuple[Search, str]]:
    """Write and seal, then search in the opened copy; yields what building cost, too."""
    ids = [str(row) for row in range(len(vectors))]
    what = Vectors(ids, vectors, [{"row": row} for row in range(len(vectors))])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_projection(what, queries, Path(folder), hnsw, 0.0, lambda done, total: None)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        with open_projection(Path(folder)) as opened:
            yield lambda query: opened.query(query[None], NEIGHBORS)[0], f"{seconds:.1f} | {size / 1e6:.0f}"


def measure(name: str, search: Search, queries: np.ndarray, truth: list[set[str]], cost: str) -> None:
    """Ask every query once, one at a time, and print a row of the table."""
    search(queries[0])
    milliseconds, found = [], 0
    for query, nearest in zip(queries, truth, strict=True):
        start = time.perf_counter()
        hits = search(query)
        milliseconds.append((time.perf_counter() - start) * 1e3)
        found += len(nearest & set(hits))
    p50, p95 = (statistics.quantiles(milliseconds, n=20)[place] for place in (9, 18))
    print(f"| {name} | {cost} | {p50:.2f} | {p95:.2f} | {found / NEIGHBORS / len(queries):.3f} |", flush=True)


def compare(vectors: np.ndarray, queries: np.ndarray) -> None:
    """All engines on the same vectors."""
    print(f"\n{len(vectors):,} vectors of {vectors.shape[1]} dimensions, {len(queries)} queries\n")
    print("| engine | build and verify s | MB | p50 ms | p95 ms | recall@10 |\n|---|---|---|---|---|---|")
    exact = exact_numpy(vectors)
    truth = [set(exact(query)) for query in queries]
    raw = f"0.0 | {vectors.nbytes / 1e6:.0f}"
    measure("exact, NumPy", exact, queries, truth, raw)
    measure("exact, torch float32", exact_torch(vectors), queries, truth, raw)
    measure("exact, torch bfloat16", exact_torch(vectors, torch.bfloat16), queries, truth, raw)
    for name, hnsw in (("Chroma's defaults", HnswSettings(100, 100, 16)), ("ours", HnswSettings())):
        with chroma(vectors, queries, hnsw) as (search, cost):
            settings = f"{hnsw.ef_construction}, {hnsw.ef_search}, {hnsw.max_neighbors}"
            measure(f"Chroma, {name} ({settings})", search, queries, truth, cost)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path)
    parser.add_argument("--vectors", type=int, nargs="+", default=[5_000, 20_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} thread(s) for torch")
    if options.store:
        compare(*of_store(options.store))
    else:
        for count in options.vectors:
            compare(*synthetic(count, options.queries))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()

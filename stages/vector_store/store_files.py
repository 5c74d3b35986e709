"""Write the truth: chunks, postings and relevance judgements as Parquet, vectors and embedder as safetensors.

Equal inputs give equal bytes: fixed settings, fixed order, rounded numbers in JSON.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from data_contracts.tables import ROWS_PER_GROUP
from data_contracts.vector_store import CHUNKS_SCHEMA, POSTINGS_SCHEMA, QRELS_SCHEMA, VECTOR_STORE
from stages.vector_store.corpus import Chunk, Corpus
from stages.vector_store.evaluation import Evaluation
from stages.vector_store.questions import Question
from stages.whitebox.bm25 import Bm25Index
from stages.whitebox.search import FUSION_FILE, INDEX_FILE, VECTORS_FILE, save_search_index
from stages.whitebox.tokenizer import IMPORTED_FILE, MODEL_FILE, ROLES_FILE

POSTINGS_PER_GROUP = 1 << 16


def write_chunks(corpus: Corpus, folder: Path) -> None:
    """chunks.parquet: one row per chunk, in the order of all other files."""
    with _writer(folder / "chunks.parquet", CHUNKS_SCHEMA) as writer:
        for first in range(0, len(corpus.chunks), ROWS_PER_GROUP):
            rows = [_chunk_row(corpus, chunk) for chunk in corpus.chunks[first : first + ROWS_PER_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))


def _chunk_row(corpus: Corpus, chunk: Chunk) -> dict[str, object]:
    document = corpus.documents[chunk.document]
    return {
        "chunk_id": chunk.chunk_id,
        "doc_id": document.doc_id,
        "ordinal": chunk.ordinal,
        "char_start": chunk.start,
        "char_end": chunk.end,
        "heading_path": list(chunk.heading_path),
        "title": document.title,
        "text": corpus.text(chunk),
        "num_tokens": chunk.num_tokens,
    }


def write_search(
    corpus: Corpus, bm25: Bm25Index, vectors_NxD: np.ndarray, tokenizer: Path, folder: Path
) -> None:
    """postings.parquet, vectors.safetensors, the mapped index, and the tokenizer that queries need."""
    df_V = np.diff(bm25.offsets_V1)
    terms = pa.array(list(bm25.terms), pa.string()).take(pa.array(np.repeat(np.arange(len(df_V)), df_V)))
    columns = [terms, pa.array(bm25.rows_P, pa.int32()), pa.array(bm25.counts_P, pa.int32())]
    with _writer(folder / "postings.parquet", POSTINGS_SCHEMA) as writer:
        table = pa.Table.from_arrays(columns, schema=writer.schema)
        writer.write_table(table, row_group_size=POSTINGS_PER_GROUP)
    save_file({"vectors": np.ascontiguousarray(vectors_NxD)}, folder / VECTORS_FILE)
    owners = [corpus.documents[chunk.document] for chunk in corpus.chunks]
    save_search_index(
        folder / INDEX_FILE,
        bm25,
        chunk_ids=[chunk.chunk_id for chunk in corpus.chunks],
        doc_ids=[document.doc_id for document in owners],
        titles=[document.title for document in owners],
        texts=[corpus.text(chunk) for chunk in corpus.chunks],
    )
    learned = (tokenizer / MODEL_FILE).is_file()
    for name in (MODEL_FILE,) if learned else (IMPORTED_FILE, ROLES_FILE):
        shutil.copyfile(tokenizer / name, folder / name)


def write_qrels(corpus: Corpus, questions: Sequence[Question], folder: Path) -> None:
    """qrels.parquet: every chunk of a question's document is a right answer."""
    chunks_of: dict[int, list[Chunk]] = {question.document: [] for question in questions}
    for chunk in corpus.chunks:
        if chunk.document in chunks_of:
            chunks_of[chunk.document].append(chunk)
    rows = [
        {
            "query_id": question.query_id(corpus.documents[question.document].doc_id),
            "query": question.text,
            "chunk_id": chunk.chunk_id,
            "doc_id": corpus.documents[question.document].doc_id,
            "split": question.split,
        }
        for question in questions
        for chunk in chunks_of[question.document]
    ]
    with _writer(folder / "qrels.parquet", QRELS_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema), row_group_size=ROWS_PER_GROUP)


def write_fusion(evaluation: Evaluation, bm25: Bm25Index, folder: Path) -> None:
    """fusion.json: the weight that ships, why, and the numbers that BM25 needs beside its postings."""
    document = {
        "dense_weight": evaluation.choice.dense_weight,
        "reason": evaluation.choice.reason,
        "normalisation": "min-max over all chunks, per query",
        "dev_ndcg_at_10_of_weight": {
            f"{weight:.2f}": round(ndcg, 6) if ndcg == ndcg else None  # noqa: PLR0124  nan: no questions
            for weight, ndcg in evaluation.dev_ndcg_of_weight.items()
        },
        "bm25": {
            "k1": bm25.k1,
            "b": bm25.b,
            "num_chunks": len(bm25.lengths_N),
            "mean_terms_per_chunk": round(float(bm25.lengths_N.mean()), 6),
        },
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (folder / FUSION_FILE).write_text(text + "\n", encoding="utf-8")


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    schema = schema.with_metadata({"contract": VECTOR_STORE.identity})
    return pq.ParquetWriter(path, schema, compression="zstd")

"""Chunks, vectors and postings (the truth), and the Chroma index made from them (a projection)."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, FileRule, JsonRule, TableRule, TensorRule

CHUNKS_SCHEMA = pa.schema(
    {
        "chunk_id": pa.string(),
        "doc_id": pa.string(),
        "ordinal": pa.int32(),
        "char_start": pa.int64(),
        "char_end": pa.int64(),
        "heading_path": pa.list_(pa.string()),
        "title": pa.string(),
        "text": pa.large_string(),
        "num_tokens": pa.int32(),
    }
)
POSTINGS_SCHEMA = pa.schema({"term": pa.string(), "row": pa.int32(), "count": pa.int32()})
QRELS_SCHEMA = pa.schema(
    {
        "query_id": pa.string(),
        "query": pa.string(),
        "chunk_id": pa.string(),
        "doc_id": pa.string(),
        "split": pa.string(),
    }
)

# The chunks and postings once more, as plain arrays that can be mapped: what a search opens.
_SEARCH_INDEX = {
    "posting_offsets": ("I64",),
    "posting_rows": ("I32",),
    "posting_counts": ("I32",),
    "lengths": ("I32",),
    **{f"{name}_bytes": ("U8",) for name in ("chunk_ids", "doc_ids", "titles", "texts", "terms")},
    **{f"{name}_offsets": ("I64",) for name in ("chunk_ids", "doc_ids", "titles", "texts", "terms")},
}

VECTOR_STORE = Contract(
    name="vector_store",
    version=2,
    summary="chunks with exact offsets, their vectors, BM25 postings, the embedder and the fusion weight",
    rules=(
        TableRule(pattern="chunks.parquet", schema=CHUNKS_SCHEMA, unique="chunk_id"),
        TableRule(pattern="postings.parquet", schema=POSTINGS_SCHEMA),
        TableRule(pattern="qrels.parquet", schema=QRELS_SCHEMA, allowed={"split": ("dev", "test")}),
        TensorRule("vectors.safetensors", tensors={"vectors": ("F32",)}),
        TensorRule("embedder.safetensors", tensors={"token_vectors": ("F32",), "token_weights": ("F32",)}),
        TensorRule("search_index.safetensors", tensors=_SEARCH_INDEX),
        JsonRule("fusion.json", keys=("dense_weight", "bm25")),
        FileRule("tokenizer.*"),  # .model, or .json of an imported one
    ),
)

CHROMA_PROJECTION = Contract(
    name="chroma_projection",
    version=1,
    summary="an embedded Chroma collection of the vectors, verified and sealed; can be rebuilt",
    rules=(
        FileRule("chroma/chroma.sqlite3"),
        JsonRule("seal.json", keys=("vectors_sha256", "num_vectors", "dimensions", "recall_at_10_vs_exact")),
    ),
)

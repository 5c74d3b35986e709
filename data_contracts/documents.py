"""Documents: cleaned text for pretraining and retrieval, and the record of what was left out."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

SPLITS = ("train", "validation")

#: licence: "" where nobody told. origin: the URL that its row names, else file or URL that it was read from.
#: byte_start, byte_end: its place in the file (uncompressed), null where it has none, as a row of Parquet.
DOCUMENTS = Contract(
    name="documents",
    version=2,
    summary="cleaned, deduplicated, decontaminated text with its train/validation split",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "doc_id": pa.string(),
                    "source": pa.string(),
                    "title": pa.string(),
                    "kind": pa.string(),
                    "language": pa.string(),
                    "split": pa.string(),
                    "licence": pa.string(),
                    "origin": pa.string(),
                    "byte_start": pa.int64(),
                    "byte_end": pa.int64(),
                    "num_bytes": pa.int64(),
                    "text": pa.large_string(),
                }
            ),
            unique="doc_id",
            allowed={"split": SPLITS},
        ),
    ),
)

#: licence, origin: as in the documents.
REJECTS = Contract(
    name="rejects",
    version=2,
    summary="every document and record that was dropped, with the step and the reason",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "doc_id": pa.string(),
                    "source": pa.string(),
                    "title": pa.string(),
                    "licence": pa.string(),
                    "origin": pa.string(),
                    "step": pa.string(),
                    "reason": pa.string(),
                    "detail": pa.string(),
                    "num_bytes": pa.int64(),
                    "preview": pa.string(),
                }
            ),
        ),
    ),
)

FUNNEL = Contract(
    name="funnel",
    version=1,
    summary="documents and bytes before and after each step, in order",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "position": pa.int32(),
                    "step": pa.string(),
                    "documents_in": pa.int64(),
                    "documents_out": pa.int64(),
                    "bytes_in": pa.int64(),
                    "bytes_out": pa.int64(),
                }
            ),
            unique="position",
        ),
    ),
)

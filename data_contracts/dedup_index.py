"""What a build kept, in the form in which later builds find it again: hashes and MinHash signatures."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, TableRule

NUM_HASHES = 112

DEDUP_INDEX = Contract(
    name="dedup_index",
    version=1,
    summary="id, split key, text hash and MinHash signature of every document that a build kept",
    rules=(
        TableRule(
            schema=pa.schema(
                {
                    "doc_id": pa.string(),
                    "source": pa.string(),
                    "split_key": pa.string(),
                    "text_hash": pa.binary(16),
                    "signature": pa.list_(pa.field("item", pa.uint32(), nullable=False), NUM_HASHES),
                }
            ),
        ),
    ),
)

"""The tokenizer in SentencePiece's and in Hugging Face's form, with identical ids."""

from __future__ import annotations

import pyarrow as pa

from data_contracts.contract import Contract, FileRule, JsonRule, TableRule

COMPRESSION_SCHEMA = pa.schema(
    {
        "language": pa.string(),
        "num_documents": pa.int64(),
        "num_bytes": pa.int64(),
        "num_tokens": pa.int64(),
        "bytes_per_token": pa.float64(),
        "byte_fallback_fraction": pa.float64(),
    }
)

TOKENIZER_BUNDLE = Contract(
    name="tokenizer_bundle",
    version=1,
    summary="SentencePiece model, readable vocabulary, tokenizer.json, chat template, bytes per token",
    rules=(
        FileRule("tokenizer.model"),
        FileRule("tokenizer.vocab"),
        JsonRule("tokenizer.json", keys=("model", "added_tokens", "decoder")),
        JsonRule("tokenizer_config.json", keys=("chat_template", "eos_token", "bos_token")),
        FileRule("chat_template.jinja"),
        TableRule(pattern="compression.parquet", schema=COMPRESSION_SCHEMA),
    ),
)

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

QUALITY_SCHEMA = pa.schema(
    {
        "language": pa.string(),
        "source": pa.string(),
        "num_documents": pa.int64(),
        "num_bytes": pa.int64(),
        "num_words": pa.int64(),
        "num_tokens": pa.int64(),
        "num_byte_tokens": pa.int64(),
        "bytes_per_token": pa.float64(),
        "tokens_per_word": pa.float64(),
        "byte_fallback_fraction": pa.float64(),
    }
)
IDLE_SCHEMA = pa.schema({"id": pa.int32(), "piece": pa.string(), "kind": pa.string()})

#: An imported vocabulary has no tokenizer.model; an extended one carries the model that it was made of.
TOKENIZER_BUNDLE = Contract(
    name="tokenizer_bundle",
    version=2,
    summary="SentencePiece model, readable vocabulary, tokenizer.json, chat template, bytes per token",
    rules=(
        FileRule("tokenizer.model", minimum=0),
        FileRule("base.model", minimum=0),
        FileRule("vocab.txt"),
        JsonRule("tokenizer.json", keys=("model", "added_tokens", "decoder")),
        JsonRule("tokenizer_config.json", keys=("chat_template", "eos_token", "bos_token")),
        FileRule("chat_template.jinja"),
        JsonRule("special_tokens_map.json", keys=("bos_token", "eos_token", "pad_token")),
        TableRule(pattern="compression.parquet", schema=COMPRESSION_SCHEMA),
        TableRule(pattern="quality.parquet", schema=QUALITY_SCHEMA),
        TableRule(pattern="idle_pieces.parquet", schema=IDLE_SCHEMA),
    ),
)

"""Documents as token ids: one long array per shard, with the offset of every document."""

from __future__ import annotations

from data_contracts.contract import Contract, TensorRule

_TENSORS = {"tokens": ("U16", "U32"), "doc_offsets": ("I64",), "doc_num_bytes": ("I64",)}
_METADATA = ("contract", "vocab_size", "tokenizer_sha256", "split")

TOKEN_SHARDS = Contract(
    name="token_shards",
    version=1,
    summary="tokens [N], doc_offsets [D+1], doc_num_bytes [D]; each document is BOS, its ids, EOS",
    rules=(
        TensorRule("train-*.safetensors", tensors=_TENSORS, metadata=_METADATA),
        TensorRule("validation-*.safetensors", tensors=_TENSORS, metadata=_METADATA),
    ),
)

"""Model weights that open in transformers, vLLM and llama.cpp as they are."""

from __future__ import annotations

from data_contracts.contract import Contract, FileRule, JsonRule, TensorRule

CONFIG_KEYS = (
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)

#: A model with an imported vocabulary has no tokenizer.model.
CHECKPOINT = Contract(
    name="checkpoint",
    version=2,
    summary="model.safetensors and config.json under Hugging Face's names, with the tokenizer beside them",
    rules=(
        TensorRule("model.safetensors", tensors={"model.embed_tokens.weight": (), "model.norm.weight": ()}),
        JsonRule("config.json", keys=CONFIG_KEYS),
        JsonRule("generation_config.json", keys=("eos_token_id",)),
        JsonRule("tokenizer.json", keys=("model",)),
        FileRule("tokenizer.model", minimum=0),
        JsonRule("tokenizer_config.json", keys=("chat_template",)),
    ),
)

BATCH_PREVIEW = Contract(
    name="batch_preview",
    version=1,
    summary="the first training batch: ids, labels (-100 = masked) and which conversation each token is of",
    rules=(TensorRule("preview.safetensors", tensors={"ids": (), "labels": (), "document_ids": ()}),),
)

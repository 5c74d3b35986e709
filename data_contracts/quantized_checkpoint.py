"""Quantized weights in the layout of the compressed-tensors format."""

from __future__ import annotations

from data_contracts.checkpoint import CONFIG_KEYS
from data_contracts.contract import Contract, FileRule, JsonRule, TensorRule

#: A model with an imported vocabulary has no tokenizer.model.
QUANTIZED_CHECKPOINT = Contract(
    name="quantized_checkpoint",
    version=2,
    summary="packed integer weights with their scales, config.json with quantization_config",
    rules=(
        TensorRule("model.safetensors", tensors={"model.norm.weight": ()}),
        JsonRule("config.json", keys=(*CONFIG_KEYS, "quantization_config")),
        JsonRule("generation_config.json", keys=("eos_token_id",)),
        JsonRule("tokenizer.json", keys=("model",)),
        FileRule("tokenizer.model", minimum=0),
        JsonRule("tokenizer_config.json", keys=("chat_template",)),
    ),
)

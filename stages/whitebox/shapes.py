"""Sizes of known models by name, to train one of the same shape.

The vocabulary and the context are those of the run. tests/whitebox/test_shapes.py builds each in transformers
too and compares parameters and floating-point operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.whitebox.config import ModelConfig

_QWEN2 = {"qk_norm": False, "attention_bias": True}
_LLAMA = {"qk_norm": False}
_MINIMIND = {"rope_theta": 1e6}


@dataclass(frozen=True)
class Shape:
    """A known model: its sizes, and what it was published with."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    """Of the published model."""
    context_tokens: int
    """That it was trained with."""
    tied: bool
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, vocab_size: int | None = None, context_tokens: int | None = None) -> ModelConfig:
        """The shape with another vocabulary and context, or with its own."""
        return ModelConfig(
            vocab_size=vocab_size or self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=context_tokens or self.context_tokens,
            tie_word_embeddings=self.tied,
            **self.options,
        )


def _tiny_llm(width: int, feed_forward: int, layers: int, heads: int, context: int) -> Shape:
    """tiny-llm-zh: as many key/value heads as query heads, biases on q, k and v, ChatGLM3's vocabulary."""
    return Shape(
        width, feed_forward, layers, heads, heads, width // heads, 64_798, context, tied=False, options=_QWEN2
    )


SHAPES = {
    "tiny-llm-zh-16m": _tiny_llm(120, 384, 6, 6, 512),
    "tiny-llm-zh-42m": _tiny_llm(288, 768, 6, 6, 512),
    # 1,408 as in its scripts: the README's 1,024 would be 87M.
    "tiny-llm-zh-92m": _tiny_llm(512, 1408, 8, 8, 1024),
    "tiny-llm-zh-210m": _tiny_llm(768, 2048, 16, 12, 1024),
    "tiny-llm-zh-440m": _tiny_llm(1024, 2816, 24, 16, 1024),
    "tiny-llm-zh-1.5b": _tiny_llm(2048, 5504, 24, 16, 1024),
    "tinyllama3": Shape(288, 768, 8, 8, 4, 36, 4096, 256, tied=True, options=_LLAMA),
    "minimind-64m": Shape(768, 2432, 8, 8, 4, 96, 6400, 512, tied=True, options=_MINIMIND),
    "minimind-moe": Shape(
        768,
        2432,
        8,
        8,
        4,
        96,
        6400,
        512,
        tied=True,
        options={
            **_MINIMIND,
            "num_experts": 4,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 2432,
            "router_aux_loss_coef": 5e-4,
        },
    ),
    # GPT-2's size in today's form: a gated layer of 2,048 has the parameters of its plain one of 3,072.
    "gpt2-124m": Shape(768, 2048, 12, 12, 12, 64, 50_257, 1024, tied=True, options=_LLAMA),
    "qwen2-0.5b": Shape(
        896, 4864, 24, 14, 2, 64, 151_936, 32_768, tied=True, options={**_QWEN2, "rope_theta": 1e6}
    ),
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151_936, 40_960, tied=True, options={"rope_theta": 1e6}),
}

"""Shapes of published small models, as our decoder computes them: biases and other norms left out."""

from __future__ import annotations

from stages.whitebox.config import ModelConfig


def shapes(vocab_size: int) -> dict[str, ModelConfig]:
    """Name -> shape, the smallest first; those of the `depth` dial have `vocab_size` tokens."""
    dial = {
        f"depth {d}": ModelConfig.from_depth(d, vocab_size, 256 if d < 8 else 1024) for d in (1, 2, 3, 4, 6)
    }
    dial |= {f"depth {d}, 16k": ModelConfig.from_depth(d, 16_384, 1024) for d in (8, 12, 16, 20)}
    found = {**dial, **_published()}
    return dict(sorted(found.items(), key=lambda item: item[1].num_params()))


def _published() -> dict[str, ModelConfig]:
    return {
        "TinyLlama3": _llama(4_096, 288, 768, 8, 8, 256, key_value_heads=4, tied=True),
        "tiny-llm-zh 16M": _llama(64_798, 120, 384, 6, 6, 512),
        "tiny-llm-zh 42M": _llama(64_798, 288, 768, 6, 6, 512),
        "tiny-llm-zh 92M": _llama(64_798, 512, 1_408, 8, 8, 1_024),
        "tiny-llm-zh 210M": _llama(64_798, 768, 2_048, 16, 12, 1_024),
        "tiny-llm-zh 440M": _llama(64_798, 1_024, 2_816, 24, 16, 1_024),
        "tiny-llm-zh 1.5B": _llama(64_798, 2_048, 5_504, 24, 16, 1_024),
        "minimind 64M": _llama(6_400, 768, 2_432, 8, 8, 2_048, key_value_heads=4, tied=True),
        "GPT-2 124M": _llama(50_257, 768, 2_048, 12, 12, 1_024, tied=True),
        "Qwen2 0.5B": _llama(151_936, 896, 4_864, 24, 14, 1_024, key_value_heads=2, tied=True),
        "Qwen3 0.6B": _llama(
            151_936, 1_024, 3_072, 28, 16, 1_024, key_value_heads=8, tied=True, head_dim=128
        ),
    }


def _llama(
    vocab_size: int,
    width: int,
    feed_forward: int,
    layers: int,
    heads: int,
    context: int,
    *,
    key_value_heads: int | None = None,
    tied: bool = False,
    head_dim: int | None = None,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        head_dim=head_dim or width // heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        qk_norm=False,
    )

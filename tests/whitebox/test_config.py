"""The dial, the counts, and the way through `config.json` and back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM


@pytest.mark.parametrize(
    ("depth", "hidden", "heads", "key_value_heads", "feed_forward"),
    [
        (1, 64, 1, 1, 256),
        (2, 128, 2, 1, 512),
        (4, 256, 4, 2, 768),
        (6, 384, 6, 3, 1024),
        (9, 576, 9, 3, 1536),
    ],
)
def test_every_size_follows_from_depth(
    depth: int, hidden: int, heads: int, key_value_heads: int, feed_forward: int
) -> None:
    config = ModelConfig.from_depth(depth, vocab_size=1000)
    assert config.num_hidden_layers == depth
    assert (config.hidden_size, config.num_attention_heads) == (hidden, heads)
    assert (config.num_key_value_heads, config.intermediate_size) == (key_value_heads, feed_forward)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_num_params_is_what_the_model_has(config: ModelConfig, tied: bool, qk_norm: bool) -> None:
    config = replace(config, tie_word_embeddings=tied, qk_norm=qk_norm)
    assert sum(parameter.numel() for parameter in CausalLM(config).parameters()) == config.num_params()


def test_flops_count_every_matrix_six_times_and_attention(config: ModelConfig) -> None:
    per_layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    assert config.flops_per_token(10) == 6 * (2 * per_layer + 61 * 32) + 12 * 2 * 32 * 10


@pytest.mark.parametrize("qk_norm", [True, False])
def test_config_json_comes_back_the_same(config: ModelConfig, qk_norm: bool) -> None:
    config = replace(config, qk_norm=qk_norm, rope_theta=5e5, tie_word_embeddings=False, eos_token_id=7)
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_older_files_that_leave_out_what_follows_are_read(config: ModelConfig) -> None:
    fields = {**config.to_hf(), "eos_token_id": [2, 5]}
    for name in ("rope_parameters", "head_dim", "num_key_value_heads"):
        del fields[name]
    found = ModelConfig.from_hf(fields)
    assert (found.head_dim, found.num_key_value_heads, found.eos_token_id) == (8, 4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn'"),
    ],
)
def test_options_that_would_change_the_numbers_are_refused(
    config: ModelConfig, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({**config.to_hf(), **change})


def test_a_missing_field_is_named(config: ModelConfig) -> None:
    fields = config.to_hf()
    del fields["hidden_size"]
    with pytest.raises(ValueError, match="lacks hidden_size"):
        ModelConfig.from_hf(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "even number"),
    ],
)
def test_impossible_shapes_are_refused(config: ModelConfig, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        ModelConfig.from_depth(0, vocab_size=10)

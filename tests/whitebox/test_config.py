"""The dial, the counts, and the way through `config.json` and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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
    fields = {**replace(config, qk_norm=False).to_hf(), "eos_token_id": [2, 5]}
    for name in ("rope_parameters", "head_dim", "num_key_value_heads"):
        del fields[name]
    found = ModelConfig.from_hf(fields)
    assert (found.head_dim, found.num_key_value_heads, found.eos_token_id) == (8, 4, 2)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "dots1"])
def test_what_a_file_leaves_out_is_what_transformers_takes(kind: str) -> None:
    """The same few fields, everything else left to the reader."""
    transformers = pytest.importorskip("transformers")
    fields = {
        "model_type": kind,
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "use_sliding_window": True,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "n_routed_experts" if kind == "dots1" else "num_experts": 8,
        "n_shared_experts": 1,
    }
    theirs = transformers.AutoConfig.for_model(**fields)
    ours = ModelConfig.from_hf(fields)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_dim, ours.rms_norm_eps, ours.tie_word_embeddings) == (
        head_dim,
        theirs.rms_norm_eps,
        False,
    )
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    windows = [ours.window_of(layer) for layer in range(64)]
    if kind in ("mistral", "qwen3_moe"):
        assert windows == [theirs.sliding_window] * 64
    elif kind != "llama":
        sliding = [name == "sliding_attention" for name in theirs.layer_types]
        assert windows == [theirs.sliding_window if here else None for here in sliding]
    if ours.num_experts:
        assert ours.norm_topk_prob == theirs.norm_topk_prob


HUB: dict[str, tuple[int, int, dict[str, object]]] = {
    # Published: parameters, parameters at work, and the fields of config.json that decide.
    "Llama 3.2 1B": (
        1_235_814_400,
        1_235_814_400,
        {
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "head_dim": 64,
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
            "eos_token_id": [128_001, 128_008, 128_009],
        },
    ),
    "Mistral 7B": (
        7_241_732_096,
        7_241_732_096,
        {
            "model_type": "mistral",
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "sliding_window": 4096,
            "rope_theta": 10_000.0,
        },
    ),
    "Qwen2 0.5B": (
        494_032_768,
        494_032_768,
        {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131_072,
            "max_window_layers": 24,
            "sliding_window": 131_072,
            "use_sliding_window": False,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3 30B-A3B": (
        30_532_122_624,
        3_353_000_000,
        {
            "model_type": "qwen3_moe",
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "max_position_embeddings": 40_960,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_scaling": None,
            "rope_theta": 1e6,
            "sliding_window": None,
            "use_sliding_window": False,
        },
    ),
    "dots.llm1": (
        142_000_000_000,
        14_000_000_000,
        {
            "model_type": "dots1",
            "vocab_size": 152_064,
            "hidden_size": 4096,
            "intermediate_size": 10_944,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rope_scaling": None,
            "rope_theta": 10_000_000,
            "sliding_window": None,
        },
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_models_of_the_hub_have_their_published_parameters(name: str) -> None:
    num_params, num_active_params, fields = HUB[name]
    config = ModelConfig.from_hf(fields)
    assert config.num_params() == pytest.approx(num_params, rel=0 if num_params % 10**6 else 0.01)
    assert config.num_active_params() == pytest.approx(num_active_params, rel=0.03)
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_layers_with_experts_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    fields = {
        **ModelConfig(61, 32, 48, 7, 4, 2, 8, num_experts=4, moe_intermediate_size=16).to_hf(),
        "decoder_sparse_step": 3,
        "mlp_only_layers": [5],
    }
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    theirs = [hasattr(layer.mlp, "experts") for layer in peer.model.layers]
    config = ModelConfig.from_hf(fields)
    assert [config.has_experts(layer) for layer in range(7)] == theirs
    assert theirs == [False, False, True, False, False, False, False]
    assert config.num_params() == sum(parameter.numel() for parameter in peer.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type = 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "linear lacks factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0}, "rope_parameters": None},
            "lacks low_freq_factor",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["chunked_attention"] * 2},
            "chunked",
        ),
        (
            {"model_type": "dots1", "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4},
            "n_group = 4",
        ),
        ({"model_type": "qwen3_moe"}, "lacks num_experts_per_tok"),
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
        ({"sliding_window": 0}, "sliding_window is 0"),
        (
            {"num_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8},
            "expected 1 to num_experts, 2",
        ),
        ({"num_experts": 2}, "moe_intermediate_size is 0"),
        ({"num_experts": 2, "moe_intermediate_size": 8, "qk_norm": False}, "experts need QK-norm"),
        (
            {"num_experts": 2, "moe_intermediate_size": 8, "n_shared_experts": 1},
            'need scoring_func "sigmoid"',
        ),
        ({"num_experts": 2, "moe_intermediate_size": 8, "scoring_func": "sigmoid"}, "needs n_shared_experts"),
        ({"num_experts": 2, "moe_intermediate_size": 8, "scoring_func": "tanh"}, "scoring_func is 'tanh'"),
        ({"scoring_func": "sigmoid"}, "set num_experts"),
        ({"attention_bias": True}, "all four biases or none"),
        ({"qk_norm": False, "hidden_size": 33}, "a multiple of num_attention_heads"),
        ({"qk_norm": False, "sliding_window": 8, "sliding_layers": (1,)}, "a window in some layers"),
    ],
)
def test_impossible_shapes_are_refused(config: ModelConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        ModelConfig.from_depth(0, vocab_size=10)

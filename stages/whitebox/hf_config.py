"""Hugging Face's `config.json`, read and written.

What is written has the names of architectures that transformers, vLLM and llama.cpp know; the tests open it
in transformers. What is read may come from any of these; an option is refused only if it changes numbers that
this model cannot compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.whitebox.rope_scaling import read_rope_scaling, rope_base

if TYPE_CHECKING:
    from stages.whitebox.config import ModelConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_WITH_QK_NORM = ("qwen3", "qwen3_moe", "dots1")
_HEAD_DIM_DEFAULT = {"qwen3": 128}
"""Where a file may leave it out and does not mean hidden_size / num_attention_heads."""
_WINDOW_DEFAULT, _FIRST_WINDOW_DEFAULT = 4096, {"qwen2": 28, "qwen3": 28, "dots1": 62}
"""What transformers takes where a file names no sliding_window, and no max_window_layers."""


def model_type(config: ModelConfig) -> str:
    """The architecture that these options are elsewhere.

    Raises:
        ValueError: there is none.
    """
    if config.num_experts:
        return _expert_model_type(config)
    if config.n_shared_experts or config.scoring_func != "softmax":
        raise ValueError("n_shared_experts and scoring_func are for models with experts: set num_experts")
    if config.qk_norm:
        _require(config.attention_bias == config.attention_output_bias, "QK-norm has all four biases or none")
        return "qwen3"
    if config.attention_bias and not config.attention_output_bias:
        return "qwen2"
    if config.sliding_window is None:
        _require(
            config.hidden_size % config.num_attention_heads == 0,
            "Llama's hidden_size is a multiple of num_attention_heads",
        )
        _require(config.attention_bias == config.attention_output_bias, "there is no bias on o_proj alone")
        return "llama"
    _require(not config.attention_output_bias, "a sliding window with a bias on o_proj needs QK-norm")
    # Qwen2 has the windows in some layers only, but also biases; Mistral has one window for all.
    _require(config.sliding_layers is None, "a window in some layers needs QK-norm or attention_bias")
    return "mistral"


def _expert_model_type(config: ModelConfig) -> str:
    _require(config.qk_norm, "experts need QK-norm")
    _require(config.attention_bias == config.attention_output_bias, "QK-norm has all four biases or none")
    if config.scoring_func == "softmax":
        _require(config.n_shared_experts == 0, 'n_shared_experts need scoring_func "sigmoid"')
        _require(config.routed_scaling_factor == 1.0, 'routed_scaling_factor needs scoring_func "sigmoid"')
        _require(config.sliding_layers is None, 'a window in some layers needs scoring_func "sigmoid"')
        return "qwen3_moe"
    _require(config.n_shared_experts > 0, 'scoring_func "sigmoid" needs n_shared_experts')
    first_layers = tuple(range(len(config.dense_layers)))
    _require(config.dense_layers == first_layers, 'with scoring_func "sigmoid" the dense layers come first')
    return "dots1"


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(f"no known architecture has these options together: {problem}")


def write_fields(config: ModelConfig) -> dict[str, Any]:
    """The content of `config.json`.

    RoPE's base and scaling stand twice: transformers 5 reads `rope_parameters`, older readers `rope_theta`
    and `rope_scaling`.
    """
    kind = model_type(config)
    scaling = config.rope_scaling.to_hf() if config.rope_scaling is not None else {"rope_type": "default"}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **{name: getattr(config, name) for name in SIZES},
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        **({"rope_scaling": scaling} if config.rope_scaling is not None else {}),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        **({"mlp_bias": False} if kind == "llama" else _window_fields(config, kind)),
        **(_expert_fields(config, kind) if config.num_experts else {}),
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _window_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    has_window = config.sliding_window is not None
    found: dict[str, Any] = {"use_sliding_window": has_window, "sliding_window": config.sliding_window}
    if kind in ("mistral", "qwen3_moe") or not has_window:
        return found
    layers = range(config.num_hidden_layers)
    windows = [config.window_of(layer) is not None for layer in layers]
    # Older readers know only "from this layer on".
    found["max_window_layers"] = windows.index(True) if True in windows else len(windows)
    found["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    return found


def _expert_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_experts_per_tok": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": config.norm_topk_prob,
    }
    if kind == "qwen3_moe":
        return found | {
            "num_experts": config.num_experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(config.dense_layers),
            "router_aux_loss_coef": config.router_aux_loss_coef,
        }
    return found | {
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.n_shared_experts,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": len(config.dense_layers),
        "routed_scaling_factor": config.routed_scaling_factor,
        # Always so in transformers; vLLM and llama.cpp ask for it by these names.
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    }


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `ModelConfig` that a `config.json` stands for; raises ValueError as `from_hf`."""
    kind = fields.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"config.json has model_type {kind!r}, expected one of {sorted(ARCHITECTURES)}")
    has_bias = kind == "qwen2" or bool(fields.get("attention_bias"))
    _refuse_unsupported(fields)
    return {
        **_sizes(fields),
        "rope_theta": rope_base(fields),
        "rope_scaling": read_rope_scaling(fields),
        "rms_norm_eps": fields.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
        "qk_norm": kind in _WITH_QK_NORM,
        "attention_bias": has_bias and kind != "mistral",
        "attention_output_bias": has_bias and kind not in ("qwen2", "mistral"),
        **_read_window(fields),
        **(_read_experts(fields) if kind in ("qwen3_moe", "dots1") else {}),
        **_token_ids(fields),
    }


def _sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    may_lack = ("head_dim", "num_key_value_heads")
    missing = [name for name in SIZES if name not in fields and name not in may_lack]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    heads = fields["num_attention_heads"]
    sizes = {name: fields[name] for name in SIZES if fields.get(name) is not None}
    sizes.setdefault("head_dim", _HEAD_DIM_DEFAULT.get(fields["model_type"], fields["hidden_size"] // heads))
    sizes.setdefault("num_key_value_heads", heads)
    return sizes


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    found = {
        "hidden_act": (fields.get("hidden_act", "silu"), ("silu", "swish")),
        "mlp_bias": (bool(fields.get("mlp_bias")), (False,)),
        "n_group": (fields.get("n_group") or 1, (1,)),
    }
    for name, (value, supported) in found.items():
        if value not in supported:
            raise ValueError(f"config.json has {name} = {value!r}; this model computes only {supported[0]!r}")


def _read_window(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Llama has no window; Mistral and Qwen3-MoE one for all layers; the others one for the named layers."""
    kind, layers = fields["model_type"], fields["num_hidden_layers"]
    window = fields.get("sliding_window", _WINDOW_DEFAULT)
    if (
        kind == "llama"
        or window is None
        or (kind.startswith("qwen") and not fields.get("use_sliding_window"))
    ):
        return {}
    if kind in ("mistral", "qwen3_moe"):
        return {"sliding_window": window}
    types = fields.get("layer_types")
    if types is None:
        first = fields.get("max_window_layers", _FIRST_WINDOW_DEFAULT[kind])
        types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"config.json has layer_types {sorted(unknown)}; this model has full and sliding ones"
        )
    chosen = tuple(layer for layer, name in enumerate(types) if name == "sliding_attention")
    if not chosen:
        return {}
    return {"sliding_window": window, "sliding_layers": None if len(chosen) == layers else chosen}


def _read_experts(fields: Mapping[str, Any]) -> dict[str, Any]:
    is_dots = fields["model_type"] == "dots1"
    names = ("n_routed_experts", "num_local_experts", "num_experts")
    num_experts = next((fields[name] for name in names if fields.get(name)), None)
    lacks = [name for name in ("num_experts_per_tok", "moe_intermediate_size") if not fields.get(name)]
    if num_experts is None or lacks:
        raise ValueError(f"config.json lacks {', '.join(lacks) or 'num_experts'}")
    found = {
        "num_experts": num_experts,
        "num_experts_per_tok": fields["num_experts_per_tok"],
        "moe_intermediate_size": fields["moe_intermediate_size"],
        "norm_topk_prob": bool(fields.get("norm_topk_prob", False)),
        "dense_layers": _dense_layers(fields),
    }
    if not is_dots:
        return found | {"router_aux_loss_coef": fields.get("router_aux_loss_coef", 0.001)}
    return found | {
        "scoring_func": "sigmoid",
        "n_shared_experts": fields.get("n_shared_experts") or 0,
        "routed_scaling_factor": fields.get("routed_scaling_factor", 1.0),
    }


def _dense_layers(fields: Mapping[str, Any]) -> tuple[int, ...]:
    layers = range(fields["num_hidden_layers"])
    if fields["model_type"] == "dots1":
        return tuple(layers[: fields.get("first_k_dense_replace") or 0])
    named, step = fields.get("mlp_only_layers") or [], fields.get("decoder_sparse_step") or 1
    return tuple(layer for layer in layers if layer in named or (layer + 1) % step)


def _token_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Special ids; where several end a text, the first is the end of a document."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = fields.get(name)
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            found[name] = int(value)
    return found

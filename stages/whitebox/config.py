"""The shape of a model, in the field names of a Hugging Face `config.json`.

One dial, `from_depth`, sets every size; `to_hf` and `from_hf` are the way in and out of `config.json`.
With `qk_norm` the architecture is Qwen3 (Yang et al. 2025, arXiv:2505.09388), without it Llama
(Touvron et al. 2023, arXiv:2302.13971); neither has biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAD_SIZE = 64
WIDTH_PER_LAYER = 64
FEED_FORWARD_MULTIPLE = 256

_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a `CausalLM`.

    Raises:
        ValueError: a size is not positive, the heads do not divide, or `head_dim` is odd.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    qk_norm: bool = True
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 3

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number: RoPE turns pairs")

    @classmethod
    def from_depth(
        cls,
        depth: int,
        vocab_size: int,
        max_position_embeddings: int = 512,
        tie_word_embeddings: bool = True,
        qk_norm: bool = True,
    ) -> ModelConfig:
        """The whole shape from the number of layers: a fixed ratio of width to depth, heads of size 64.

        Raises:
            ValueError: `depth` or `vocab_size` is below 1.
        """
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        return cls(
            vocab_size=vocab_size,
            hidden_size=WIDTH_PER_LAYER * depth,
            intermediate_size=_feed_forward_size(WIDTH_PER_LAYER * depth),
            num_hidden_layers=depth,
            num_attention_heads=depth,
            num_key_value_heads=_key_value_heads(depth),
            head_dim=HEAD_SIZE,
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=tie_word_embeddings,
            qk_norm=qk_norm,
        )

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key heads together; the values have the same."""
        return self.num_key_value_heads * self.head_dim

    def num_layer_matrix_params(self) -> int:
        """Parameters in the seven matrices of one layer."""
        attention = 2 * self.hidden_size * (self.query_size + self.key_value_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def num_params(self) -> int:
        """Parameters of the model; a tied output matrix is counted once."""
        norms_per_layer = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        layers = self.num_hidden_layers * (self.num_layer_matrix_params() + norms_per_layer)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return layers + embeddings + self.hidden_size

    def flops_per_token(self, context_tokens: int) -> int:
        """Floating-point operations of one training token, forward and backward.

        Six per matrix parameter, the output matrix included and the embedding look-up not, plus 12 x layers
        x query size x context for attention (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). That
        counts scores above the diagonal too, as published MFU figures do.
        """
        matrices = (
            self.num_hidden_layers * self.num_layer_matrix_params() + self.vocab_size * self.hidden_size
        )
        return 6 * matrices + 12 * self.num_hidden_layers * self.query_size * context_tokens

    def to_hf(self) -> dict[str, Any]:
        """The content of `config.json`.

        RoPE's base stands twice: transformers 5 reads `rope_parameters`, older readers `rope_theta`.
        """
        model_type = "qwen3" if self.qk_norm else "llama"
        sizes = {name: getattr(self, name) for name in _SIZES}
        return {
            "architectures": [_ARCHITECTURES[model_type]],
            "model_type": model_type,
            **sizes,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "attention_dropout": 0.0,
            **(
                {"use_sliding_window": False, "sliding_window": None} if self.qk_norm else {"mlp_bias": False}
            ),
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Reads a `config.json`; fields that this model has no use for are ignored.

        Raises:
            ValueError: another architecture, a missing field, or an option that would change the numbers
                (biases, another activation, scaled RoPE, a sliding window).
        """
        model_type = fields.get("model_type")
        if model_type not in _ARCHITECTURES:
            raise ValueError(
                f"config.json has model_type {model_type!r}, expected one of {sorted(_ARCHITECTURES)}"
            )
        missing = [
            name for name in _SIZES if name not in fields and name not in ("head_dim", "num_key_value_heads")
        ]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        _refuse_unsupported(fields)
        heads = fields["num_attention_heads"]
        sizes = {name: fields[name] for name in _SIZES if fields.get(name) is not None}
        sizes.setdefault("head_dim", fields["hidden_size"] // heads)
        sizes.setdefault("num_key_value_heads", heads)
        return cls(
            **sizes,
            rope_theta=float(_rope(fields).get("rope_theta", fields.get("rope_theta", 10_000.0))),
            rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=fields.get("tie_word_embeddings", False),
            qk_norm=model_type == "qwen3",
            **_token_ids(fields),
        )


def _key_value_heads(num_heads: int) -> int:
    """The largest divisor of the query heads that is at most half of them."""
    return max((d for d in range(1, num_heads // 2 + 1) if num_heads % d == 0), default=1)


def _feed_forward_size(hidden_size: int) -> int:
    """8/3 of the width, rounded up: a gated layer has three matrices where a plain one of 4x has two."""
    wanted = -(-8 * hidden_size // 3)
    return -(-wanted // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE


def _rope(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    return fields.get("rope_parameters") or fields.get("rope_scaling") or {}


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    rope_type = _rope(fields).get("rope_type", _rope(fields).get("type", "default"))
    found = {
        "hidden_act": (fields.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(fields.get("attention_bias")), False),
        "mlp_bias": (bool(fields.get("mlp_bias")), False),
        "use_sliding_window": (bool(fields.get("use_sliding_window")), False),
        "rope_type": (rope_type, "default"),
    }
    for name, (value, supported) in found.items():
        if value != supported:
            raise ValueError(f"config.json has {name} = {value!r}; this model computes only {supported!r}")


def _token_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Special ids; where several end a text, the first is the end of a document."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = fields.get(name)
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            found[name] = int(value)
    return found

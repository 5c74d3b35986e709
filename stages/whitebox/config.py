"""The shape of a model, in the field names of a Hugging Face `config.json`.

One dial, `from_depth`, sets every size; `shapes.py` has the sizes of known models; `to_hf` and `from_hf` are
the way in and out of `config.json` (`hf_config.py`). The options together are these architectures:

| options                                             | architecture | source            |
|-----------------------------------------------------|--------------|-------------------|
| `qk_norm`                                           | Qwen3        | arXiv:2505.09388  |
| no `qk_norm`                                        | Llama        | arXiv:2302.13971  |
| no `qk_norm`, `attention_bias`                      | Qwen2        | arXiv:2407.10671  |
| no `qk_norm`, `sliding_window` in all layers        | Mistral      | arXiv:2310.06825  |
| `qk_norm`, `num_experts`                            | Qwen3-MoE    | arXiv:2505.09388  |
| the same with `scoring_func` "sigmoid"              | dots1        | arXiv:2506.05767  |

The last is Qwen3's attention with the experts of DeepSeek-V3 (arXiv:2412.19437): shared ones beside those
that are chosen, and a bias that keeps their loads equal. Other combinations have no name elsewhere, so they
are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.whitebox.hf_config import SIZES, model_type, read_fields, write_fields
from stages.whitebox.rope_scaling import RopeScaling

HEAD_SIZE = 64
WIDTH_PER_LAYER = 64
FEED_FORWARD_MULTIPLE = 256


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a `CausalLM`.

    Raises:
        ValueError: a size is not positive, the heads do not divide, `head_dim` is odd, or the options
            together are no architecture that opens elsewhere.
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
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    """Biases on queries, keys and values."""
    attention_output_bias: bool = False
    """One on attention's output too, as Llama and Qwen3 have it where they have biases at all."""
    sliding_window: int | None = None
    """A token sees this many tokens, itself included, in the layers of `sliding_layers`."""
    sliding_layers: tuple[int, ...] | None = None
    """Which layers have the window; None is all of them."""
    num_experts: int = 0
    """Feed-forward layers to choose from; 0 is a model without a choice."""
    num_experts_per_tok: int = 1
    moe_intermediate_size: int = 0
    """Width of one expert."""
    dense_layers: tuple[int, ...] = ()
    """Layers with one feed-forward layer of `intermediate_size` in spite of `num_experts`."""
    norm_topk_prob: bool = True
    """The weights of the chosen experts sum to 1."""
    router_aux_loss_coef: float = 0.001
    """Weight of the loss that keeps the experts' loads equal; not in the loss of "sigmoid"."""
    scoring_func: str = "softmax"
    """Or "sigmoid": DeepSeek-V3's router, whose loads are kept equal by a bias (arXiv:2408.15664)."""
    n_shared_experts: int = 0
    """Experts that every token has, beside those that are chosen."""
    routed_scaling_factor: float = 1.0
    """What the chosen experts' sum is multiplied by, before the shared experts are added."""

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number: RoPE turns pairs")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}, expected at least 1, or None")
        if self.num_experts:
            self._check_experts()
        model_type(self)

    def _check_experts(self) -> None:
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected 1 to num_experts, "
                f"{self.num_experts}"
            )
        if self.moe_intermediate_size < 1:
            raise ValueError(f"moe_intermediate_size is {self.moe_intermediate_size}, expected at least 1")
        if self.scoring_func not in ("softmax", "sigmoid"):
            raise ValueError(f"scoring_func is {self.scoring_func!r}, expected 'softmax' or 'sigmoid'")

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

    @property
    def context_limit(self) -> int:
        """The longest text that the model reads: dynamic RoPE stretches what it was built for."""
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic":
            return int(self.rope_scaling.factor * self.max_position_embeddings)
        return self.max_position_embeddings

    def window_of(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None is all before it."""
        has_window = self.sliding_layers is None or layer in self.sliding_layers
        return self.sliding_window if has_window else None

    def has_experts(self, layer: int) -> bool:
        """Whether this layer chooses among experts."""
        return self.num_experts > 0 and layer not in self.dense_layers

    def num_matrix_params(self, active: bool = True) -> int:
        """Parameters in the matrices of all layers, router included.

        Args:
            active: count of the experts only as many as work on one token.
        """
        layers = range(self.num_hidden_layers)
        return sum(self._num_feed_forward_params(layer, active) for layer in layers) + len(layers) * (
            2 * self.hidden_size * (self.query_size + self.key_value_size)
        )

    def _num_feed_forward_params(self, layer: int, active: bool) -> int:
        if not self.has_experts(layer):
            return 3 * self.hidden_size * self.intermediate_size
        experts = (self.num_experts_per_tok if active else self.num_experts) + self.n_shared_experts
        return self.hidden_size * (3 * experts * self.moe_intermediate_size + self.num_experts)

    def num_params(self) -> int:
        """Parameters of the model; a tied output matrix is counted once."""
        per_layer = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        per_layer += (self.query_size + 2 * self.key_value_size) if self.attention_bias else 0
        per_layer += self.hidden_size if self.attention_output_bias else 0
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        matrices = self.num_matrix_params(active=False)
        return matrices + self.num_hidden_layers * per_layer + embeddings + self.hidden_size

    def num_active_params(self) -> int:
        """Those that work on one token: all of them without experts."""
        return self.num_params() - self.num_matrix_params(active=False) + self.num_matrix_params()

    def flops_per_token(self, context_tokens: int) -> int:
        """Floating-point operations of one training token, forward and backward.

        Six per matrix parameter that works on it, the output matrix included and the embedding look-up not,
        plus 12 x query size x context for each layer's attention (Chowdhery et al. 2022, arXiv:2204.02311,
        appendix B). That counts scores above the diagonal too, as published MFU figures do; where a layer has
        a sliding window, the window is its context.
        """
        windows = (self.window_of(layer) or context_tokens for layer in range(self.num_hidden_layers))
        seen = sum(min(window, context_tokens) for window in windows)
        return (
            6 * (self.num_matrix_params() + self.vocab_size * self.hidden_size) + 12 * self.query_size * seen
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of `config.json`; `hf_config.write_fields` says how."""
        return write_fields(self)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Reads a `config.json`; fields that change no number are ignored.

        Raises:
            ValueError: another architecture, a missing field, or an option that would change the numbers
                and that this model has not.
        """
        return cls(**read_fields(fields))


def _key_value_heads(num_heads: int) -> int:
    """The largest divisor of the query heads that is at most half of them."""
    return max((d for d in range(1, num_heads // 2 + 1) if num_heads % d == 0), default=1)


def _feed_forward_size(hidden_size: int) -> int:
    """8/3 of the width, rounded up: a gated layer has three matrices where a plain one of 4x has two."""
    wanted = -(-8 * hidden_size // 3)
    return -(-wanted // FEED_FORWARD_MULTIPLE) * FEED_FORWARD_MULTIPLE

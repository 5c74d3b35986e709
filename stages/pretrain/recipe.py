"""Everything that follows from `depth`, unless the configuration says otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stages.pretrain.spec import PretrainConfig
from stages.whitebox.config import ModelConfig
from stages.whitebox.trainer import largest_part

CHINCHILLA_TOKENS_PER_PARAM = 20
MICRO_BATCH_TOKENS = 4096
"""On a CPU more rows at once are no faster; on a GPU this many fill it at the sizes that we train."""
MEMORY_SHARE_FOR_ACTIVATIONS = 0.25
MUON_BATCH = 2
"""Muon loses less by large batches (Shah et al. 2025, arXiv:2505.02222), and its updates cost more."""
MATRIX_LEARNING_RATE = 0.02
EMBEDDING_LEARNING_RATE, EMBEDDING_WIDTH = 0.02, 256
"""Measured at this width beside Muon; it falls with the root of the width, as each row grows longer."""


@dataclass(frozen=True)
class Recipe:
    """A run, decided to the last number before it starts."""

    model: ModelConfig
    context_tokens: int
    learning_rate: float
    matrix_learning_rate: float | None
    rows_per_step: int
    micro_batch_size: int
    total_steps: int
    warmup_steps: int

    @property
    def accumulation_steps(self) -> int:
        """Micro batches of one update."""
        return self.rows_per_step // self.micro_batch_size

    @property
    def global_batch_tokens(self) -> int:
        """Tokens of one update."""
        return self.rows_per_step * self.context_tokens

    @property
    def train_tokens(self) -> int:
        """Tokens of all updates: the budget, rounded to whole updates."""
        return self.total_steps * self.global_batch_tokens

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run."""
        return float(self.train_tokens) * self.model.flops_per_token(self.context_tokens)

    @property
    def memory_bytes(self) -> int:
        """Estimate of the peak: weights, gradients and two moments, activations, one chunk of logits."""
        rows = self.micro_batch_size * self.context_tokens
        logits = 3 * 4 * min(rows, 1024) * self.model.vocab_size
        return 16 * self.model.num_params() + rows * activation_bytes_per_token(self.model) + logits


def make_recipe(config: PretrainConfig, model: ModelConfig, memory_bytes: int) -> Recipe:
    """Fills in what the configuration leaves to `depth`.

    Args:
        memory_bytes: what the device has in all. Not what is free now: the choice must be the same on a
            resume.
    """
    budget = config.train_tokens
    if budget == "chinchilla":
        budget = CHINCHILLA_TOKENS_PER_PARAM * model.num_active_params()
    batch_tokens = config.global_batch_tokens
    if batch_tokens == "auto":
        batch_tokens = step_law_batch_tokens(budget) * (MUON_BATCH if config.optimizer == "muon" else 1)
    rows = max(1, round(batch_tokens / config.context_tokens))
    rows_per_step, micro = _split(rows, max(1, MICRO_BATCH_TOKENS // config.context_tokens))
    if config.micro_batch_size == "auto":
        at_once = min(micro, _rows_within(model, config.context_tokens, memory_bytes))
    else:
        at_once = config.micro_batch_size
    # Who or what divides an update never changes it, so that every machine makes the same steps.
    micro = largest_part(rows_per_step, at_once)
    total_steps = max(1, round(budget / (rows_per_step * config.context_tokens)))
    return Recipe(
        model=model,
        context_tokens=config.context_tokens,
        learning_rate=_learning_rate(config, model, budget),
        matrix_learning_rate=_matrix_learning_rate(config) if config.optimizer == "muon" else None,
        rows_per_step=rows_per_step,
        micro_batch_size=micro,
        total_steps=total_steps,
        warmup_steps=round(config.warmup_fraction * total_steps),
    )


def step_law_learning_rate(num_params: int, train_tokens: int) -> float:
    """Peak learning rate by the Step Law, Li et al. 2025, arXiv:2503.04715: 1.79 N^-0.713 D^0.307.

    N counts parameters without embeddings. The law was fitted from 60M parameters up; below, it is bounded.
    """
    return min(1.79 * num_params**-0.713 * train_tokens**0.307, 6e-3)


def step_law_batch_tokens(train_tokens: int) -> int:
    """Tokens of one update by the same law: 0.58 D^0.571."""
    return round(0.58 * train_tokens**0.571)


def activation_bytes_per_token(model: ModelConfig) -> int:
    """Bytes in float32 that one token leaves behind for the backward pass."""
    attention = 4 * model.query_size + 3 * model.key_value_size
    layers = sum(
        4 * model.hidden_size + attention + _feed_forward_activations(model, layer)
        for layer in range(model.num_hidden_layers)
    )
    return 4 * (layers + 4 * model.hidden_size)


def _feed_forward_activations(model: ModelConfig, layer: int) -> int:
    if not model.has_experts(layer):
        return 3 * model.intermediate_size
    # A token's row is there once for each of its experts, before them and behind them.
    chosen, shared = model.num_experts_per_tok, model.n_shared_experts
    rows = 2 * chosen * model.hidden_size
    return rows + 4 * (chosen + shared) * model.moe_intermediate_size + 4 * model.num_experts


def recipe_rows(recipe: Recipe) -> list[list[Any]]:
    """The table "what follows from depth"."""
    model = recipe.model
    return [
        ["layers x width", f"{model.num_hidden_layers} x {model.hidden_size}"],
        ["heads (query / key-value)", f"{model.num_attention_heads} / {model.num_key_value_heads}"],
        ["feed-forward", _feed_forward_text(model)],
        ["vocabulary", model.vocab_size],
        ["parameters", _params_text(model)],
        ["FLOPs per token", f"{model.flops_per_token(recipe.context_tokens):.3g}"],
        ["context", f"{recipe.context_tokens} tokens"],
        ["one update", _update_text(recipe)],
        ["updates", f"{recipe.total_steps:,}, warm-up {recipe.warmup_steps:,}"],
        ["training tokens", f"{recipe.train_tokens:,} ({_tokens_per_param(recipe):.1f} per parameter)"],
        ["FLOPs in all", f"{recipe.flops:.3g}"],
        ["peak learning rate", _rates_text(recipe)],
        ["memory, estimated", f"{recipe.memory_bytes / 2**20:,.0f} MiB"],
    ]


def _feed_forward_text(model: ModelConfig) -> str | int:
    if not model.num_experts:
        return model.intermediate_size
    shared = f" and {model.n_shared_experts} shared" if model.n_shared_experts else ""
    chosen = f"{model.num_experts_per_tok} of {model.num_experts} experts"
    return f"{chosen}{shared}, {model.moe_intermediate_size} each"


def _params_text(model: ModelConfig) -> str:
    if not model.num_experts:
        return f"{model.num_params():,}"
    return f"{model.num_params():,}, of which {model.num_active_params():,} work on a token"


def _update_text(recipe: Recipe) -> str:
    return (
        f"{recipe.global_batch_tokens:,} tokens = {recipe.accumulation_steps} x "
        f"{recipe.micro_batch_size} rows of {recipe.context_tokens}"
    )


def _rates_text(recipe: Recipe) -> str:
    if recipe.matrix_learning_rate is None:
        return f"{recipe.learning_rate:.2e} (AdamW)"
    return f"matrices {recipe.matrix_learning_rate:.2e} (Muon), else {recipe.learning_rate:.2e} (AdamW)"


def _tokens_per_param(recipe: Recipe) -> float:
    return recipe.train_tokens / recipe.model.num_active_params()


def _learning_rate(config: PretrainConfig, model: ModelConfig, train_tokens: int) -> float:
    if config.learning_rate != "auto":
        return config.learning_rate
    if config.optimizer == "muon":
        fresh = EMBEDDING_LEARNING_RATE * math.sqrt(EMBEDDING_WIDTH / model.hidden_size)
    else:
        fresh = step_law_learning_rate(model.num_matrix_params(), train_tokens)
    return _share_of_peak(config) * fresh


def _matrix_learning_rate(config: PretrainConfig) -> float:
    if config.matrix_learning_rate != "auto":
        return config.matrix_learning_rate
    return _share_of_peak(config) * MATRIX_LEARNING_RATE


def _share_of_peak(config: PretrainConfig) -> float:
    """For peaks that are left to us: a model that goes on forgets less with a smaller one."""
    return config.continue_learning_rate_fraction if config.continue_from else 1.0


def _rows_within(model: ModelConfig, context_tokens: int, memory_bytes: int) -> int:
    tokens = MEMORY_SHARE_FOR_ACTIVATIONS * memory_bytes / activation_bytes_per_token(model)
    return max(1, int(tokens) // context_tokens)


def _split(rows: int, micro: int) -> tuple[int, int]:
    """Equal micro batches of at most `micro` rows that make up `rows`, or a few rows more."""
    parts = math.ceil(rows / min(micro, rows))
    size = math.ceil(rows / parts)
    return parts * size, size

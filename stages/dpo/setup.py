"""What preference tuning starts from, and the numbers that the settings leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from stages.dpo.pairs import PairBatches
from stages.dpo.spec import DpoConfig
from stages.whitebox.checkpoint import load_model
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import TrainerSettings

LEARNING_RATE_AT_WIDTH_256 = 2.5e-5


def open_model(inputs: Mapping[str, Path], device: torch.device) -> tuple[Tokenizer, CausalLM]:
    """The tokenizer and the SFT model, in float32. Raises ValueError when they do not belong together."""
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
    model = load_model(inputs["model"], device, dtype=torch.float32)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"the model has a vocabulary of {model.config.vocab_size}, the tokenizer of "
            f"{tokenizer.vocab_size}; build both again: glassworks rerun tokenizer --with-downstream"
        )
    return tokenizer, model


def choose_context(config: DpoConfig, model: CausalLM) -> int:
    """Tokens of the longest pair that is used. Raises ValueError when the model cannot read that many."""
    longest = model.config.max_position_embeddings
    if config.context_tokens == "auto":
        return longest
    if config.context_tokens > longest:
        raise ValueError(f"context_tokens is {config.context_tokens}, the model reads at most {longest}")
    return config.context_tokens


def trainer_settings(
    config: DpoConfig, model: CausalLM, batches: PairBatches, compute_dtype: torch.dtype
) -> TrainerSettings:
    """Everything that the trainer has to know."""
    total_steps = max(1, math.ceil(config.epochs * batches.updates_per_epoch))
    learning_rate = config.learning_rate
    if learning_rate == "auto":
        learning_rate = LEARNING_RATE_AT_WIDTH_256 * 256 / model.config.hidden_size
    return TrainerSettings(
        total_steps=total_steps,
        learning_rate=learning_rate,
        warmup_steps=round(config.warmup_fraction * total_steps),
        decay_fraction=1.0,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        accumulation_steps=batches.batches_per_update,
        seed=config.seed,
        compute_dtype=compute_dtype,
        evaluate_every_steps=math.ceil(total_steps / config.evaluations),
        checkpoint_every_seconds=config.checkpoint_every_seconds,
    )

"""What preference tuning starts from, and the numbers that the settings leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from stages.dpo.pairs import PairBatches, Pairs
from stages.dpo.spec import DpoConfig
from stages.whitebox.chat_template import reasoning_of
from stages.whitebox.checkpoint import load_model
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.tokenizer_match import check_chat, check_same_tokens
from stages.whitebox.trainer import TrainerSettings

MICRO_BATCH_TOKENS = 4096
MOST_PAIRS = 16
"""At once, where the setting is left open; more are no faster."""
LEARNING_RATE_AT_WIDTH_256 = 2.5e-5
UPDATES_OF_FEW_PAIRS, MOST_EPOCHS = 40, 3.0
"""How long few pairs are learnt from, where the setting is left open."""
OF_OTHER_METHODS = {"reward": 10 * LEARNING_RATE_AT_WIDTH_256, "grpo": 1e-4, "ppo": 1e-4}
"""A head that knows nothing has further to go than an assistant that is to stay one."""


def open_model(inputs: Mapping[str, Path], device: torch.device) -> tuple[Tokenizer, CausalLM]:
    """The tokenizer and the SFT model, in float32. Raises ValueError when they do not belong together."""
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"]).with_reasoning(reasoning_of(inputs["model"]))
    for folder in (inputs["tokenizer"], inputs["model"]):
        check_chat(tokenizer, folder)
    model = load_model(inputs["model"], device, dtype=torch.float32)
    check_same_tokens(tokenizer, model, inputs["model"], "the model")
    return tokenizer, model


def choose_context(config: DpoConfig, model: CausalLM) -> int:
    """Tokens of the longest pair that is used. Raises ValueError when the model cannot read that many."""
    longest = model.config.max_position_embeddings
    if config.context_tokens == "auto":
        return longest
    if config.context_tokens > longest:
        raise ValueError(f"context_tokens is {config.context_tokens}, the model reads at most {longest}")
    return config.context_tokens


def with_micro_batches(config: DpoConfig, pairs: Pairs | None = None) -> DpoConfig:
    """The settings with a number for `micro_batch_pairs`: long pairs are fewer at once, for their memory.

    Args:
        pairs: of the training; None where answers are sampled, whose lengths nobody knows before.
    """
    if config.micro_batch_pairs != "auto":
        return config
    if pairs is None:
        pairs = Pairs()
    both = zip(pairs.chosen, pairs.rejected, strict=True)
    # A pair's prompt is computed once.
    tokens = [len(chosen.ids) + len(rejected.ids) - rejected.start for chosen, rejected in both]
    tokens += [2 * len(single.completion.ids) for single in pairs.singles]
    mean_tokens = sum(tokens) / len(tokens) if tokens else 1
    fitting = max(1, min(MOST_PAIRS, int(MICRO_BATCH_TOKENS / mean_tokens)))
    return config.model_copy(update={"micro_batch_pairs": fitting})


def updates_on(config: DpoConfig, batches: PairBatches, say: Callable[[str], None]) -> int:
    """Updates of a training on pairs; says how often each is seen."""
    epochs = config.epochs
    if epochs == "auto":
        epochs = min(MOST_EPOCHS, max(1.0, UPDATES_OF_FEW_PAIRS / batches.updates_per_epoch))
    updates = max(1, math.ceil(epochs * batches.updates_per_epoch))
    say(f"{updates:,} updates of {batches.update_pairs} {batches.unit}: {epochs:.3g} times through them")
    return updates


def trainer_settings(
    config: DpoConfig,
    model: CausalLM,
    total_steps: int,
    accumulation_steps: int,
    compute_dtype: torch.dtype,
) -> TrainerSettings:
    """Everything that the trainer has to know."""
    learning_rate = config.learning_rate
    if learning_rate == "auto":
        at_width_256 = OF_OTHER_METHODS.get(config.method, LEARNING_RATE_AT_WIDTH_256)
        learning_rate = at_width_256 * 256 / model.config.hidden_size
    return TrainerSettings(
        total_steps=total_steps,
        learning_rate=learning_rate,
        warmup_steps=round(config.warmup_fraction * total_steps),
        decay_fraction=1.0,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        accumulation_steps=accumulation_steps,
        seed=config.seed,
        compute_dtype=compute_dtype,
        evaluate_every_steps=math.ceil(total_steps / config.evaluations),
        checkpoint_every_seconds=config.checkpoint_every_seconds,
    )

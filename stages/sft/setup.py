"""What fine-tuning starts from, and the numbers that the settings leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from stages.sft.conversations import Chats
from stages.sft.spec import SftConfig
from stages.whitebox.checkpoint import load_model
from stages.whitebox.device import Device
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import PackedRows
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.tokenizer_match import check_chat, check_same_tokens
from stages.whitebox.trainer import TrainerSettings, largest_part

MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 4096}
"""By the kind of device. On a CPU more at once take more memory and are no faster: they leave its cache."""
LEARNING_RATE_AT_WIDTH_256 = 2e-3
ADAPTER_LEARNING_RATES = 3.0
"""How many times as fast adapters learn; see the README for what was tried."""
MIN_CONTEXT_TOKENS = 128


def open_model(
    config: SftConfig, inputs: Mapping[str, Path], device: torch.device
) -> tuple[Tokenizer, CausalLM]:
    """The tokenizer and the base model, in float32. Raises ValueError when they do not belong together."""
    tokenizer = Tokenizer.from_folder(inputs["tokenizer"]).with_reasoning(config.reasoning)
    check_chat(tokenizer, inputs["tokenizer"])
    model = load_model(inputs["model"], device, dtype=torch.float32)
    check_same_tokens(tokenizer, model, inputs["model"], "the model")
    return tokenizer, model


def choose_context(config: SftConfig, model: CausalLM, chats: Mapping[str, Chats]) -> int:
    """Tokens of a row. Raises ValueError when the model cannot read that many.

    Short rows cost less: attention and its mask grow with the square. So "auto" takes the smallest power of
    two that holds every conversation.
    """
    limit = model.config.max_position_embeddings
    if config.context_tokens == "auto":
        longest = max(len(chat.ids) for split in chats.values() for chat in split.rendered)
        return min(limit, max(MIN_CONTEXT_TOKENS, 1 << (longest - 1).bit_length()))
    if config.context_tokens > limit:
        raise ValueError(f"context_tokens is {config.context_tokens}, the model reads at most {limit}")
    return config.context_tokens


def batch_shape(config: SftConfig, packed: PackedRows, device: torch.device) -> tuple[int, int]:
    """Rows of a micro batch, and micro batches of one update.

    A micro batch is the largest equal part of the update that fits, so the update is the same whatever fits.
    "auto" is the Step Law's 0.58 D^0.571 for D training tokens, Li et al. 2025, arXiv:2503.04715: a short
    training needs many small updates. It gives a power of two, which has parts of every size.
    """
    context_tokens = packed.ids_RxT.shape[1]
    batch_tokens = config.batch_tokens
    if batch_tokens == "auto":
        batch_tokens = round(0.58 * (config.epochs * packed.ids_RxT.size) ** 0.571)
    rows = max(1, round(batch_tokens / context_tokens))
    if config.batch_tokens == "auto":
        rows = 1 << round(math.log2(rows))
    by_hand = config.micro_batch_size
    fitting = max(1, MICRO_BATCH_TOKENS[device.type] // context_tokens) if by_hand == "auto" else by_hand
    part = largest_part(rows, fitting)
    return part, rows // part


def trainer_settings(
    config: SftConfig,
    model: CausalLM,
    rows: PackedRows,
    micro_batch_size: int,
    accumulation_steps: int,
    device: Device,
) -> TrainerSettings:
    """Everything that the trainer has to know."""
    rows_per_step = micro_batch_size * accumulation_steps
    planned = max(1, math.ceil(config.epochs * rows.num_rows / rows_per_step))
    total_steps = min(planned, config.max_steps or planned)
    # An adapter's matrices are two factors of one: to make each of them orthogonal means nothing.
    is_muon = config.optimizer == "muon" and config.adapter == "none"
    learning_rate = config.learning_rate
    if learning_rate == "auto":
        learning_rate = LEARNING_RATE_AT_WIDTH_256 * 256 / model.config.hidden_size
        # With LoRA+ it is B that learns as fast as without, and A slower: B alone decides what diverges.
        learning_rate *= 1.0 if config.adapter == "none" else ADAPTER_LEARNING_RATES / config.lora_plus_ratio
    return TrainerSettings(
        total_steps=total_steps,
        learning_rate=learning_rate,
        matrix_learning_rate=config.matrix_learning_rate if is_muon else None,
        lora_plus_ratio=config.lora_plus_ratio,
        # An embedding beside adapters learns as fast as it does where all weights are trained.
        embedding_learning_rate=None
        if config.adapter == "none"
        else learning_rate * config.lora_plus_ratio / ADAPTER_LEARNING_RATES,
        warmup_steps=round(config.warmup_fraction * total_steps),
        decay_fraction=1.0,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        accumulation_steps=accumulation_steps,
        seed=config.seed,
        compute_dtype=device.compute_dtype,
        evaluate_every_steps=math.ceil(total_steps / config.evaluations),
        checkpoint_every_seconds=config.checkpoint_every_seconds,
    )

"""What a run starts from: the device, the tokens, the shape of the model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from stages.pretrain.continuing import continued_model, continued_shape, shape_of_file
from stages.pretrain.recipe import Recipe
from stages.pretrain.spec import PretrainConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import Device, fix_threads, pick_device, why_not_compile
from stages.whitebox.induction import can_wire, wire_induction_circuit
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.prefetch import Prefetched
from stages.whitebox.rank_batches import RankBatches, Share
from stages.whitebox.shapes import SHAPES
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import Batches
from stages.whitebox.trainer_settings import TrainerSettings
from stages.whitebox.training_state import Keep

EXPERT_MULTIPLE = 32
"""Widths that matrix kernels like."""
COMPILE_FROM_FLOPS = {"cpu": 2e14, "cuda": 1e17}
"""About ten minutes of work. Compiling takes up to a minute; on a CPU in float32 it then saves 6 % of the
time, in bfloat16 (measured on another machine) a fifth."""


def choose_device(config: PretrainConfig, session: StageSession) -> Device:
    """The device and its threads, said aloud."""
    device = pick_device(config.precision)
    threads = fix_threads(config.num_threads)
    session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
    return device


def read_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[TokenShards, TokenShards]:
    """The training and the validation split.

    Raises:
        ValueError: a split is missing, or is of another vocabulary than the tokenizer's.
    """
    training, validation = TokenShards(folder, "train"), TokenShards(folder, "validation")
    for shards in (training, validation):
        if shards.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"the {shards.split} tokens are of a vocabulary of {shards.vocab_size}, the tokenizer has "
                f"{tokenizer.vocab_size}; build both again: glassworks rerun tokenizer"
            )
    return training, validation


def make_batches(
    config: PretrainConfig,
    recipe: Recipe,
    training: TokenShards,
    device: torch.device,
    processes: OneProcess,
) -> tuple[Batches, int]:
    """The rows of this process, read ahead unless switched off, and the micro batches of one update in it.

    Processes that share a CPU share its memory, so each takes smaller micro batches.
    """
    shared = processes.size if device.type == "cpu" else 1
    share = Share(recipe.rows_per_step, processes.size, max(1, recipe.micro_batch_size // shared))
    is_alone = processes.size == 1
    rows = PackedBatches(
        training,
        recipe.micro_batch_size if is_alone else share.micro_batch_size,
        recipe.context_tokens,
        config.seed,
        config.separate_documents,
        config.best_fit_packing,
    )
    batches: Batches = rows if is_alone else RankBatches(rows, share, processes.rank)
    if config.prefetch:
        batches = Prefetched(batches, pin_memory=device.type == "cuda")
    return batches, recipe.accumulation_steps if is_alone else share.accumulation_steps


def model_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape of the model to go on from, of a file, of a known model, or what follows from `depth`."""
    if config.continue_from:
        return continued_shape(config, tokenizer)
    if config.shape_from:
        return shape_of_file(config, tokenizer)
    if config.architecture != "depth":
        return SHAPES[config.architecture].config(tokenizer.vocab_size, config.context_tokens)
    dense = ModelConfig.from_depth(
        config.depth,
        tokenizer.vocab_size,
        max_position_embeddings=config.context_tokens,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.qk_norm,
    )
    model = replace(dense, sliding_window=config.sliding_window)
    return _with_experts(model, config) if config.num_experts else model


def _with_experts(dense: ModelConfig, config: PretrainConfig) -> ModelConfig:
    """The experts that a token has are together about as wide as the layer that they replace."""
    has_shared = config.expert_balance == "bias"
    num_at_work = config.num_experts_per_tok + has_shared
    width = -(-dense.intermediate_size // num_at_work)
    return replace(
        dense,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        moe_intermediate_size=-(-width // EXPERT_MULTIPLE) * EXPERT_MULTIPLE,
        scoring_func="sigmoid" if has_shared else "softmax",
        n_shared_experts=int(has_shared),
    )


def make_model(
    config: PretrainConfig, recipe: Recipe, tokenizer: Tokenizer, device: torch.device, session: StageSession
) -> CausalLM:
    """A model with fresh weights that follow from the seed, or with earlier ones."""
    torch.manual_seed(config.seed)
    if config.continue_from:
        model = continued_model(config, recipe.model, tokenizer, session)
    else:
        model = _fresh_model(config, recipe, session)
    model.activation_checkpointing = config.activation_checkpointing
    return model.to(device)


def _fresh_model(config: PretrainConfig, recipe: Recipe, session: StageSession) -> CausalLM:
    model = CausalLM(recipe.model)
    if config.induction_init and can_wire(recipe.model):
        wire_induction_circuit(model, config.seed)
        session.log("one head of each of the first two layers starts as an induction circuit: it can copy")
    return model


def compile_model(
    config: PretrainConfig, recipe: Recipe, model: CausalLM, device: torch.device, session: StageSession
) -> None:
    """Compiles the layers where that pays or was asked for; where it does not work, says why and goes on.

    The decision depends on the recipe and not on a clock, so a resumed run decides the same.
    """
    pays = recipe.flops >= COMPILE_FROM_FLOPS[device.type]
    if config.compile == "off" or (config.compile == "auto" and not pays):
        return
    problem = why_not_compile(device)
    if problem:
        session.warn(f"training without torch.compile, which does not work here: {problem}")
        return
    model.compile_blocks()
    session.log("each layer is compiled; the first step takes up to half a minute")


def trainer_settings(
    config: PretrainConfig, recipe: Recipe, accumulation_steps: int, compute_dtype: torch.dtype
) -> TrainerSettings:
    """What the trainer has to know of the recipe."""
    return TrainerSettings(
        total_steps=recipe.total_steps,
        learning_rate=recipe.learning_rate,
        matrix_learning_rate=recipe.matrix_learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_fraction=config.decay_fraction,
        min_learning_rate_fraction=config.min_learning_rate_fraction,
        decay_shape=config.decay_shape,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        ema_decay=config.ema_decay,
        accumulation_steps=accumulation_steps,
        rows_per_step=recipe.rows_per_step,
        spike_factor=config.spike_factor,
        max_skipped_in_a_row=config.max_skipped_in_a_row,
        max_skipped_steps=config.max_skipped_steps,
        seed=config.seed,
        compute_dtype=compute_dtype,
        evaluate_every_steps=math.ceil(recipe.total_steps / config.evaluations),
        checkpoint_every_seconds=config.checkpoint_every_seconds,
        checkpoint_keep=Keep(config.checkpoints_kept, config.checkpoint_milestone_steps),
    )

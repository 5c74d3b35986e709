"""What a run starts from: the device, the tokens, the shape of the model."""

from __future__ import annotations

from pathlib import Path

import torch

from stages.pretrain.continuing import continued_model, continued_shape
from stages.pretrain.recipe import Recipe
from stages.pretrain.spec import PretrainConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.device import Device, fix_threads, pick_device, why_not_compile
from stages.whitebox.induction import can_wire, wire_induction_circuit
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

COMPILE_FROM_FLOPS = {"cpu": 2e14, "cuda": 1e17}
"""About ten minutes of work. Compiling takes up to a minute; on a CPU in float32 it then saves 6 % of the
time, in bfloat16 (measured on another machine) a fifth."""


def choose_device(config: PretrainConfig, session: StageSession) -> Device:
    """The device and its threads, said aloud."""
    device = pick_device()
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


def model_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape that follows from `depth`, or that of the model to go on from."""
    if config.continue_from:
        return continued_shape(config, tokenizer)
    return ModelConfig.from_depth(
        config.depth,
        tokenizer.vocab_size,
        max_position_embeddings=config.context_tokens,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.qk_norm,
    )


def make_model(
    config: PretrainConfig, recipe: Recipe, tokenizer: Tokenizer, device: torch.device, session: StageSession
) -> CausalLM:
    """A model with fresh weights that follow from the seed, or with earlier ones; compiled where that pays.

    The decision depends on the recipe and not on a clock, so a resumed run decides the same.
    """
    torch.manual_seed(config.seed)
    if config.continue_from:
        model = continued_model(config, recipe.model, tokenizer, session)
    else:
        model = _fresh_model(config, recipe, session)
    model.to(device)
    if config.compile == "auto" and recipe.flops >= COMPILE_FROM_FLOPS[device.type]:
        problem = why_not_compile(device)
        if problem:
            session.warn(f"training without torch.compile, which does not work here: {problem}")
        else:
            model.compile_blocks()
            session.log("each layer is compiled; the first step takes up to half a minute")
    return model


def _fresh_model(config: PretrainConfig, recipe: Recipe, session: StageSession) -> CausalLM:
    model = CausalLM(recipe.model)
    if config.induction_init and can_wire(recipe.model):
        wire_induction_circuit(model, config.seed)
        session.log("one head of each of the first two layers starts as an induction circuit: it can copy")
    return model

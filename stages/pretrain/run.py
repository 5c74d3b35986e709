"""Pretraining as a story: read the tokens, decide the recipe, train, judge on held-out text, save."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from stages.pretrain.balance import balancing, with_router_loss
from stages.pretrain.launch import launch, processes_here
from stages.pretrain.micro_batch import fit_micro_batch, smaller_after_a_lack_of_memory
from stages.pretrain.mistakes import explained
from stages.pretrain.recipe import Recipe, make_recipe, recipe_rows
from stages.pretrain.references import References, measure_references
from stages.pretrain.setup import (
    choose_device,
    compile_model,
    make_batches,
    make_model,
    model_config,
    read_tokens,
    trainer_settings,
)
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.watch import Watch
from stages.runtime.session import StageSession
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import memory_bytes
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.one_process import OneProcess
from stages.whitebox.snapshot import whole_model
from stages.whitebox.tokenizer import TOKENIZER_FILES, Tokenizer
from stages.whitebox.trainer import StepLoss, train


def run(
    config: PretrainConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Train a base model on `tokens`; the model folder opens in transformers, tokenizer included."""
    with explained():
        count = processes_here(config)
    if count * config.nodes > 1:
        return launch(config, inputs, outputs["model"], session, count)
    return train_base_model(config, inputs, outputs["model"], session, OneProcess())


def train_base_model(
    config: PretrainConfig,
    inputs: Mapping[str, Path],
    model_folder: Path,
    session: StageSession,
    processes: OneProcess,
) -> dict[str, float]:
    """The story, in each process that takes part; what the session says counts in the first one."""
    with explained():
        device = choose_device(config, session)
        tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
        training, validation = read_tokens(inputs["tokens"], tokenizer)
        recipe = make_recipe(config, model_config(config, tokenizer), memory_bytes(device.device))
        references = measure_references(training, validation, tokenizer, config.final_validation_tokens)
        model = make_model(config, recipe, tokenizer, device.device, session)
        loss_fn = partial(next_token_loss, z_loss=config.z_loss)
        if processes.rank == 0:
            recipe = fit_micro_batch(config, recipe, model, loss_fn, device, session, processes.size)
        recipe = replace(recipe, **processes.share({"micro_batch_size": recipe.micro_batch_size}) or {})
        _show_plan(recipe, references, session)
        processes.prepare(model)
        compile_model(config, recipe, model, device.device, session)
        batches, accumulation_steps = make_batches(config, recipe, training, device.device, processes)
        watch = Watch(config, recipe, model, validation, tokenizer, device, session, processes)
        with processes.reading(model):
            model.eval()  # the probe left it in training mode, in which layers are compiled
            watch.before()
        with smaller_after_a_lack_of_memory(config, recipe, session):
            summary = train(
                model,
                batches,
                loss_fn,
                trainer_settings(config, recipe, accumulation_steps, device.compute_dtype),
                checkpoint_dir=session.work_dir / "checkpoints",
                on_step=balancing(model, watch.on_step),
                evaluate=watch.evaluate,
                should_stop=session.should_stop,
                log=session.log,
                processes=processes,
            )
        watch.draw(summary, references)
        with processes.reading(model):
            held_out = watch.held_out(config.final_validation_tokens)
        _save(whole_model(model, processes), inputs["tokenizer"], model_folder, processes)
    session.log(
        f"held-out bits per byte {held_out.bits_per_byte:.3f}; gzip -9 reaches "
        f"{references.gzip_bits_per_byte:.3f}, xz -9 {references.xz_bits_per_byte:.3f}"
    )
    session.log(f"MFU is of {watch.peak.flops_per_second / 1e9:,.0f} GFLOP/s: {watch.peak.source}")
    return {
        "validation_bits_per_byte": held_out.bits_per_byte,
        "validation_loss": held_out.loss,
        "train_tokens": float(summary.num_targets),
        "skipped_steps": summary.last.get("skipped_steps", 0.0),
        "tokens_per_second": summary.tokens_per_second,
        "mfu": watch.mfu(summary.tokens_per_second),
        "num_params": float(recipe.model.num_params()),
        "gzip_bits_per_byte": references.gzip_bits_per_byte,
        "xz_bits_per_byte": references.xz_bits_per_byte,
    }


def next_token_loss(model: CausalLM, batch: dict[str, torch.Tensor], z_loss: float = 0.0) -> StepLoss:
    """Cross-entropy of each next token, summed, and `z_loss` x log(Z)^2."""
    hidden = model.hidden_states(batch["ids"], batch.get("positions"), batch.get("document_ids"))
    fused = model.is_compiled and hidden.is_cuda
    weight = model.output_weight()
    loss = StepLoss(*cross_entropy_sum(hidden, weight, batch["targets"], z_loss=z_loss, fused=fused))
    return with_router_loss(model, loss)


def _show_plan(recipe: Recipe, references: References, session: StageSession) -> None:
    session.table("pretrain_recipe", ["what follows from depth", "value"], recipe_rows(recipe))
    session.table(
        "pretrain_references",
        ["who knows only this", "reaches", "meaning"],
        references.rows(),
        caption="Lines to judge the loss by, measured on this run's own text.",
    )
    session.log(
        f"{recipe.model.num_params():,} parameters, {recipe.train_tokens:,} tokens in "
        f"{recipe.total_steps:,} steps"
    )


def _save(model: CausalLM, tokenizer_folder: Path, folder: Path, processes: OneProcess) -> None:
    if processes.rank > 0:
        return
    save_model(model, folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)

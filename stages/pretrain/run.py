"""Pretraining as a story: read the tokens, decide the recipe, train, judge on held-out text, save."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from stages.pretrain.mistakes import explained
from stages.pretrain.recipe import Recipe, make_recipe, recipe_rows
from stages.pretrain.references import References, measure_references
from stages.pretrain.setup import choose_device, make_model, model_config, read_tokens
from stages.pretrain.spec import PretrainConfig
from stages.pretrain.watch import Watch
from stages.runtime.session import StageSession
from stages.whitebox.batches import PackedBatches
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import memory_bytes
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import TOKENIZER_FILES, Tokenizer
from stages.whitebox.trainer import StepLoss, TrainerSettings, TrainingSummary, train


def run(
    config: PretrainConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Train a base model on `tokens`; the model folder opens in transformers, tokenizer included."""
    with explained():
        device = choose_device(config, session)
        tokenizer = Tokenizer.from_folder(inputs["tokenizer"])
        training, validation = read_tokens(inputs["tokens"], tokenizer)
        recipe = make_recipe(config, model_config(config, tokenizer), memory_bytes(device.device))
        references = measure_references(training, validation, tokenizer, config.final_validation_tokens)
        _show_plan(recipe, references, session)
        model = make_model(config, recipe, tokenizer, device.device, session)
        batches = PackedBatches(
            training,
            recipe.micro_batch_size,
            recipe.context_tokens,
            config.seed,
            config.separate_documents,
            config.best_fit_packing,
        )
        watch = Watch(config, recipe, model, validation, tokenizer, device, session)
        watch.before()
        summary = _train(config, recipe, model, batches, device.compute_dtype, watch, session)
        watch.draw(summary, references)
        held_out = watch.held_out(config.final_validation_tokens)
        _save(model, inputs["tokenizer"], outputs["model"])
    session.log(
        f"held-out bits per byte {held_out.bits_per_byte:.3f}; gzip -9 reaches "
        f"{references.gzip_bits_per_byte:.3f}, xz -9 {references.xz_bits_per_byte:.3f}"
    )
    session.log(f"MFU is of {watch.peak.flops_per_second / 1e9:,.0f} GFLOP/s: {watch.peak.source}")
    return {
        "validation_bits_per_byte": held_out.bits_per_byte,
        "validation_loss": held_out.loss,
        "train_tokens": float(summary.num_targets),
        "tokens_per_second": summary.tokens_per_second,
        "mfu": watch.mfu(summary.tokens_per_second),
        "num_params": float(recipe.model.num_params()),
        "gzip_bits_per_byte": references.gzip_bits_per_byte,
        "xz_bits_per_byte": references.xz_bits_per_byte,
    }


def next_token_loss(model: CausalLM, batch: dict[str, torch.Tensor]) -> StepLoss:
    """Cross-entropy of each next token, summed."""
    hidden = model.hidden_states(batch["ids"], batch.get("positions"), batch.get("document_ids"))
    return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))


def _train(
    config: PretrainConfig,
    recipe: Recipe,
    model: CausalLM,
    batches: PackedBatches,
    compute_dtype: torch.dtype,
    watch: Watch,
    session: StageSession,
) -> TrainingSummary:
    settings = TrainerSettings(
        total_steps=recipe.total_steps,
        learning_rate=recipe.learning_rate,
        matrix_learning_rate=recipe.matrix_learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_fraction=config.decay_fraction,
        min_learning_rate_fraction=config.min_learning_rate_fraction,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        accumulation_steps=recipe.accumulation_steps,
        seed=config.seed,
        compute_dtype=compute_dtype,
        evaluate_every_steps=math.ceil(recipe.total_steps / config.evaluations),
        checkpoint_every_seconds=config.checkpoint_every_seconds,
    )
    return train(
        model,
        batches,
        next_token_loss,
        settings,
        checkpoint_dir=session.work_dir / "checkpoints",
        on_step=watch.on_step,
        evaluate=watch.evaluate,
        should_stop=session.should_stop,
        log=session.log,
    )


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


def _save(model: CausalLM, tokenizer_folder: Path, folder: Path) -> None:
    save_model(model, folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)

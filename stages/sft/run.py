"""Supervised fine-tuning as a story: render conversations, pack them, train, see what was forgotten, save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.numpy import save_file

from stages.runtime.session import StageSession
from stages.sft.conversations import count_tokens, read_chats, repeat_by_kind, replayed_documents
from stages.sft.mistakes import explained
from stages.sft.row_batches import RowBatches
from stages.sft.setup import batch_shape, choose_context, open_model, trainer_settings
from stages.sft.spec import SftConfig
from stages.sft.watch import Scores, Watch
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import IM_END, RenderedChat
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import PackedRows, pack
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import StepLoss, TrainingSummary, train


def run(
    config: SftConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Teach `model` to answer; the model folder opens in transformers, tokenizer and template included."""
    with explained():
        device = pick_device()
        threads = fix_threads(config.num_threads)
        session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
        tokenizer, model = open_model(inputs, device.device)
        chats = read_chats(inputs["conversations"], tokenizer, config.max_conversations)
        context_tokens = choose_context(config, model, chats)
        training = repeat_by_kind(chats["train"], config.kind_weights)
        training += _replay(config, inputs["tokens"], training, context_tokens)
        rows = pack(training, context_tokens, tokenizer.pad_id)
        held_out = chats["validation"].head(config.validation_conversations).rendered
        held_out_rows = pack(held_out, context_tokens, tokenizer.pad_id)
        _say_what_was_packed(rows, training, session)
        micro_batch_size, accumulation_steps = batch_shape(config, rows)
        batches = RowBatches(rows, micro_batch_size, config.seed)
        _write_preview(rows, batches, outputs["preview"])
        validation = TokenShards(inputs["tokens"], "validation")
        watch = Watch(config, model, tokenizer, held_out_rows, validation, session)
        model.eval()
        before = watch.measure()
        settings = trainer_settings(config, model, rows, micro_batch_size, accumulation_steps, device)
        watch.total_steps = settings.total_steps
        summary = train(
            model,
            batches,
            assistant_loss,
            settings,
            checkpoint_dir=session.work_dir / "checkpoints",
            on_step=watch.on_step,
            evaluate=watch.evaluate,
            should_stop=session.should_stop,
            log=session.log,
        )
        after = watch.latest or watch.measure()
        watch.report(before, after, summary)
        save_model(model, outputs["model"], stop_ids=[tokenizer.special_id(IM_END)])
        copy_tokenizer(inputs["tokenizer"], outputs["model"])
    return _headline(before, after, summary, rows)


def assistant_loss(model: CausalLM, batch: dict[str, torch.Tensor]) -> StepLoss:
    """Cross-entropy of the assistant's tokens, summed; each conversation sees only itself."""
    hidden = model.hidden_states(batch["ids"], batch["positions"], batch["document_ids"])
    return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))


def _replay(
    config: SftConfig, tokens: Path, training: list[RenderedChat], context_tokens: int
) -> list[RenderedChat]:
    wanted = count_tokens(training) * config.replay_fraction / (1 - config.replay_fraction)
    if wanted < 1:
        return []
    return replayed_documents(TokenShards(tokens, "train"), int(wanted), context_tokens, config.seed)


def _say_what_was_packed(rows: PackedRows, training: list[RenderedChat], session: StageSession) -> None:
    targets = sum(chat.num_targets for chat in training)
    session.log(
        f"{len(training):,} conversations and replayed documents, {count_tokens(training):,} tokens "
        f"({targets:,} trained on), in {rows.num_rows:,} rows that are {rows.fill_fraction:.1%} full"
    )
    if rows.num_truncated:
        session.warn(f"{rows.num_truncated:,} conversations are longer than a row: their end was cut off")
    if rows.num_without_targets:
        session.warn(f"{rows.num_without_targets:,} conversations have nothing to train on: left out")


def _write_preview(rows: PackedRows, batches: RowBatches, folder: Path) -> None:
    picked = RowBatches(rows, batches.batch_size, batches.seed).next_rows()
    tensors = {
        "ids": rows.ids_RxT[picked],
        "labels": rows.labels_RxT[picked],
        "document_ids": rows.document_ids_RxT[picked],
    }
    save_file(tensors, folder / "preview.safetensors")
    (folder / "preview.safetensors").chmod(0o644)


def _headline(before: Scores, after: Scores, summary: TrainingSummary, rows: PackedRows) -> dict[str, float]:
    return {
        "validation_loss": after.chats.loss,
        "base_validation_loss": before.chats.loss,
        "exact_tool_calls": after.chats.exact_calls,
        "validation_bits_per_byte": after.bits_per_byte,
        "base_validation_bits_per_byte": before.bits_per_byte,
        "bits_per_byte_increase": after.bits_per_byte - before.bits_per_byte,
        "train_targets": float(summary.num_targets),
        "tokens_per_second": summary.tokens_per_second,
        "row_fill_fraction": rows.fill_fraction,
        "num_truncated": float(rows.num_truncated),
        "num_without_targets": float(rows.num_without_targets),
    }

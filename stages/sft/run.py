"""Supervised fine-tuning as a story: render conversations, pack them, train, see what was forgotten, save."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.runtime.session import StageSession
from stages.sft.adapters import put_adapter
from stages.sft.batch_view import write_preview
from stages.sft.conversations import read_chats
from stages.sft.early_stop import EarlyStop
from stages.sft.mistakes import explained
from stages.sft.row_batches import RowBatches
from stages.sft.setup import batch_shape, choose_context, open_model, trainer_settings
from stages.sft.spec import SftConfig
from stages.sft.teaching import answers_of, check_reach, open_teacher
from stages.sft.training_loss import training_loss
from stages.sft.training_rows import held_out_rows, training_rows
from stages.sft.watch import Scores, Watch
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import IM_END
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.packing import PackedRows
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import TrainingSummary, train


def run(
    config: SftConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Teach `model` to answer; the model folder opens in transformers, tokenizer and template included."""
    with explained():
        device = pick_device(config.precision)
        threads = fix_threads(config.num_threads)
        session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
        tokenizer, model = open_model(config, inputs, device.device)
        teacher = open_teacher(config, tokenizer, device.device)
        answers = answers_of(config, teacher, tokenizer, inputs["conversations"], session)
        chats = read_chats(inputs["conversations"], tokenizer, config.max_conversations, answers)
        context_tokens = choose_context(config, model, chats)
        check_reach(teacher, context_tokens)
        rows = training_rows(config, inputs["tokens"], chats["train"], context_tokens, tokenizer, session)
        held_out = held_out_rows(config, chats["validation"], context_tokens, tokenizer)
        micro_batch_size, accumulation_steps = batch_shape(config, rows, device.device)
        batches = RowBatches(rows, micro_batch_size, config.seed)
        write_preview(rows, batches, tokenizer, outputs["preview"], session)
        validation = TokenShards(inputs["tokens"], "validation")
        watch = Watch(config, model, tokenizer, held_out, validation, session)
        model.eval()
        before = watch.measure()
        adapted = put_adapter(config, model, tokenizer, session)
        settings = trainer_settings(config, model, rows, micro_batch_size, accumulation_steps, device)
        watch.total_steps = settings.total_steps
        early = EarlyStop(model, config.patience, session.work_dir / "best", session.log)
        summary = train(
            model,
            batches,
            training_loss(config, teacher),
            settings,
            checkpoint_dir=session.work_dir / "checkpoints",
            on_step=watch.on_step,
            evaluate=watch.evaluate,
            should_stop=session.should_stop,
            is_enough=early.is_enough if config.patience else None,
            log=session.log,
        )
        is_earlier = bool(config.patience) and early.restore(summary)
        after = watch.measure() if is_earlier or watch.latest is None else watch.latest
        watch.report(before, after, summary)
        adapted.finish(outputs["model"])
        save_model(model, outputs["model"], stop_ids=[tokenizer.special_id(IM_END)])
        copy_tokenizer(inputs["tokenizer"], outputs["model"], config.reasoning)
    return _headline(before, after, summary, rows)


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
        "num_cut_before_call": float(rows.num_cut_before_call),
        "num_without_targets": float(rows.num_without_targets),
    }

"""DPO as a story: score the pairs once as they are, tune towards the better answers, check what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from stages.dpo.mistakes import explained
from stages.dpo.pairs import PairBatches, Pairs, read_pairs
from stages.dpo.preference import preference_loss, stored_log_probs
from stages.dpo.setup import choose_context, open_model, trainer_settings
from stages.dpo.spec import DpoConfig
from stages.dpo.watch import Scores, Watch
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import IM_END
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import TrainingSummary, train


def run(
    config: DpoConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Tune `model` towards the chosen answers; fails when that costs too many bits per byte."""
    with explained():
        device = pick_device()
        threads = fix_threads(config.num_threads)
        session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
        tokenizer, model = open_model(inputs, device.device)
        pairs = read_pairs(inputs["preferences"], tokenizer, choose_context(config, model), config.max_pairs)
        _say_what_was_left_out(pairs, session)
        held_out = pairs["validation"].head(config.validation_pairs)
        documents = TokenShards(inputs["tokens"], "validation")
        watch = Watch(config, model, tokenizer, held_out, documents, device.compute_dtype, session)
        reference_2xP = _reference("train", pairs["train"], watch, session)
        watch.reference_2xP = _reference("validation", held_out, watch, session)
        before = watch.measure()
        batches = PairBatches(
            pairs["train"],
            reference_2xP,
            config.batch_pairs,
            tokenizer.pad_id,
            config.seed,
            config.micro_batch_pairs,
        )
        settings = trainer_settings(config, model, batches, device.compute_dtype)
        watch.total_steps = settings.total_steps
        summary = train(
            model,
            batches,
            preference_loss(config.beta),
            settings,
            checkpoint_dir=session.work_dir / "checkpoints",
            on_step=watch.on_step,
            evaluate=watch.evaluate,
            should_stop=session.should_stop,
            log=session.log,
        )
        after = watch.latest or watch.measure()
        watch.report(before, after, summary)
        check_degradation(config, before.bits_per_byte, after.bits_per_byte, session)
        save_model(model, outputs["model"], stop_ids=[tokenizer.special_id(IM_END)])
        copy_tokenizer(inputs["tokenizer"], outputs["model"])
    return _headline(before, after, summary)


def check_degradation(config: DpoConfig, before: float, after: float, session: StageSession) -> None:
    """Compare bits per byte before and after. Raises UserError (or warns) when they rose by too much."""
    increase = after - before
    session.log(f"held-out bits per byte {before:.4f} before, {after:.4f} after ({increase:+.4f})")
    if increase <= config.max_bits_per_byte_increase:
        return
    message = (
        f"DPO damaged the model: held-out bits per byte rose by {increase:.4f} from {before:.4f}, "
        f"allowed are {config.max_bits_per_byte_increase}"
    )
    if config.on_degradation == "warn":
        session.warn(message)
        return
    raise UserError(
        message,
        hint="set [dpo] learning_rate or epochs lower, beta higher, or on_degradation = 'warn' to keep it",
    )


def _say_what_was_left_out(pairs: Mapping[str, Pairs], session: StageSession) -> None:
    counts = ", ".join(f"{len(split):,} {name}" for name, split in pairs.items())
    session.log(f"preference pairs: {counts}")
    if too_long := sum(split.num_too_long for split in pairs.values()):
        session.warn(f"{too_long:,} pairs are longer than the model can read: left out")
    if equal := sum(split.num_equal for split in pairs.values()):
        session.warn(f"{equal:,} pairs have the same answer twice: left out")


def _reference(name: str, pairs: Pairs, watch: Watch, session: StageSession) -> torch.Tensor:
    path = session.work_dir / f"reference-{name}.safetensors"
    return stored_log_probs(path, pairs, lambda: watch.log_probs(pairs, f"{name} pairs"))


def _headline(before: Scores, after: Scores, summary: TrainingSummary) -> dict[str, float]:
    low, high = after.pairs.interval
    return {
        "validation_accuracy": after.pairs.accuracy,
        "validation_accuracy_low": low,
        "validation_accuracy_high": high,
        "validation_margin": after.pairs.margin,
        "num_validation_pairs": float(after.pairs.num_pairs),
        "validation_bits_per_byte": after.bits_per_byte,
        "sft_validation_bits_per_byte": before.bits_per_byte,
        "bits_per_byte_increase": after.bits_per_byte - before.bits_per_byte,
        "train_pairs": float(summary.num_targets),
        "pairs_per_second": summary.tokens_per_second,
    }

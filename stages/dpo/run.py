"""Preference learning as a story: score the answers once as they are, tune towards the better, check the
cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.dpo import reward
from stages.dpo.guard import Guard, check_documents
from stages.dpo.left_out import usable_pairs
from stages.dpo.mistakes import explained
from stages.dpo.online import run_online
from stages.dpo.outcome import headline, report
from stages.dpo.pairs import read_pairs
from stages.dpo.setup import choose_context, open_model, trainer_settings, updates_on, with_micro_batches
from stages.dpo.spec import ONLINE, DpoConfig
from stages.dpo.task import held_out_reference, training_task
from stages.dpo.watch import Watch
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import IM_END
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import train


def run(
    config: DpoConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Tune `model` towards the better answers; fails when that costs too much, see `guard.py`."""
    if config.method in ONLINE:
        with explained():
            return run_online(with_micro_batches(config), inputs, outputs, session)
    with explained():
        device = pick_device(config.precision)
        threads = fix_threads(config.num_threads)
        session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
        tokenizer, model = open_model(inputs, device.device)
        context_tokens = choose_context(config, model)
        found = read_pairs(inputs["preferences"], tokenizer, context_tokens, config.max_pairs, config.method)
        pairs = usable_pairs(config, found, context_tokens, session)
        config = with_micro_batches(config, pairs["train"])
        held_out = pairs["validation"].head(config.validation_pairs)
        documents = TokenShards(inputs["tokens"], "validation")
        watch = Watch(config, model, tokenizer, held_out, documents, device.compute_dtype, session)
        if config.method == "reward":
            return reward.run(config, inputs, outputs, session, pairs["train"], watch)
        watch.reference_N = held_out_reference(watch)
        before = watch.measure()
        watch.show(before.said, step=0)
        batches, objective = training_task(pairs["train"], watch)
        steps, parts = updates_on(config, batches, session.log), batches.batches_per_update
        settings = trainer_settings(config, model, steps, parts, device.compute_dtype)
        watch.total_steps = settings.total_steps
        stop_ids = [tokenizer.special_id(IM_END)]
        chosen_before = before.pairs.chosen_log_prob_per_token
        guard = Guard(config, model, inputs, stop_ids, session, chosen_before)
        summary = train(
            model,
            batches,
            objective,
            settings,
            checkpoint_dir=session.work_dir / "checkpoints",
            on_step=watch.on_step,
            evaluate=watch.evaluate,
            should_stop=session.should_stop,
            is_enough=guard.is_enough,
            log=session.log,
        )
        if problem := guard.problem(summary):
            guard.go_back(problem)
            watch.latest = None
        after = watch.latest or watch.measure()
        report(config, before, after, summary, session)
        check_documents(config, before.bits_per_byte, after.bits_per_byte, session)
        save_model(model, outputs["model"], stop_ids)
        copy_tokenizer(inputs["tokenizer"], outputs["model"], tokenizer.reasoning)
    return headline(before, after, summary)

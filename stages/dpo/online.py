"""Learning by reward as a story: set tasks, sample answers, judge them, make the better ones likelier."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from stages.dpo.arithmetic_tasks import Task, TrainingTasks, held_out_tasks, scenario_expressions
from stages.dpo.experience import ExperienceBatches
from stages.dpo.guard import OnlineGuard, check_documents
from stages.dpo.online_watch import OnlineScores, OnlineWatch
from stages.dpo.policy_step import policy_loss
from stages.dpo.sampled_answers import Answerer
from stages.dpo.setup import open_model, trainer_settings
from stages.dpo.spec import DpoConfig
from stages.dpo.value_model import ValueModel
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import IM_END
from stages.whitebox.checkpoint import save_model
from stages.whitebox.device import fix_threads, pick_device
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import TrainingSummary, train


def run_online(
    config: DpoConfig, inputs: Mapping[str, Path], outputs: Mapping[str, Path], session: StageSession
) -> dict[str, float]:
    """Tune `model` towards rewarded answers; fails when that costs too much."""
    device = pick_device(config.precision)
    threads = fix_threads(config.num_threads)
    session.log(f"computing on {device.device.type} with {threads} threads: {device.reason}")
    tokenizer, model = open_model(inputs, device.device)
    held_out, tasks = set_tasks(config, inputs["scenarios"])
    answerer = Answerer(config, model, tokenizer, device.compute_dtype)
    critic = ValueModel(model) if config.method == "ppo" else None
    reference = frozen_copy(config, model, session)
    batches = ExperienceBatches(config, answerer, tasks, critic, reference)
    documents = TokenShards(inputs["tokens"], "validation")
    watch = OnlineWatch(config, answerer, batches, held_out, documents, inputs["model"], session)
    before = watch.measure()
    session.log(f"{100 * before.success:.1f} % of {len(held_out)} held-out tasks are answered right before")
    watch.show_samples(before, step=0)
    trained: nn.Module = critic or model
    parts = batches.batches_per_update
    settings = trainer_settings(config, model, config.updates, parts, device.compute_dtype)
    stop_ids = [tokenizer.special_id(IM_END)]
    guard = OnlineGuard(config, model, inputs, stop_ids, session)
    summary = train(
        trained,
        batches,
        policy_loss(config, batches),
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
    watch.report(before, after, summary)
    check_documents(config, before.bits_per_byte, after.bits_per_byte, session)
    save_model(model, outputs["model"], stop_ids)
    copy_tokenizer(inputs["tokenizer"], outputs["model"], tokenizer.reasoning)
    return headline(before, after, summary, batches.stats)


def set_tasks(config: DpoConfig, scenarios: Path) -> tuple[list[Task], TrainingTasks]:
    """Held-out tasks, and those of training, which share no expression with them or the agent's scenarios."""
    if config.method == "grpo" and config.group_size < 2:
        raise ValueError(
            "group_size is 1, but grpo compares the answers to a task with each other: set it to 2 or more"
        )
    reserved = scenario_expressions(scenarios)
    held_out = held_out_tasks(config.validation_tasks, config.seed, config.multi_step_fraction, reserved)
    used = reserved.union(*(task.expressions for task in held_out))
    shares = config.multi_step_fraction, config.own_phrasings_fraction
    return held_out, TrainingTasks(config.seed, *shares, used)


def frozen_copy(config: DpoConfig, model: CausalLM, session: StageSession) -> CausalLM | None:
    """The model as it is now, where its log-probabilities have a price on every new answer."""
    if config.kl_coefficient == 0:
        return None
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    session.log(f"kl_coefficient keeps the SFT model in memory beside the policy: {num_bytes / 1e6:,.0f} MB")
    return copy.deepcopy(model).requires_grad_(False).eval()


def headline(
    before: OnlineScores, after: OnlineScores, summary: TrainingSummary, stats: Mapping[str, float]
) -> dict[str, float]:
    """The metrics of the stage; stats: of the answers that were sampled last."""
    low, high = after.interval
    return {
        "validation_success": after.success,
        "validation_success_low": low,
        "validation_success_high": high,
        "sft_validation_success": before.success,
        "num_validation_tasks": float(len(after.answers)),
        "validation_reward": after.reward[0],
        "validation_reward_half_interval": after.reward[1],
        "sft_validation_reward": before.reward[0],
        "validation_kl": after.kl,
        "validation_entropy": after.entropy,
        "answer_tokens": after.tokens,
        "groups_without_signal": stats["groups_without_signal"],
        "validation_bits_per_byte": after.bits_per_byte,
        "sft_validation_bits_per_byte": before.bits_per_byte,
        "bits_per_byte_increase": after.bits_per_byte - before.bits_per_byte,
        "train_tokens": float(summary.num_targets),
        "tokens_per_second": summary.tokens_per_second,
    }

"""Stops a run that ruins the model, keeps the last good weights, and says what to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from stages.dpo.spec import OF_METHODS, ONLINE, DpoConfig
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.whitebox.chat_template import reasoning_of
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import TrainingSummary

STEP_FILE = "step.json"
HELD_BY_BETA = frozenset({"dpo", "ipo", "kto"})


def advice(config: DpoConfig, wanted: str = "") -> str:
    """What to change when a run costs too much: only settings that the method heeds.

    Args:
        wanted: "likely" where chosen answers are to stay likely, for which `sft_term` helps.
    """
    if config.method in ONLINE:
        return "set [dpo] learning_rate or updates lower, kl_coefficient higher"
    parts = ["set [dpo] learning_rate or epochs lower"]
    if config.method in HELD_BY_BETA:
        parts.append("beta higher")
    if wanted == "likely" and config.method in OF_METHODS["sft_term",]:
        parts.append("sft_term = 1 or more to keep the chosen answers likely")
    return ", ".join(parts)


class Guard:
    """Looks at each evaluation: ends the training, or keeps the weights as the last good ones.

    What was found is read from the history of the run, which its checkpoints carry: a run that was killed
    decides the same when it goes on.
    """

    drift = "the reference on held-out chosen answers"
    """What `validation_kl` is from, and on which answers."""

    def __init__(
        self,
        config: DpoConfig,
        model: CausalLM,
        inputs: Mapping[str, Path],
        stop_ids: Sequence[int],
        session: StageSession,
        chosen_before: float | None = None,
    ) -> None:
        """chosen_before: log-probability of held-out chosen answers before it began, in nats per token."""
        self.config, self.model, self.inputs = config, model, inputs
        self.stop_ids, self.session, self.chosen_before = stop_ids, session, chosen_before
        self.folder = session.work_dir / "last_good"

    def is_enough(self, summary: TrainingSummary) -> bool:
        """Called after each evaluation, and when a run goes on. Whether it should end here."""
        if self.problem(summary):
            return True
        evaluated = summary.history.get("validation_kl", [])
        if evaluated and evaluated[-1][0] == summary.steps:
            self._keep(summary.steps)
        return False

    def problem(self, summary: TrainingSummary) -> str:
        """Which bound the last evaluation passed, and by how much; "" if it passed none."""
        config, history = self.config, summary.history
        if "validation_kl" not in history:
            return ""
        step, kl = history["validation_kl"][-1]
        if self.chosen_before is not None:
            drop = self.chosen_before - history["validation_chosen_log_prob_per_token"][-1][1]
            if not drop <= config.max_chosen_drop:
                return (
                    f"at step {step} held-out chosen answers had become {drop:.2f} nats per token less "
                    f"likely than before (max_chosen_drop is {config.max_chosen_drop})"
                )
        if not kl <= config.max_kl:
            return (
                f"at step {step} the policy was {kl:.2f} nats per token from {self.drift} "
                f"(max_kl is {config.max_kl})"
            )
        return ""

    def _keep(self, step: int) -> None:
        """Whole or not at all: a kill while it is written leaves the last one."""
        unfinished = self.folder.with_name(self.folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        save_model(self.model, unfinished, self.stop_ids)
        copy_tokenizer(self.inputs["tokenizer"], unfinished, reasoning_of(self.inputs["model"]))
        (unfinished / STEP_FILE).write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        unfinished.replace(self.folder)

    def go_back(self, problem: str) -> None:
        """After `problem` puts the last good weights into the model, or those that it came with, and warns.

        Raises UserError where `on_degradation` is "fail".
        """
        kept = self._kept_step()
        where = "there was no evaluation before"
        if kept is not None:
            where = f"the weights of step {kept}, which were within the bounds, are in {self.folder}"
        change = f"{advice(self.config, 'likely')}, or a higher bound"
        if self.config.on_degradation == "fail":
            hint = f"{change}; on_degradation = 'warn' takes the last good weights"
            raise UserError(f"training was stopped: {problem}; {where}", hint=hint)
        taken = "the model stays as it came" if kept is None else f"the weights of step {kept} are taken"
        self.session.warn(f"training was stopped: {problem}; {taken}; {change}")
        source = self.inputs["model"] if kept is None else self.folder
        device = self.model.output_weight().device
        self.model.load_state_dict(load_model(source, device, torch.float32).state_dict())

    def _kept_step(self) -> int | None:
        path = self.folder / STEP_FILE
        return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.is_file() else None


class OnlineGuard(Guard):
    """The same where the policy samples its own answers: there are no chosen ones."""

    drift = "the SFT model on answers of its own"


def check_documents(config: DpoConfig, before: float, after: float, session: StageSession) -> None:
    """Compare bits per byte before and after. Raises UserError (or warns) when they rose by too much."""
    increase = after - before
    session.log(f"held-out bits per byte {before:.4f} before, {after:.4f} after ({increase:+.4f})")
    if increase <= config.max_bits_per_byte_increase:
        return
    message = (
        f"{config.method.upper()} damaged the model: held-out bits per byte rose by {increase:.4f} from "
        f"{before:.4f}, allowed are {config.max_bits_per_byte_increase}"
    )
    if config.on_degradation == "warn":
        session.warn(message)
        return
    raise UserError(message, hint=f"{advice(config)}, or on_degradation = 'warn' to keep it")

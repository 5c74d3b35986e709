"""Answers to tasks, sampled by the policy as it is now, judged, and their rewards.

Shapes: R rows (answers), T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.dpo.arithmetic_tasks import Task
from stages.dpo.spec import DpoConfig
from stages.dpo.turns import Calculator, read_turns
from stages.dpo.verifiable_rewards import Verdict, judge
from stages.whitebox.chat_format import IM_END, render
from stages.whitebox.model import CausalLM
from stages.whitebox.policy_losses import overlong_penalty
from stages.whitebox.reply import spell
from stages.whitebox.rollout import Rollout, Sampling, roll_out
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import compute_in

GREEDY = Sampling(temperature=0.0)
ANSWERED_AT_ONCE = 128
"""Rows with one cache: as many as one update asks for by default, but not all held-out tasks."""


@dataclass(frozen=True)
class Answer:
    """One answer to a task, with all that a program says of it."""

    task: Task
    prompt_ids: list[int]
    rollout: Rollout
    verdict: Verdict
    reward: float

    @property
    def entropy(self) -> float:
        """Mean entropy of the distributions that its tokens were drawn from, in nats."""
        return sum(self.rollout.entropies) / max(1, self.rollout.num_sampled)


class Answerer:
    """Lets a model answer tasks with the calculator at hand."""

    def __init__(
        self, config: DpoConfig, model: CausalLM, tokenizer: Tokenizer, compute_dtype: torch.dtype
    ) -> None:
        self.config, self.model, self.tokenizer, self.compute_dtype = config, model, tokenizer, compute_dtype
        self.sampled = Sampling(config.rollout_temperature, config.rollout_top_p)

    def answer(self, tasks: Sequence[Task], sampling: Sampling, seed_name: str) -> list[Answer]:
        """One answer per task; `seed_name` and a row's place decide what it draws.

        Raises:
            ValueError: a task does not fit into the model's context.
        """
        tokenizer, config = self.tokenizer, self.config
        prompts = [
            render([{"role": "user", "content": task.prompt}], tokenizer, add_generation_prompt=True).ids
            for task in tasks
        ]
        seeds = [_seed(f"{seed_name}/{row}") for row in range(len(tasks))]
        rollouts = []
        with compute_in(self.compute_dtype, self.model.output_weight().device):
            for start in range(0, len(tasks), ANSWERED_AT_ONCE):
                some = slice(start, start + ANSWERED_AT_ONCE)
                rollouts += roll_out(
                    self.model,
                    prompts[some],
                    max_new_tokens=config.max_answer_tokens,
                    stop_ids=[tokenizer.special_id(IM_END), tokenizer.eos_id],
                    sampling=sampling,
                    seeds=seeds[some],
                    on_stop=Calculator(tokenizer, config.max_calls),
                )
        return [self._judged(*row) for row in zip(tasks, prompts, rollouts, strict=True)]

    def _judged(self, task: Task, prompt_ids: list[int], rollout: Rollout) -> Answer:
        config = self.config
        verdict = judge(task, read_turns(rollout, self.tokenizer), config.answer_form)
        penalty = overlong_penalty(len(rollout.ids), config.max_answer_tokens, config.overlong_tokens)
        return Answer(task, prompt_ids, rollout, verdict, verdict.reward(config) + penalty)

    def written(self, answer: Answer) -> str:
        """The answer with calls and results, for a person."""
        return spell(self.tokenizer, answer.rollout.ids)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")

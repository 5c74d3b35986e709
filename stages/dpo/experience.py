"""What one update learns from: answers that the policy has just given, with their advantages.

The policy's weights decide the answers, so a resumed run samples the same ones again: nothing random is kept
between updates, every draw is seeded by its number. Only where several updates share their answers does the
state carry them along.

Shapes: R rows (answers), T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.dpo.arithmetic_tasks import Task, TrainingTasks
from stages.dpo.sampled_answers import Answer, Answerer
from stages.dpo.spec import DpoConfig
from stages.dpo.value_model import ValueModel
from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.policy_losses import gae, group_advantages, has_signal, whitened
from stages.whitebox.trainer import compute_in, largest_part

MAX_DRAWS = 3
"""How often dynamic sampling asks again for groups whose rewards differ."""

Row = dict[str, Any]
"""An answer as JSON: "ids", "start" of the answer, "chosen" flags, and a list of numbers per quantity."""


class ExperienceBatches:
    """Rows of one update after the other, in micro batches; sampled when the first of them is asked for.

    Each batch has "ids" and "targets" (RxT int64; a target where the model chose the next token),
    "advantages", and where they are needed "old", "reference", "values" and "returns" (RxT float32).
    """

    def __init__(
        self,
        config: DpoConfig,
        answerer: Answerer,
        tasks: TrainingTasks,
        critic: ValueModel | None = None,
        reference: CausalLM | None = None,
    ) -> None:
        self.config, self.answerer, self.tasks = config, answerer, tasks
        self.critic, self.reference = critic, reference
        self.num_rows = config.prompts_per_step * config.group_size
        self.batch_rows = largest_part(self.num_rows, 2 * config.micro_batch_pairs)
        self.batches_per_update = self.num_rows // self.batch_rows
        self.batches_per_draw = self.batches_per_update * config.updates_per_rollout
        self._drawn = 0
        self._rows: list[Row] = []
        self.stats: dict[str, float] = {}
        """Means over the answers that were sampled last."""
        self.latest: list[Answer] = []

    def next_batch(self) -> dict[str, Tensor]:
        """The next micro batch; rows that a draw lacks are empty."""
        number, place = divmod(self._drawn, self.batches_per_draw)
        if place == 0:
            self._rows = self._collect(number)
        self._drawn += 1
        start = place % self.batches_per_update * self.batch_rows
        return self.tensors(self._rows[start : start + self.batch_rows])

    def state_dict(self) -> dict[str, Any]:
        """How many batches were drawn, and the rows that more updates will learn from."""
        is_shared = self._drawn % self.batches_per_draw != 0
        rows = self._rows if is_shared else []
        return {"seed": self.config.seed, "drawn": self._drawn, "rows": rows, "stats": self.stats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. Raises ValueError when it is one of another seed."""
        if state["seed"] != self.config.seed:
            raise ValueError(f"the saved answers have seed {state['seed']}, these have {self.config.seed}")
        self._drawn, self._rows = int(state["drawn"]), list(state["rows"])
        self.stats = dict(state["stats"])

    def describe(self, start: dict[str, Any], end: dict[str, Any]) -> str:
        """What lies between two states, for the message about a step that is skipped."""
        first, last = (place // self.batches_per_draw for place in (start["drawn"], end["drawn"] - 1))
        return f"answers of draw {first}" if first == last else f"answers of draws {first} to {last}"

    def _collect(self, number: int) -> list[Row]:
        """Answers with a signal, the shortest first, so that micro batches have little padding."""
        groups = self._groups(number)
        answers = [answer for group in groups for answer in group]
        if not answers:
            return []
        rows = [answer_row(answer) for answer in answers]
        self._add_log_probs(rows)
        if self.critic is not None:
            self._add_advantages_of_values(rows, answers)
        else:
            rewards_R = torch.tensor([answer.reward for answer in answers])
            advantages_R = group_advantages(rewards_R, self.config.group_size, self.config.divide_by_std)
            for row, advantage in zip(rows, advantages_R.tolist(), strict=True):
                row["advantages"] = [advantage] * len(row["chosen"])
        return sorted(rows, key=lambda row: len(row["ids"]))

    def _groups(self, number: int) -> list[list[Answer]]:
        """Answers side by side for each task; under dynamic sampling only those whose rewards differ."""
        wanted, tasks = self.config.prompts_per_step, self.tasks.draw(number)
        replaces = self.config.dynamic_sampling and self.critic is None  # ppo learns without a difference too
        kept: list[list[Answer]] = []
        self.latest, with_signal = [], 0
        for draw in range(MAX_DRAWS if replaces else 1):
            groups = self._sample(list(itertools.islice(tasks, wanted)), f"{self.tasks.seed}/{number}/{draw}")
            self.latest += [answer for group in groups for answer in group]
            differing = [group for group in groups if _differs(group)]
            with_signal += len(differing)
            kept += differing if replaces else groups
            if len(kept) >= wanted:
                break
        num_groups = len(self.latest) // self.config.group_size
        self.stats = _means(self.latest) | {"groups_without_signal": 1 - with_signal / num_groups}
        return kept[:wanted]

    def _sample(self, tasks: Sequence[Task], seed_name: str) -> list[list[Answer]]:
        size = self.config.group_size
        repeated = [task for task in tasks for _ in range(size)]
        answers = self.answerer.answer(repeated, self.answerer.sampled, seed_name)
        return [answers[start : start + size] for start in range(0, len(answers), size)]

    @torch.no_grad()
    def _add_log_probs(self, rows: list[Row]) -> None:
        """What the loss compares with: the policy that answered, the reference, and the values then."""
        needs_old = self.critic is not None or self.config.updates_per_rollout > 1
        for start in range(0, len(rows), self.batch_rows):
            part = rows[start : start + self.batch_rows]
            batch = self.tensors(part)
            if needs_old:
                _store(part, "old", self.log_probs(self.answerer.model, batch))
            if self.reference is not None:
                _store(part, "reference", self.log_probs(self.reference, batch))
            if self.critic is not None:
                with self._computing():
                    _store(part, "values", self.critic.values(batch["ids"]))

    def log_probs(self, model: CausalLM, batch: dict[str, Tensor]) -> Tensor:
        """logp_RxT of the chosen tokens at the temperature of the draw, 0 elsewhere."""
        device = model.output_weight().device
        with self._computing():
            hidden_RxTxD = model.hidden_states(batch["ids"].to(device)) / self.config.rollout_temperature
            return token_log_probs(hidden_RxTxD, model.output_weight(), batch["targets"].to(device))

    def _computing(self) -> torch.autocast:
        return compute_in(self.answerer.compute_dtype, self.answerer.model.output_weight().device)

    def _add_advantages_of_values(self, rows: list[Row], answers: Sequence[Answer]) -> None:
        """PPO: the reward comes with the last chosen token, the price of the KL with every one."""
        batch = self.tensors(rows)
        mask_RxT = (batch["targets"] != IGNORED).float()
        rewards_RxT = torch.zeros_like(mask_RxT)
        if self.reference is not None:
            rewards_RxT -= self.config.kl_coefficient * (batch["old"] - batch["reference"])
        last_R = mask_RxT.shape[1] - 1 - mask_RxT.flip(1).argmax(dim=1)
        rewards_RxT[torch.arange(len(rows)), last_R] += torch.tensor([answer.reward for answer in answers])
        found = gae(rewards_RxT, batch["values"], mask_RxT, self.config.discount, self.config.gae_decay)
        _store(rows, "advantages", whitened(found.advantages_RxT, mask_RxT))
        _store(rows, "returns", found.returns_RxT)

    def tensors(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Right-padded: attention looks only to the left, so padding changes nothing."""
        width = max((len(row["ids"]) for row in rows), default=2)
        shape = (max(len(rows), 1), width)
        ids_RxT = torch.full(shape, self.answerer.tokenizer.pad_id)
        targets_RxT = torch.full(shape, IGNORED)
        numbers = sorted({name for row in rows for name in row} - {"ids", "start", "chosen"})
        batch = {"ids": ids_RxT, "targets": targets_RxT, "advantages": torch.zeros(shape)}
        batch |= {name: torch.zeros(shape) for name in numbers}
        for place, row in enumerate(rows):
            ids, chosen = torch.tensor(row["ids"]), torch.tensor(row["chosen"])
            ids_RxT[place, : len(ids)] = ids
            answer = slice(row["start"] - 1, len(ids) - 1)
            targets_RxT[place, answer] = torch.where(chosen, ids[row["start"] :], IGNORED)
            for name in numbers:
                batch[name][place, answer] = torch.tensor(row[name])
        return batch


def answer_row(answer: Answer) -> Row:
    """What is kept of an answer to learn from it."""
    prompt, rollout = answer.prompt_ids, answer.rollout
    return {"ids": [*prompt, *rollout.ids], "start": len(prompt), "chosen": rollout.is_sampled}


def _store(rows: Sequence[Row], name: str, values_RxT: Tensor) -> None:
    """Float32 becomes Python's numbers and comes back with the same bits."""
    for row, values_T in zip(rows, values_RxT.float().cpu(), strict=True):
        row[name] = values_T[row["start"] - 1 : len(row["ids"]) - 1].tolist()


def _differs(group: Sequence[Answer]) -> bool:
    return bool(has_signal(torch.tensor([answer.reward for answer in group]), len(group)))


def _means(answers: Sequence[Answer]) -> dict[str, float]:
    columns: Iterator[tuple[str, list[float]]] = iter(
        {
            "reward": [answer.reward for answer in answers],
            "answers_right": [answer.verdict.answer for answer in answers],
            "format_kept": [answer.verdict.format for answer in answers],
            "tool_used": [answer.verdict.tool for answer in answers],
            "entropy": [answer.entropy for answer in answers],
            "answer_tokens": [float(len(answer.rollout.ids)) for answer in answers],
        }.items()
    )
    return {name: sum(values) / len(values) for name, values in columns}

"""What a person sees of learning by reward: held-out tasks, answers with their rewards, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.dpo.answers import fixed_texts, show_texts
from stages.dpo.arithmetic_tasks import Task
from stages.dpo.experience import ExperienceBatches
from stages.dpo.kl import kl_per_token
from stages.dpo.outcome import side_by_side
from stages.dpo.sampled_answers import GREEDY, Answer, Answerer
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.evaluation import document_bits_per_byte
from stages.whitebox.intervals import Interval, share_with_interval, wilson_interval
from stages.whitebox.trainer import TrainingSummary

POINTS_PER_CURVE = 400
SHOWN_ANSWERS = 4
KL_TASKS = 100
"""Held-out tasks whose answers tell KL and entropy."""


@dataclass(frozen=True)
class OnlineScores:
    """A policy judged on held-out tasks, answered greedily, and on held-out documents."""

    answers: list[Answer]
    bits_per_byte: float
    kl: float
    """Of the policy from the SFT model, on answers that the policy samples, in nats per token."""
    entropy: float
    """Of the distributions of such answers, in nats per token."""
    documents: dict[str, str]
    chats: dict[str, str]
    """What it writes to the fixed prompts."""

    def right(self, phrasing: str = "") -> tuple[int, int]:
        """How many answers are right, and of how many; with a phrasing only the tasks that have it."""
        picked = [a for a in self.answers if phrasing in ("", a.task.phrasing)]
        return sum(answer.verdict.is_right for answer in picked), len(picked)

    @property
    def success(self) -> float:
        """Share of right answers."""
        return self.right()[0] / self.right()[1]

    @property
    def interval(self) -> Interval:
        """95 % interval of `success`."""
        return wilson_interval(*self.right())

    def mean(self, part: str) -> float:
        """Mean of one part of the reward."""
        return sum(float(getattr(answer.verdict, part)) for answer in self.answers) / len(self.answers)

    @property
    def reward(self) -> tuple[float, float]:
        """Mean reward, and half of its 95 % interval."""
        rewards = torch.tensor([answer.reward for answer in self.answers], dtype=torch.float64)
        return float(rewards.mean()), 1.96 * float(rewards.std()) / math.sqrt(len(rewards))

    @property
    def tokens(self) -> float:
        """Mean length of an answer, with calls and results."""
        return sum(len(answer.rollout.ids) for answer in self.answers) / len(self.answers)


class OnlineWatch:
    """Measures the policy and shows what goes on; it never changes the training."""

    def __init__(
        self,
        config: DpoConfig,
        answerer: Answerer,
        batches: ExperienceBatches,
        held_out: list[Task],
        documents: TokenShards,
        reference_folder: Path,
        session: StageSession,
    ) -> None:
        self.config, self.answerer, self.batches, self.session = config, answerer, batches, session
        self.held_out, self.documents, self.reference_folder = held_out, documents, reference_folder
        self.model, self.tokenizer = answerer.model, answerer.tokenizer
        self.latest: OnlineScores | None = None
        """What the last evaluation during training found; there is one after the last step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Progress each step, a point of the curves, samples where the policy was evaluated."""
        values = {**self.batches.stats, **values}
        shown = {name: round(values[name], 3) for name in ("reward", "answers_right") if name in values}
        self.session.progress(step, self.config.updates, "updates", **shown)
        evaluated = "validation_success" in values
        if evaluated or step % max(1, self.config.updates // POINTS_PER_CURVE) == 0:
            self.session.metrics(step, **values)
        if evaluated and self.latest is not None:
            self.show_samples(self.latest, step)

    def measure(self) -> OnlineScores:
        """Answer all held-out tasks, sample some for the KL, and read held-out documents."""
        answers = self.answerer.answer(self.held_out, GREEDY, "held out")
        few = self.held_out[:KL_TASKS]
        sampled = self.answerer.answer(few, self.answerer.sampled, f"{self.config.seed}/kl")
        forgotten = document_bits_per_byte(self.model, self.documents, self.config.validation_documents)
        kl = kl_per_token(self.batches, sampled, self.reference_folder)
        entropy = sum(answer.entropy for answer in sampled) / len(sampled)
        texts = fixed_texts(self.config, self.model, self.tokenizer)
        return OnlineScores(answers, forgotten, kl, entropy, *texts)

    def evaluate(self) -> dict[str, float]:
        """The curve points of `measure`."""
        scores = self.latest = self.measure()
        return {
            "validation_success": scores.success,
            "validation_reward": scores.reward[0],
            "validation_kl": scores.kl,
            "validation_bits_per_byte": scores.bits_per_byte,
        }

    def show_samples(self, scores: OnlineScores, step: int) -> None:
        """The fixed prompts of every training stage, and sampled answers with their rewards."""
        show_texts(scores.documents, scores.chats, self.session, step)
        for answer in self.batches.latest[:: max(1, len(self.batches.latest) // SHOWN_ANSWERS)][
            :SHOWN_ANSWERS
        ]:
            text = f"{self.answerer.written(answer)}\nreward {answer.reward:.2f}"
            self.session.sample(answer.task.prompt, text, step=step, kind="rollout")

    def report(self, before: OnlineScores, after: OnlineScores, summary: TrainingSummary) -> None:
        """The table before and after, and the chart of the rewards."""
        pair, name = (before, after), self.config.method.upper()
        parts = {"tool": "calculator used as asked", "format": "form kept"}
        self.session.table(
            f"{self.config.method}_before_after",
            ["on held-out data", "after SFT", f"after {name}"],
            [
                ["tasks with the right answer", *(_share(s.right()) for s in pair)],
                ["phrased as in conversations", *(_share(s.right("seen")) for s in pair)],
                ["phrased as never in training", *(_share(s.right("unseen")) for s in pair)],
                ["mean reward", *(f"{s.reward[0]:.3f} ± {s.reward[1]:.3f}" for s in pair)],
                *([told, *(round(s.mean(part), 3) for s in pair)] for part, told in parts.items()),
                ["tokens of an answer", *(round(s.tokens, 1) for s in pair)],
                ["entropy of a token, nats", *(round(s.entropy, 3) for s in pair)],
                ["KL from SFT, nats per token", *(round(s.kl, 4) for s in pair)],
                ["bits per byte of documents", *(round(s.bits_per_byte, 4) for s in pair)],
            ],
            caption="Tasks are answered greedily; entropy and KL are of sampled answers. Intervals are 95 %.",
        )
        texts = [{**scores.documents, **scores.chats} for scores in pair]
        side_by_side(f"{self.config.method}_prompts", f"after {name}", *texts, self.session)
        self.session.chart(
            f"{self.config.method}_reward",
            title="Reward of sampled answers, and held-out tasks that are answered right",
            x_label="update",
            y_label="reward, share",
            series={
                "mean reward in training": summary.history.get("reward", []),
                "right in training": summary.history.get("answers_right", []),
                "held-out tasks right": [
                    [0, before.success],
                    *summary.history.get("validation_success", []),
                ],
            },
        )


def _share(counts: tuple[int, int]) -> str:
    right, number = counts
    return share_with_interval(right / number, wilson_interval(right, number), number)

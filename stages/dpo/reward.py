"""A reward model as a story: a head on the SFT model learns to score the better answer higher.

Shapes: P pairs, B rows (all chosen, then all rejected), T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.dpo.held_out import answer_lengths
from stages.dpo.pairs import PairBatches, Pairs, batch_of
from stages.dpo.setup import trainer_settings, updates_on
from stages.dpo.spec import DpoConfig
from stages.dpo.watch import Watch
from stages.runtime.session import StageSession
from stages.whitebox.chat_format import IM_END
from stages.whitebox.checkpoint import save_model
from stages.whitebox.intervals import Interval, share_with_interval, wilson_interval
from stages.whitebox.losses import IGNORED
from stages.whitebox.preference_losses import reward_loss, wins
from stages.whitebox.reward_model import RewardModel, save_reward_model
from stages.whitebox.tokenizer import copy_tokenizer
from stages.whitebox.trainer import StepLoss, TrainingSummary, compute_in, train

FOLDER = "reward_model"
"""Inside the model's folder; the model itself stays as the SFT stage made it, because a judge cannot
answer."""


def run(
    config: DpoConfig,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    session: StageSession,
    pairs: Pairs,
    watch: Watch,
) -> dict[str, float]:
    """Train the reward model on `pairs`, judge it on the held-out ones, and write it beside the SFT model."""
    tokenizer, held_out = watch.tokenizer, watch.held_out
    save_model(watch.model, outputs["model"], stop_ids=[tokenizer.special_id(IM_END)])
    copy_tokenizer(inputs["tokenizer"], outputs["model"], tokenizer.reasoning)
    bits_per_byte = watch.document_bits_per_byte()
    model = RewardModel(watch.model, config.seed)
    judge = _Judge(config, model, held_out, watch)
    batches = PairBatches(
        pairs, None, config.batch_pairs, tokenizer.pad_id, config.seed, config.micro_batch_pairs
    )
    steps, parts = updates_on(config, batches, session.log), batches.batches_per_update
    settings = trainer_settings(config, watch.model, steps, parts, watch.compute_dtype)
    watch.total_steps = settings.total_steps
    before = judge.measure()
    summary = train(
        model,
        batches,
        RewardObjective(config.reward_margin),
        settings,
        checkpoint_dir=session.work_dir / "checkpoints",
        on_step=watch.on_step,
        evaluate=judge.evaluate,
        should_stop=session.should_stop,
        log=session.log,
    )
    after = judge.latest or judge.measure()
    by_length = judged_by_length(held_out)
    _report(before, after, by_length, bits_per_byte, summary, session)
    folder = outputs["model"] / FOLDER
    save_reward_model(model, folder)
    copy_tokenizer(inputs["tokenizer"], folder, tokenizer.reasoning)
    session.log(f"the model is that of sft, unchanged; the reward model is in its folder {FOLDER}")
    return _headline(before, after, by_length, bits_per_byte, summary)


def pair_scores(model: RewardModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """score_P of the chosen and of the rejected answers, each read at the token that ends the answer."""
    counted_BxT = batch["targets"] != IGNORED
    places_T = torch.arange(counted_BxT.shape[1], device=counted_BxT.device)
    last_B = torch.where(counted_BxT, places_T, -1).amax(
        dim=1
    )  # it has the answer's last token as its target
    chosen_P, rejected_P = model(batch["ids"], last_B + 2).chunk(2)
    return chosen_P, rejected_P


class RewardObjective:
    """Bradley-Terry over a batch of pairs, summed."""

    def __init__(self, asked_margin: float) -> None:
        self.asked_margin = asked_margin

    def __call__(self, model: RewardModel, batch: dict[str, Tensor]) -> StepLoss:
        """Metrics: margin and accuracy."""
        found = reward_loss(*pair_scores(model, batch), self.asked_margin)
        metrics = {"margin": float(found.margin_P.mean()), "accuracy": float(wins(found.margin_P).mean())}
        return StepLoss(found.loss_P.sum(), len(found.loss_P), metrics)


@dataclass(frozen=True)
class Verdict:
    """Scores of held-out pairs; means over the pairs."""

    chosen_score: float
    rejected_score: float
    wins: float
    num_pairs: int

    @property
    def accuracy(self) -> float:
        """How often the chosen answer has the higher score; a tie counts half."""
        return self.wins / self.num_pairs

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy."""
        return wilson_interval(round(self.wins), self.num_pairs)

    @property
    def figures(self) -> dict[str, float]:
        """As curve points."""
        return {
            "validation_margin": self.chosen_score - self.rejected_score,
            "validation_accuracy": self.accuracy,
            "validation_chosen_score": self.chosen_score,
            "validation_rejected_score": self.rejected_score,
        }


def judged_by_length(pairs: Pairs) -> Verdict:
    """What a judge makes of them that counts an answer's tokens and knows nothing else."""
    return _verdict(*(answer_lengths(side).double() for side in (pairs.chosen, pairs.rejected)))


def _verdict(chosen_P: Tensor, rejected_P: Tensor) -> Verdict:
    won = float(wins(chosen_P - rejected_P).sum())
    return Verdict(float(chosen_P.mean()), float(rejected_P.mean()), won, len(chosen_P))


class _Judge:
    """Scores the held-out pairs."""

    def __init__(self, config: DpoConfig, model: RewardModel, held_out: Pairs, watch: Watch) -> None:
        self.config, self.model, self.held_out, self.watch = config, model, held_out, watch
        self.latest: Verdict | None = None

    @torch.no_grad()
    def measure(self) -> Verdict:
        device, size = self.model.score.weight.device, self.config.micro_batch_pairs
        both: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(self.held_out), size):
            picked = range(start, min(start + size, len(self.held_out)))
            batch = batch_of(self.held_out, picked, self.watch.tokenizer.pad_id)
            with compute_in(self.watch.compute_dtype, device):
                both.append(pair_scores(self.model, {name: part.to(device) for name, part in batch.items()}))
        return _verdict(*(torch.cat(side) for side in zip(*both, strict=True)))

    def evaluate(self) -> dict[str, float]:
        self.latest = self.measure()
        return self.latest.figures


def _report(
    before: Verdict,
    after: Verdict,
    by_length: Verdict,
    bits_per_byte: float,
    summary: TrainingSummary,
    session: StageSession,
) -> None:
    both = (before, after)
    session.table(
        "reward_before_after",
        ["on held-out pairs", "untrained head", "trained"],
        [
            ["accuracy", *(_accuracy(verdict) for verdict in both)],
            ["accuracy of taking the longer answer", *[_accuracy(by_length)] * 2],
            ["mean score of the chosen answer", *(round(verdict.chosen_score, 4) for verdict in both)],
            ["mean score of the rejected answer", *(round(verdict.rejected_score, 4) for verdict in both)],
            ["tokens of a chosen answer", *[round(by_length.chosen_score, 1)] * 2],
            ["tokens of a rejected answer", *[round(by_length.rejected_score, 1)] * 2],
            ["bits per byte of documents", *[round(bits_per_byte, 4)] * 2],
        ],
        caption="Accuracy: how often the chosen answer has the higher score; chance is 0.5. A judge that is "
        "no better than taking the longer answer may have learnt just that. The assistant stays as SFT made "
        "it: its answers, and its bits per byte, are the same before and after. Intervals: 95 %.",
    )
    session.chart(
        "reward_margin",
        title="By how much the chosen answer scores higher than the rejected one",
        x_label="step",
        y_label="margin",
        series={
            "training": summary.history.get("margin", []),
            "held out": [
                [0, before.figures["validation_margin"]],
                *summary.history.get("validation_margin", []),
            ],
        },
    )


def _accuracy(verdict: Verdict) -> str:
    return share_with_interval(verdict.accuracy, verdict.interval, verdict.num_pairs)


def _headline(
    before: Verdict, after: Verdict, by_length: Verdict, bits_per_byte: float, summary: TrainingSummary
) -> dict[str, float]:
    low, high = after.interval
    return {
        **after.figures,
        "untrained_validation_accuracy": before.accuracy,
        "validation_accuracy_low": low,
        "validation_accuracy_high": high,
        "num_validation_pairs": float(after.num_pairs),
        "longer_answer_accuracy": by_length.accuracy,
        "chosen_tokens": by_length.chosen_score,
        "rejected_tokens": by_length.rejected_score,
        "validation_bits_per_byte": bits_per_byte,
        "sft_validation_bits_per_byte": bits_per_byte,
        "bits_per_byte_increase": 0.0,
        "train_pairs": float(summary.num_targets),
        "pairs_per_second": summary.tokens_per_second,
    }

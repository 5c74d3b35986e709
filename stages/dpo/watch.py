"""What a person sees of the preference tuning: margin and accuracy, answers, and what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.dpo.pairs import Pairs
from stages.dpo.preference import PairScore, log_probs_of, score_by_kind, score_pairs
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.evaluation import evaluate_bits_per_byte
from stages.whitebox.model import CausalLM
from stages.whitebox.reply import continuation, reply
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import TrainingSummary, compute_in

POINTS_PER_CURVE = 400
EVALUATION_TOKENS = 4096


@dataclass(frozen=True)
class Scores:
    """A policy judged on held-out pairs, in all and by kind, and on held-out documents."""

    pairs: PairScore
    by_kind: dict[str, PairScore]
    bits_per_byte: float


class Watch:
    """Measures the model and shows what goes on; it never changes the training."""

    def __init__(
        self,
        config: DpoConfig,
        model: CausalLM,
        tokenizer: Tokenizer,
        held_out: Pairs,
        documents: TokenShards,
        compute_dtype: torch.dtype,
        session: StageSession,
    ) -> None:
        self.config, self.model, self.tokenizer, self.session = config, model, tokenizer, session
        self.held_out, self.documents, self.compute_dtype = held_out, documents, compute_dtype
        self.reference_2xP = torch.zeros(2, len(held_out))
        self.total_steps = 1
        self.latest: Scores | None = None
        """What the last evaluation during training found; there is one after the last step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Progress each step, a point of the curves now and then, samples where the model was evaluated."""
        shown = {name: round(values[name], 3) for name in ("train_loss", "margin") if name in values}
        # The trainer counts targets, which are pairs here.
        values = {**values, "pairs_per_second": values["tokens_per_second"]}
        del values["tokens_per_second"]
        self.session.progress(step, self.total_steps, "steps", **shown)
        evaluated = "validation_accuracy" in values
        if evaluated or step % max(1, self.total_steps // POINTS_PER_CURVE) == 0:
            self.session.metrics(step, **values)
        if evaluated:
            self._sample(step)

    def log_probs(self, pairs: Pairs, what: str) -> Tensor:
        """logp_2xP under the model as it is now, in the type that it is trained in."""
        with compute_in(self.compute_dtype, self.model.output_weight().device):
            return log_probs_of(
                self.model,
                pairs,
                self.config.micro_batch_pairs,
                self.tokenizer.pad_id,
                lambda done: self.session.progress(done, len(pairs), what),
            )

    def measure(self) -> Scores:
        """Score all held-out pairs and documents."""
        policy_2xP = self.log_probs(self.held_out, "held-out pairs")
        context_tokens = self.model.config.max_position_embeddings
        documents = evaluate_bits_per_byte(
            self.model,
            self.documents,
            max_documents=self.config.validation_documents,
            batch_size=max(1, EVALUATION_TOKENS // context_tokens),
            context_tokens=context_tokens,
        )
        judged = (policy_2xP, self.reference_2xP, self.held_out, self.config.beta)
        return Scores(score_pairs(*judged), score_by_kind(*judged), documents.bits_per_byte)

    def evaluate(self) -> dict[str, float]:
        """The curve points of `measure`."""
        scores = self.latest = self.measure()
        return {
            "validation_margin": scores.pairs.margin,
            "validation_accuracy": scores.pairs.accuracy,
            "validation_bits_per_byte": scores.bits_per_byte,
        }

    def _sample(self, step: int) -> None:
        for prompt in self.config.sample_prompts:
            text = continuation(self.model, self.tokenizer, prompt, self.config.sample_tokens)
            self.session.sample(prompt, text, step=step)
        for prompt in self.config.chat_prompts:
            messages = [{"role": "user", "content": prompt}]
            text = reply(self.model, self.tokenizer, messages, self.config.sample_tokens)
            self.session.sample(prompt, text, step=step, kind="chat")

    def report(self, before: Scores, after: Scores, summary: TrainingSummary) -> None:
        """The tables before and after and by kind, and the chart of the margins."""
        self.session.table(
            "dpo_before_after",
            ["on held-out data", "after SFT", "after DPO"],
            [
                ["margin, nats", *(round(s.pairs.margin, 4) for s in (before, after))],
                ["accuracy", *(_accuracy(s.pairs) for s in (before, after))],
                ["chosen likelier per token", *(_likelier(s.pairs) for s in (before, after))],
                ["bits per byte of documents", *(round(s.bits_per_byte, 4) for s in (before, after))],
            ],
            caption="Margin and accuracy are against the reference, so they begin at 0 and 0.5. "
            "Intervals are 95 %.",
        )
        self.session.table(
            "dpo_by_kind",
            ["kind of pair", "pairs", "margin, nats", "accuracy"],
            [
                [kind, score.num_pairs, round(score.margin, 4), _accuracy(score)]
                for kind, score in after.by_kind.items()
            ],
        )
        self.session.chart(
            "dpo_margin",
            title="By how much the chosen answer gained on the rejected one",
            x_label="step",
            y_label="margin, nats",
            series={
                "training": summary.history.get("margin", []),
                "held out": [[0, before.pairs.margin], *summary.history.get("validation_margin", [])],
            },
        )


def _accuracy(score: PairScore) -> str:
    low, high = score.interval
    return f"{score.accuracy:.3f} ({low:.3f} to {high:.3f}, n = {score.num_pairs})"


def _likelier(score: PairScore) -> float:
    return round(score.num_chosen_likelier / score.num_pairs, 3)

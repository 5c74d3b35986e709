"""What a person sees of the preference tuning: margin and accuracy, answers, and what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.dpo.answers import Said, say, show_texts
from stages.dpo.held_out import (
    PairScore,
    answer_token_log_probs,
    kl_to_reference,
    log_probs_of_pairs,
    score_by_kind,
    score_pairs,
)
from stages.dpo.pairs import Pairs
from stages.dpo.spec import DpoConfig
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.evaluation import document_bits_per_byte
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer
from stages.whitebox.trainer import compute_in

POINTS_PER_CURVE = 400


@dataclass(frozen=True)
class Scores:
    """A policy judged on held-out pairs, in all and by kind, on held-out documents, and by what it says."""

    pairs: PairScore
    by_kind: dict[str, PairScore]
    kl: float
    """To the reference on held-out chosen answers, nats per token, see `kl_to_reference`."""
    bits_per_byte: float
    said: Said


class Watch:
    """Measures the model and shows what goes on; it changes nothing."""

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
        self.reference_N = torch.zeros(0)
        """Log-probabilities of the held-out answers' tokens before the training."""
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
        if evaluated and self.latest is not None:
            self.show(self.latest.said, step)

    def held_out_log_probs(self) -> Tensor:
        """logp_N of the held-out answers' tokens under the model as it is now, in the type it is trained
        in."""
        with compute_in(self.compute_dtype, self.model.output_weight().device):
            return answer_token_log_probs(
                self.model,
                self.held_out,
                2 * self.config.micro_batch_pairs,
                self.tokenizer.pad_id,
                lambda done: self.session.progress(done, len(self.held_out), "held-out pairs"),
            )

    def measure(self) -> Scores:
        """Score all held-out pairs and documents, and answer the fixed prompts."""
        policy_N = self.held_out_log_probs()
        pairs = log_probs_of_pairs(policy_N, self.reference_N, self.held_out)
        chosen_N = slice(0, int(pairs.chosen_tokens_P.sum()))
        return Scores(
            score_pairs(self.config, pairs),
            score_by_kind(self.config, pairs, self.held_out.kinds),
            kl_to_reference(policy_N[chosen_N], self.reference_N[chosen_N]),
            self.document_bits_per_byte(),
            say(self.config, self.model, self.tokenizer, self.held_out),
        )

    def document_bits_per_byte(self) -> float:
        """Of held-out documents of the pretraining text: what the tuning makes the model forget."""
        return document_bits_per_byte(self.model, self.documents, self.config.validation_documents)

    def evaluate(self) -> dict[str, float]:
        """The curve points of `measure`."""
        scores = self.latest = self.measure()
        return curve_points(scores)

    def show(self, said: Said, step: int) -> None:
        """What the model writes, as samples of the report."""
        show_texts(said.documents, said.chats, self.session, step)


def curve_points(scores: Scores) -> dict[str, float]:
    """The figures of an evaluation by name."""
    pairs = scores.pairs
    return {
        "validation_margin": pairs.margin,
        "validation_accuracy": pairs.accuracy,
        "validation_chosen_log_prob": pairs.chosen_log_prob,
        "validation_rejected_log_prob": pairs.rejected_log_prob,
        "validation_chosen_log_prob_per_token": pairs.chosen_log_prob_per_token,
        "validation_rejected_log_prob_per_token": pairs.rejected_log_prob_per_token,
        "validation_kl": scores.kl,
        "validation_bits_per_byte": scores.bits_per_byte,
        "answer_tokens": scores.said.answer_tokens,
        "endless_answers": scores.said.endless_answers,
    }

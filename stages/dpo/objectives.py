"""What each method minimises on a batch; the formulas are in `whitebox/preference_losses.py`.

Shapes: P pairs, R single answers, B rows (all chosen, then all rejected).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.dpo.preference import answer_log_probs
from stages.dpo.spec import DpoConfig
from stages.whitebox.losses import IGNORED
from stages.whitebox.model import CausalLM
from stages.whitebox.preference_losses import (
    PairLogProbs,
    PairLoss,
    chosen_nll,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    simpo_loss,
    wins,
)
from stages.whitebox.trainer import StepLoss

WITHOUT_REFERENCE = frozenset({"orpo", "simpo"})


def beta_of(config: DpoConfig) -> float:
    """`beta`, with "auto" decided by the method."""
    if config.beta == "auto":
        return 2.0 if config.method == "simpo" else 0.1
    return config.beta


def sft_term_of(config: DpoConfig) -> float:
    """`sft_term`, with "auto" decided by the method."""
    if config.sft_term == "auto":
        return 1.0 if config.method == "dpo" else 0.0
    return config.sft_term


def pair_loss(config: DpoConfig, pairs: PairLogProbs) -> PairLoss:
    """Loss and margin of each pair by the method; of kto, which has no pairs in training, dpo's margin."""
    beta = beta_of(config)
    if config.method == "orpo":
        return orpo_loss(pairs, beta)
    if config.method == "ipo":
        found = ipo_loss(pairs, beta)
    elif config.method == "simpo":
        found = simpo_loss(pairs, beta, config.simpo_gamma)
    else:
        found = dpo_loss(pairs, beta, config.label_smoothing, config.robust, config.length_normalised)
    weight = sft_term_of(config)
    if not weight:
        return found
    return PairLoss(found.loss_P + weight * chosen_nll(pairs), found.margin_P)


class PairObjective:
    """The loss of a batch of pairs, summed over its pairs."""

    def __init__(self, config: DpoConfig) -> None:
        self.config = config

    def __call__(self, model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        """Metrics: margin, accuracy, and log-probabilities of both answers, in all and per token."""
        pairs = _pairs_of(answer_log_probs(model, batch), batch)
        found = pair_loss(self.config, pairs)
        chosen_P, rejected_P = pairs.per_token()
        means = {
            "margin": found.margin_P,
            "accuracy": wins(found.margin_P),
            "chosen_log_prob": pairs.chosen_P,
            "rejected_log_prob": pairs.rejected_P,
            "chosen_log_prob_per_token": chosen_P,
            "rejected_log_prob_per_token": rejected_P,
        }
        metrics = {name: float(values_P.detach().mean()) for name, values_P in means.items()}
        return StepLoss(found.loss_P.sum(), len(found.loss_P), metrics)


def _pairs_of(logp_B: Tensor, batch: dict[str, Tensor]) -> PairLogProbs:
    tokens_B = (batch["targets"] != IGNORED).sum(dim=1)
    references = {name: batch[name] for name in ("reference_chosen", "reference_rejected") if name in batch}
    return PairLogProbs(
        *logp_B.chunk(2), *tokens_B.chunk(2), **{f"{name}_P": values for name, values in references.items()}
    )


class KtoObjective:
    """The loss of a batch of single answers, summed; the baseline is that of the update which it belongs
    to."""

    def __init__(self, config: DpoConfig, micro_batch_answers: int) -> None:
        self.config, self.micro_batch_answers = config, micro_batch_answers
        self._baseline = torch.zeros(())

    def __call__(self, model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        """Metrics: the baseline, and the share of answers on their side of it."""
        config = self.config
        if "mismatched_ids" in batch:
            self._baseline = self._measure_baseline(model, batch)
        gain_R = answer_log_probs(model, batch) - batch["reference"]
        loss_R = kto_loss(
            gain_R,
            batch["is_desirable"],
            self._baseline,
            beta_of(config),
            config.desirable_weight,
            config.undesirable_weight,
        )
        lead_R = torch.where(batch["is_desirable"], 1.0, -1.0) * (gain_R.detach() - self._baseline)
        metrics = {"accuracy": float(wins(lead_R).mean()), "kto_baseline": float(self._baseline)}
        return StepLoss(loss_R.sum(), len(loss_R), metrics)

    @torch.no_grad()
    def _measure_baseline(self, model: CausalLM, batch: dict[str, Tensor]) -> Tensor:
        """In parts, so that it takes no more memory than a micro batch."""
        names = ("ids", "targets")
        parts = zip(
            *(batch[f"mismatched_{name}"].split(self.micro_batch_answers) for name in names), strict=True
        )
        logp_U = [answer_log_probs(model, dict(zip(names, part, strict=True))) for part in parts]
        return kto_baseline(torch.cat(logp_U) - batch["mismatched_reference"])

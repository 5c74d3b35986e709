"""Losses that learn from which answer is the better one: each is a short function of log-probabilities.

A method decides what an answer's *reward* is (how much likelier it became than under the reference; how
likely it is per token; what a head says) and how the rewards of a pair become a loss. What is returned is per
pair, so that an update is the same however it is cut into micro batches.

Shapes: P pairs, R single answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PairLogProbs(NamedTuple):
    """Pairs under a policy: log-probabilities summed over each answer's tokens, in nats, and how many these
    are.

    The prompt does not count, the token that ends the answer does. Without a reference both of its fields are
    zeros or left out.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor
    reference_chosen_P: Tensor | float = 0.0
    reference_rejected_P: Tensor | float = 0.0

    def gains(self) -> tuple[Tensor, Tensor]:
        """By how much the policy finds each answer likelier than the reference does: chosen_P, rejected_P."""
        return self.chosen_P - self.reference_chosen_P, self.rejected_P - self.reference_rejected_P

    def gains_per_token(self) -> tuple[Tensor, Tensor]:
        """`gains`, each divided by the answer's length."""
        chosen_P, rejected_P = self.gains()
        return chosen_P / self.chosen_tokens_P, rejected_P / self.rejected_tokens_P

    def per_token(self) -> tuple[Tensor, Tensor]:
        """Mean log-probability of a token, whatever the reference says: chosen_P, rejected_P."""
        return self.chosen_P / self.chosen_tokens_P, self.rejected_P / self.rejected_tokens_P


class PairLoss(NamedTuple):
    """loss_P, with gradient; margin_P: the chosen answer's reward minus the rejected one's, detached."""

    loss_P: Tensor
    margin_P: Tensor

    @classmethod
    def of(cls, loss_P: Tensor, margin_P: Tensor) -> PairLoss:
        """The margin is to be looked at, so its graph is let go."""
        return cls(loss_P, margin_P.detach())


def wins(margin_P: Tensor) -> Tensor:
    """won_P: 1 for a margin above zero, half for a tie, so that an untrained policy scores 0.5 and not 0."""
    return (margin_P > 0).float() + 0.5 * (margin_P == 0).float()


def dpo_loss(
    pairs: PairLogProbs,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    robust: bool = False,
    length_normalised: bool = False,
) -> PairLoss:
    """Direct preference optimisation: -log sigmoid(m), m = beta ((chosen - its ref.) - (rejected - its
    ref.)).

    Rafailov et al. 2023, arXiv:2305.18290, equation 7.

    Args:
        label_smoothing: e, the share of pairs that may be the wrong way round. Conservative DPO (Mitchell
            2023,
            "A note on DPO with noisy preferences"): -(1 - e) log sigmoid(m) - e log sigmoid(-m).
        robust: takes the expected bias of such pairs out instead (Chowdhury et al. 2024, arXiv:2403.00409):
            (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e), where e is below 0.5.
        length_normalised: gains per token instead of sums, so that long answers do not dominate; beta is then
            to be about an answer's length times as large.
    """
    chosen_P, rejected_P = pairs.gains_per_token() if length_normalised else pairs.gains()
    margin_P = beta * (chosen_P - rejected_P)
    right_P, wrong_P = -F.logsigmoid(margin_P), -F.logsigmoid(-margin_P)
    if robust:
        loss_P = ((1 - label_smoothing) * right_P - label_smoothing * wrong_P) / (1 - 2 * label_smoothing)
    elif label_smoothing:
        loss_P = (1 - label_smoothing) * right_P + label_smoothing * wrong_P
    else:
        loss_P = right_P
    return PairLoss.of(loss_P, margin_P)


def ipo_loss(pairs: PairLogProbs, beta: float = 0.1) -> PairLoss:
    """Identity preference optimisation: (h - 1 / (2 beta))^2, h = (chosen - its ref.) - (rejected - its
    ref.).

    Azar et al. 2023, arXiv:2310.12036, equation 17, where beta is called tau. It asks for a margin of a fixed
    size instead of an ever larger one. The gains are per token: sums would ask less of a longer answer, and
    the paper's results are of this form (as its authors told TRL's).
    """
    chosen_P, rejected_P = pairs.gains_per_token()
    gain_P = chosen_P - rejected_P
    return PairLoss.of((gain_P - 1 / (2 * beta)).square(), beta * gain_P)


def orpo_loss(pairs: PairLogProbs, beta: float = 0.1) -> PairLoss:
    """Odds ratio preference optimisation: nll(chosen) - beta log sigmoid(log odds(chosen) - log
    odds(rejected)).

    Hong et al. 2024, arXiv:2403.07691, equations 6 and 7 (beta is lambda there); odds(y) = p / (1 - p), where
    log p is the mean over the answer's tokens. No reference: the first term, which is fine-tuning on the
    chosen answer, holds the policy in place.
    """
    chosen_P, rejected_P = pairs.per_token()
    log_odds_ratio_P = (chosen_P - rejected_P) - (_log1mexp(chosen_P) - _log1mexp(rejected_P))
    return PairLoss.of(chosen_nll(pairs) - beta * F.logsigmoid(log_odds_ratio_P), beta * log_odds_ratio_P)


def simpo_loss(pairs: PairLogProbs, beta: float = 2.0, gamma: float = 0.5) -> PairLoss:
    """Simple preference optimisation: -log sigmoid(beta (chosen - rejected) - gamma), both per token.

    Meng et al. 2024, arXiv:2405.14734, equation 6. No reference; gamma is the margin that is asked for.
    """
    chosen_P, rejected_P = pairs.per_token()
    margin_P = beta * (chosen_P - rejected_P)
    return PairLoss.of(-F.logsigmoid(margin_P - gamma), margin_P)


def chosen_nll(pairs: PairLogProbs) -> Tensor:
    """nll_P: mean nats per token of the chosen answer, as in fine-tuning.

    Added to DPO it keeps the chosen answers likely (Pang et al. 2024, arXiv:2404.19733). A mean of each pair,
    as there; TRL takes one over all tokens of a batch, so that a long answer counts more.
    """
    return -pairs.per_token()[0]


def kto_loss(
    gain_R: Tensor,
    is_desirable_R: Tensor,
    baseline: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation: loss_R of answers that are each known as good or bad, without partners.

    Ethayarajh et al. 2024, arXiv:2402.01306, equation 7: w_d (1 - sigmoid(beta (gain - z))) for a good
    answer, w_u (1 - sigmoid(beta (z - gain))) for a bad one.

    Args:
        gain_R: log-probability of the answer minus the reference's.
        baseline: z, how far the policy is from the reference anyway, see `kto_baseline`.
    """
    side_R = torch.where(is_desirable_R, 1.0, -1.0)
    weight_R = torch.where(is_desirable_R, desirable_weight, undesirable_weight)
    return weight_R * (1 - torch.sigmoid(beta * side_R * (gain_R - baseline)))


def kto_baseline(mismatched_gain_R: Tensor) -> Tensor:
    """z of `kto_loss`: the mean gain of answers to other prompts, at least 0, without gradient.

    An estimate of KL(policy || reference) that needs no sampling : each prompt with the
    answer that belongs to another one.
    """
    return mismatched_gain_R.detach().mean().clamp(min=0)


def reward_loss(chosen_P: Tensor, rejected_P: Tensor, asked_margin: Tensor | float = 0.0) -> PairLoss:
    """Bradley-Terry: -log sigmoid(score(chosen) - score(rejected) - asked margin).

    Bradley and Terry 1952; for answers Ouyang et al. 2022, arXiv:2203.02155, equation 1; with a margin
    Touvron et al. 2023, arXiv:2307.09288, equation 2.
    """
    margin_P = chosen_P - rejected_P
    return PairLoss.of(-F.logsigmoid(margin_P - asked_margin), margin_P)


def _log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - p) for log p < 0, exact at both ends (Maechler 2012)."""
    # Where p rounds to 1 the odds are infinite: the largest log p that is still a number below zero.
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near_zero = log_p > -0.6931472
    # Each branch of a where gets a gradient, so the one that is not taken must be finite too.
    by_expm1 = torch.log(-torch.expm1(torch.where(near_zero, log_p, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, log_p)))
    return torch.where(near_zero, by_expm1, by_log1p)

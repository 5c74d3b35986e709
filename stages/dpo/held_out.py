"""Held-out pairs under a policy: how often the better answer wins, how likely both are, how far it went.

Shapes: P pairs, N answer tokens of all pairs (all chosen answers, then all rejected ones).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.dpo.objectives import pair_loss
from stages.dpo.pairs import Completion, Pairs, rows_of
from stages.dpo.spec import DpoConfig
from stages.whitebox.intervals import Interval, wilson_interval
from stages.whitebox.losses import IGNORED, token_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.preference_losses import PairLogProbs, wins

MAX_LOG_RATIO = 1.0


@torch.no_grad()
def answer_token_log_probs(
    model: CausalLM,
    pairs: Pairs,
    batch_rows: int,
    pad_id: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """logp_N: of each answer token, in float32 on the CPU; `on_progress` hears how many pairs are done."""
    completions = [*pairs.chosen, *pairs.rejected]
    device = model.output_weight().device
    by_length = sorted(range(len(completions)), key=lambda i: (len(completions[i].ids), i))
    found: dict[int, Tensor] = {}
    for start in range(0, len(completions), batch_rows):
        picked = by_length[start : start + batch_rows]
        batch = rows_of([completions[i] for i in picked], pad_id)
        ids_BxT, targets_BxT = batch["ids"].to(device), batch["targets"].to(device)
        logp_BxT = token_log_probs(model.hidden_states(ids_BxT), model.output_weight(), targets_BxT).cpu()
        found |= {i: logp_BxT[row, batch["targets"][row] != IGNORED] for row, i in enumerate(picked)}
        on_progress((start + len(picked)) // 2)
    return torch.cat([found[i] for i in range(len(completions))])


def answer_lengths(completions: Sequence[Completion]) -> Tensor:
    """tokens_P: of each answer, its end included."""
    return torch.tensor([len(completion.ids) - completion.start for completion in completions])


def log_probs_of_pairs(policy_N: Tensor, reference_N: Tensor, pairs: Pairs) -> PairLogProbs:
    """Token by token log-probabilities as sums of each answer."""
    chosen_P, rejected_P = answer_lengths(pairs.chosen), answer_lengths(pairs.rejected)
    lengths = [*chosen_P.tolist(), *rejected_P.tolist()]
    policy, reference = (
        torch.stack([part.sum() for part in logp_N.split(lengths)]).chunk(2)
        for logp_N in (policy_N, reference_N)
    )
    return PairLogProbs(*policy, chosen_P, rejected_P, *reference)


def kl_to_reference(policy_N: Tensor, reference_N: Tensor) -> float:
    """Schulman's k3 estimate of KL(reference || policy), nats per token: the mean of r - 1 - log r.

    r = policy / reference (Schulman 2020, "Approximating KL divergence"). It is never negative, and without
    bias on tokens that the reference wrote. Held-out answers are the nearest to that: it was fine-tuned on
    such ones. KL(policy || reference) would want answers of the policy and the reference beside it; on
    held-out answers its k3 is the work of single tokens that the policy gave up: 2.2 nats per token on the
    laptop's chosen answers, 15 % of that by one token of 2,478, where this one is 0.22.

    But training makes such answers likelier, so they are no longer drawn at random, and r has no bound: one
    token in a hundred that goes from -8 to -3 nats would make 1.4 of it. So r counts up to e only.
    """
    log_ratio_N = (policy_N.double() - reference_N.double()).clamp(max=MAX_LOG_RATIO)
    return float((log_ratio_N.exp() - 1 - log_ratio_N).mean())


@dataclass(frozen=True)
class PairScore:
    """Held-out pairs under a policy, and its reference where the method has one. Log-probabilities in
    nats."""

    margin: float
    """Mean of what the method calls the chosen answer's reward minus the rejected one's."""
    num_pairs: int
    wins: float
    """Pairs with a positive margin; a tie counts half."""
    num_chosen_likelier: int
    """Pairs whose chosen answer the policy finds likelier, per token, whatever the reference says."""
    chosen_log_prob: float
    """Mean over pairs of the whole answer's log-probability."""
    rejected_log_prob: float
    chosen_log_prob_per_token: float
    """Mean over pairs of the answer's mean over tokens."""
    rejected_log_prob_per_token: float
    chosen_tokens: float
    """Mean length of an answer."""
    rejected_tokens: float

    @property
    def accuracy(self) -> float:
        """Share of pairs with a positive margin. Against a reference an untrained policy has 0.5."""
        return self.wins / self.num_pairs

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy."""
        return wilson_interval(round(self.wins), self.num_pairs)


def score_pairs(config: DpoConfig, pairs: PairLogProbs) -> PairScore:
    """Judge pairs as the method does."""
    margin_P = pair_loss(config, pairs).margin_P
    chosen_P, rejected_P = pairs.per_token()
    means = (
        pairs.chosen_P,
        pairs.rejected_P,
        chosen_P,
        rejected_P,
        pairs.chosen_tokens_P.float(),
        pairs.rejected_tokens_P.float(),
    )
    return PairScore(
        float(margin_P.mean()),
        len(margin_P),
        float(wins(margin_P).sum()),
        int((chosen_P > rejected_P).sum()),
        *(float(values_P.mean()) for values_P in means),
    )


def score_by_kind(config: DpoConfig, pairs: PairLogProbs, kinds: Sequence[str]) -> dict[str, PairScore]:
    """`score_pairs` for the pairs of each kind."""
    scores = {}
    for kind in sorted(set(kinds)):
        picked = [i for i, found in enumerate(kinds) if found == kind]
        scores[kind] = score_pairs(config, PairLogProbs(*(values_P[picked] for values_P in pairs)))
    return scores

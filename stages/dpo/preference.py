"""Log-probabilities of answers, the loss made of them, and how often the better answer wins.

Shapes: P pairs, B rows of a batch (all chosen, then all rejected), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.dpo.pairs import Pairs, batch_of
from stages.whitebox.intervals import Interval, wilson_interval
from stages.whitebox.losses import dpo_loss, sequence_log_probs
from stages.whitebox.model import CausalLM
from stages.whitebox.trainer import StepLoss


def answer_log_probs(model: CausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Sum of the log-probabilities of each row's answer tokens, logp_B; the prompt does not count."""
    # Rows are padded on the right, and attention looks only to the left: padding changes nothing.
    return sequence_log_probs(model.hidden_states(batch["ids"]), model.output_weight(), batch["targets"])


def preference_loss(beta: float) -> Callable[[CausalLM, dict[str, Tensor]], StepLoss]:
    """The loss of a batch of pairs, summed over its pairs, with margin and accuracy as metrics."""

    def loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
        chosen_P, rejected_P = answer_log_probs(model, batch).chunk(2)
        found = dpo_loss(chosen_P, rejected_P, batch["reference_chosen"], batch["reference_rejected"], beta)
        metrics = {"margin": float(found.margin), "accuracy": float(found.accuracy)}
        return StepLoss(found.loss * len(chosen_P), len(chosen_P), metrics)

    return loss


@torch.no_grad()
def log_probs_of(
    model: CausalLM,
    pairs: Pairs,
    batch_pairs: int,
    pad_id: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """logp_2xP: of the chosen answers and of the rejected ones, in the order of `pairs`."""
    device = model.output_weight().device
    by_length = sorted(range(len(pairs)), key=lambda i: (len(pairs.chosen[i].ids), i))
    logp_2xP = torch.zeros(2, len(pairs))
    for start in range(0, len(pairs), batch_pairs):
        picked = by_length[start : start + batch_pairs]
        batch = {name: tensor.to(device) for name, tensor in batch_of(pairs, picked, pad_id).items()}
        logp_2xP[:, picked] = answer_log_probs(model, batch).view(2, -1).cpu()
        on_progress(start + len(picked))
    return logp_2xP


def stored_log_probs(path: Path, pairs: Pairs, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives, kept in `path`: a resumed run must see the very same reference."""
    try:
        stored = load_file(path)["log_probs"]
        if stored.shape == (2, len(pairs)):
            return stored
    except (OSError, SafetensorError, KeyError):
        pass  # not there yet, or not whole: it is computed
    log_probs = compute()
    unfinished = path.with_suffix(".unfinished")
    save_file({"log_probs": log_probs}, unfinished)
    unfinished.replace(path)
    return log_probs


@dataclass(frozen=True)
class PairScore:
    """Held-out pairs under a policy and its reference."""

    margin: float
    """Mean of beta x ((chosen - its reference) - (rejected - its reference)), in nats."""
    num_pairs: int
    wins: float
    """Pairs with a positive margin; a tie counts half."""
    num_chosen_likelier: int
    """Pairs whose chosen answer the policy finds likelier, per token, whatever the reference says."""

    @property
    def accuracy(self) -> float:
        """Share of pairs with a positive margin. An untrained policy has 0.5: all its margins are zero."""
        return self.wins / self.num_pairs

    @property
    def interval(self) -> Interval:
        """95 % interval of the accuracy."""
        return wilson_interval(round(self.wins), self.num_pairs)


def score_pairs(policy_2xP: Tensor, reference_2xP: Tensor, pairs: Pairs, beta: float) -> PairScore:
    """Judge log-probabilities of the policy against those of the reference."""
    found = dpo_loss(*policy_2xP, *reference_2xP, beta=beta)
    lengths_2xP = torch.tensor(
        [[len(c.ids) - c.start for c in completions] for completions in (pairs.chosen, pairs.rejected)]
    )
    chosen_P, rejected_P = policy_2xP / lengths_2xP
    wins = float(found.accuracy) * len(pairs)
    return PairScore(float(found.margin), len(pairs), wins, int((chosen_P > rejected_P).sum()))


def score_by_kind(
    policy_2xP: Tensor, reference_2xP: Tensor, pairs: Pairs, beta: float
) -> dict[str, PairScore]:
    """`score_pairs` for the pairs of each kind."""
    scores = {}
    for kind in sorted(set(pairs.kinds)):
        picked = [i for i, found in enumerate(pairs.kinds) if found == kind]
        part = Pairs(chosen=[pairs.chosen[i] for i in picked], rejected=[pairs.rejected[i] for i in picked])
        scores[kind] = score_pairs(policy_2xP[:, picked], reference_2xP[:, picked], part, beta)
    return scores

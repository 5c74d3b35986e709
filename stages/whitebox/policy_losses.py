"""What reinforcement learning makes of sampled answers and their rewards: GRPO, its kin, and PPO.

All of it stands on one term, the clipped ratio of PPO (Schulman et al. 2017, arXiv:1707.06347, equation 7):

    ratio_t = p(token_t) / p_old(token_t)
    loss_t  = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t)

What the methods differ in is where the advantage A_t comes from, and over what the mean is taken:

| method                              | advantage                           | mean over                    |
|-------------------------------------|-------------------------------------|------------------------------|
| GRPO, arXiv:2402.03300, section 4.1 | (reward - mean) / std of its group  | each answer, then answers    |
| DAPO, arXiv:2503.14476, section 3   | the same                            | all tokens                   |
| Dr. GRPO, arXiv:2503.20783          | reward - mean of its group          | answers, of a constant length|
| PPO                                 | `gae` of a learned value            | all tokens                   |

Shapes: R rows (answers), G answers to one prompt, which stand side by side, T tokens. A mask is 1 where the
model chose the token, 0 where a tool put it in and on padding.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

GROUP_EPS = 1e-4
Normalization = Literal["answer", "token", "constant"]


def group_advantages(rewards_R: Tensor, group_size: int, divide_by_std: bool = True) -> Tensor:
    """By how much an answer is better than the others to its prompt: advantages_R.

    Args:
        divide_by_std: Dr. GRPO does not, because it gives easy and hopeless prompts more weight.

    Raises:
        ValueError: the rows are no whole groups of at least two.
    """
    if group_size < 2 or len(rewards_R) % group_size:
        raise ValueError(
            f"{len(rewards_R)} rewards in groups of {group_size}; expected whole groups of 2 or more"
        )
    rewards_NxG = rewards_R.view(-1, group_size)
    advantages_NxG = rewards_NxG - rewards_NxG.mean(dim=1, keepdim=True)
    if divide_by_std:
        advantages_NxG = advantages_NxG / (rewards_NxG.std(dim=1, keepdim=True) + GROUP_EPS)
    return advantages_NxG.reshape(-1)


def has_signal(rewards_R: Tensor, group_size: int) -> Tensor:
    """Per group whether its rewards differ: where they do not, every advantage is zero. bool_N."""
    rewards_NxG = rewards_R.view(-1, group_size)
    return (rewards_NxG != rewards_NxG[:, :1]).any(dim=1)


def overlong_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int) -> float:
    """0 for answers that leave `buffer_tokens` free, then linearly down to -1 (DAPO, equation 13)."""
    if buffer_tokens < 1:
        return 0.0
    over = num_tokens - (max_tokens - buffer_tokens)
    return -min(max(over, 0) / buffer_tokens, 1.0)


class ClippedLoss(NamedTuple):
    """Loss of each token with gradient, and where the clip took the gradient away; both RxT."""

    loss_RxT: Tensor
    is_clipped_RxT: Tensor


def clipped_policy_loss(
    logp_RxT: Tensor, old_logp_RxT: Tensor, advantages_RxT: Tensor, clip_low: float, clip_high: float
) -> ClippedLoss:
    """Equation 7 of PPO; a `clip_high` above `clip_low` is DAPO's, which lets rare tokens grow.

    Args:
        advantages_RxT: or Rx1, one for all tokens of a row.
    """
    ratio_RxT = (logp_RxT - old_logp_RxT).exp()
    clipped_RxT = ratio_RxT.clamp(1 - clip_low, 1 + clip_high)
    loss_RxT = -torch.min(ratio_RxT * advantages_RxT, clipped_RxT * advantages_RxT)
    too_low = (ratio_RxT < 1 - clip_low) & (advantages_RxT < 0)
    too_high = (ratio_RxT > 1 + clip_high) & (advantages_RxT > 0)
    return ClippedLoss(loss_RxT, too_low | too_high)


def kl_to_reference(logp_RxT: Tensor, reference_RxT: Tensor, old_logp_RxT: Tensor | None = None) -> Tensor:
    """An estimate of KL(policy || reference) at each sampled token that is never negative: kl_RxT.

    exp(d) - d - 1 with d = reference - policy: "k3" of Schulman's "Approximating KL Divergence" (2020).

    Args:
        old_logp_RxT: of the policy that drew the tokens. With it the estimate is multiplied by the ratio, and
            its gradient is that of the KL itself (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).
    """
    difference_RxT = reference_RxT - logp_RxT
    kl_RxT = difference_RxT.exp() - difference_RxT - 1
    return kl_RxT if old_logp_RxT is None else kl_RxT * (logp_RxT - old_logp_RxT).exp()


def summed(
    loss_RxT: Tensor, mask_RxT: Tensor, normalization: Normalization, constant_tokens: int = 1
) -> tuple[Tensor, int]:
    """A sum, and what it is to be divided by, so that micro batches may be added before dividing.

    Args:
        normalization: "answer": every answer weighs the same; "token": every token; "constant": every token,
            over answers times `constant_tokens`, so that the weight of a token depends on no length.
    """
    lengths_R = mask_RxT.sum(dim=1)
    loss_R = (loss_RxT * mask_RxT).sum(dim=1)
    if normalization == "token":
        return loss_R.sum(), int(lengths_R.sum())
    num_answers = int((lengths_R > 0).sum())
    lengths_R = (
        lengths_R.clamp(min=1) if normalization == "answer" else torch.full_like(loss_R, constant_tokens)
    )
    return (loss_R / lengths_R).sum(), num_answers


class Gae(NamedTuple):
    """Advantages, and what the values should have been; both RxT, 0 where the mask is."""

    advantages_RxT: Tensor
    returns_RxT: Tensor


def gae(
    rewards_RxT: Tensor, values_RxT: Tensor, mask_RxT: Tensor, discount: float = 1.0, decay: float = 0.95
) -> Gae:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16).

        delta_t = reward_t + discount x value_(t+1) - value_t
        A_t     = delta_t + discount x decay x A_(t+1)

    Tokens that the model did not choose are no steps: t + 1 is the next token that it chose.
    """
    advantages_RxT = torch.zeros_like(values_RxT)
    next_value_R = next_advantage_R = torch.zeros_like(values_RxT[:, 0])
    for t in reversed(range(values_RxT.shape[1])):
        chosen_R = mask_RxT[:, t] > 0
        delta_R = rewards_RxT[:, t] + discount * next_value_R - values_RxT[:, t]
        advantage_R = delta_R + discount * decay * next_advantage_R
        next_advantage_R = torch.where(chosen_R, advantage_R, next_advantage_R)
        next_value_R = torch.where(chosen_R, values_RxT[:, t], next_value_R)
        advantages_RxT[:, t] = torch.where(chosen_R, advantage_R, 0.0)
    return Gae(advantages_RxT, (advantages_RxT + values_RxT) * (mask_RxT > 0))


def whitened(values_RxT: Tensor, mask_RxT: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the chosen tokens of the whole batch; 0 elsewhere."""
    count = mask_RxT.sum().clamp(min=1)
    mean = (values_RxT * mask_RxT).sum() / count
    variance = ((values_RxT - mean).square() * mask_RxT).sum() / count
    return (values_RxT - mean) * (variance + 1e-8).rsqrt() * mask_RxT


def clipped_value_loss(
    values_RxT: Tensor, old_values_RxT: Tensor, returns_RxT: Tensor, clip: float
) -> Tensor:
    """Half the squared error, where a value that moved farther than `clip` gains nothing: loss_RxT.

    max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2 (Schulman's baselines; Engstrom et al.
    2020, arXiv:2005.12729, section 3).
    """
    kept_RxT = values_RxT.clamp(old_values_RxT - clip, old_values_RxT + clip)
    errors_RxT = (values_RxT - returns_RxT).square(), (kept_RxT - returns_RxT).square()
    return 0.5 * torch.max(*errors_RxT)

"""The optimizer and the learning rate over a run."""

from __future__ import annotations

import torch
from torch import nn

ADAM_EPS = 1e-8


def build_adamw(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as one fused kernel.

    Matrices decay; norms, other vectors and the token embedding do not: rare tokens get few gradients, and
    decay would pull their rows to zero meanwhile.
    """
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and "embed_tokens" not in name
            (decayed if is_matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=betas, eps=ADAM_EPS, fused=True
    )


def warmup_decay(
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_fraction: float,
    min_learning_rate_fraction: float = 0.0,
) -> float:
    """Share of the peak learning rate at `step` (the first is 1): linear warm-up, stable, linear decay.

    Warmup-stable-decay (Hu et al. 2024, arXiv:2404.06395): with `decay_fraction` 1 there is no stable part,
    and the rate falls from the end of the warm-up to the last step. The fraction is never 0 before the last
    step is done.

    Raises:
        ValueError: `step` is outside 1..total_steps.
    """
    if not 1 <= step <= total_steps:
        raise ValueError(f"step is {step}, expected 1 to {total_steps}")
    warmup_steps = min(warmup_steps, total_steps)
    if step <= warmup_steps:
        return step / warmup_steps
    decay_steps = min(max(1, round(decay_fraction * total_steps)), total_steps - warmup_steps)
    steps_left = total_steps - step + 1
    if decay_fraction == 0 or steps_left > decay_steps:
        return 1.0
    return min_learning_rate_fraction + (1.0 - min_learning_rate_fraction) * steps_left / (decay_steps + 1)

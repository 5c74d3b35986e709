"""The optimizers, and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from stages.whitebox.muon import Muon

ADAM_EPS = 1e-8
DecayShape = Literal["linear", "cosine"]


def build_adamw(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    lora_plus_ratio: float = 1.0,
    embedding_lr: float | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as one fused kernel, for all parameters.

    Matrices decay; norms, other vectors and the token embedding do not: rare tokens get few gradients, and
    decay would pull their rows to zero meanwhile. The matrices B of adapters learn `lora_plus_ratio` times as
    fast (LoRA+: Hayou et al. 2024, arXiv:2402.12354, section 4); the embedding and the output matrix at
    `embedding_lr`, where that is given.
    """
    alike: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if is_decayed(name, parameter) else 0.0
            rate = lr * lora_plus_ratio if name.endswith(".lora_B") else lr
            if embedding_lr is not None and is_of_tokens(name):
                rate = embedding_lr
            alike.setdefault((decay, rate), []).append(parameter)
    kinds = sorted(alike, reverse=True)  # those that decay first
    groups = [{"params": alike[kind], "weight_decay": kind[0], "lr": kind[1]} for kind in kinds]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=ADAM_EPS, fused=True)


def is_of_tokens(name: str) -> bool:
    """Whether a parameter has a row for each token: the embedding, or rows of it, and the output matrix."""
    return "embed_tokens" in name or "lm_head" in name


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether AdamW's decay pulls at a parameter."""
    return parameter.ndim >= 2 and "embed_tokens" not in name


def build_muon(
    model: nn.Module,
    lr: float,
    matrix_lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    compute_dtype: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices at `matrix_lr`, AdamW without decay for all else at `lr`."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if is_hidden_matrix(name, p)]
    others = [p for name, p in trained.items() if not is_hidden_matrix(name, p)]
    muon = Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, compute_dtype=compute_dtype)
    return [muon, torch.optim.AdamW(others, lr=lr, betas=betas, eps=ADAM_EPS, weight_decay=0.0, fused=True)]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter maps hidden features to hidden features; rows of embeddings are tokens instead.

    A tensor with three dimensions is one such matrix per expert.
    """
    return parameter.ndim in (2, 3) and not is_of_tokens(name)


def warmup_decay(
    step: int,
    total_steps: int,
    warmup_steps: int,
    decay_fraction: float,
    min_learning_rate_fraction: float = 0.0,
    shape: DecayShape = "linear",
) -> float:
    """Share of the peak learning rate at `step` (the first is 1): linear warm-up, stable, decay.

    Warmup-stable-decay (Hu et al. 2024, arXiv:2404.06395). Where the decay takes all steps that the warm-up
    leaves, there is no stable part: the linear decay that Bergsma et al. 2025, arXiv:2502.15938, found best
    for a budget that is known; or, with `shape` "cosine", the half wave of Loshchilov and Hutter 2017,
    arXiv:1608.03983. The share is never 0 before the last step is done.

    Raises:
        ValueError: `step` is outside 1..total_steps.
    """
    if not 1 <= step <= total_steps:
        raise ValueError(f"step is {step}, expected 1 to {total_steps}")
    if step <= warmup_steps:
        return step / min(warmup_steps, total_steps)
    decay_steps = min(round(decay_fraction * total_steps), max(total_steps - warmup_steps, 0))
    steps_left = total_steps - step + 1
    if steps_left > decay_steps:
        return 1.0
    share = steps_left / (decay_steps + 1)
    if shape == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return min_learning_rate_fraction + (1.0 - min_learning_rate_fraction) * share

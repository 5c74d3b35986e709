"""Rotary position embeddings: RoPE, Su et al. 2021, arXiv:2104.09864.

Each pair of features of a query or key is turned by an angle that grows with the token's position, so that
the dot product of two of them depends on their distance only. Pairs are (i, i + H/2), as in Hugging Face's
weights, and not (2i, 2i + 1), as in the paper's equation 34: the same rotation under a fixed permutation of
the features. `rope_scaling.py` lists the ways to stretch it to longer texts.

Shapes: B batch, T tokens, N heads, H head size, P positions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stages.whitebox.rope_scaling import RopeScaling


def rope_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None, stretch: float = 1.0
) -> Tensor:
    """Radians that each pair of features turns per token: frequencies_(H/2), in float32.

    Without scaling theta^(-2i/H) for pair i. The operations and their order are those of transformers, so
    that the bits are the same.

    Args:
        stretch: length of the text as a share of what the model was built for; only "dynamic" looks at it.
    """
    if scaling is not None and scaling.rope_type == "dynamic":
        grown = scaling.factor * max(1.0, stretch) - (scaling.factor - 1)
        theta = theta * grown ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    tokens_per_radian = theta**exponents
    frequencies = 1.0 / tokens_per_radian
    if scaling is None or scaling.rope_type == "dynamic":
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "llama3":
        return _by_wavelength(frequencies, scaling)
    return _by_ramp(tokens_per_radian, head_dim, theta, scaling)


def rope_tables(
    num_positions: int,
    head_dim: int,
    theta: float,
    device: torch.device | None = None,
    scaling: RopeScaling | None = None,
    stretch: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle of every position and feature: cos_PxH, sin_PxH, in float32.

    Both are times `scaling.score_scale()`, which only YaRN has above 1.
    """
    frequencies = rope_frequencies(head_dim, theta, scaling, stretch).to(device)
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    angles_PxH = torch.cat([angles, angles], dim=-1)
    scale = scaling.score_scale() if scaling is not None else 1.0
    return angles_PxH.cos() * scale, angles_PxH.sin() * scale


def _by_wavelength(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: pairs that turn less than `low_freq_factor` times over the training's text are slowed
    down by the factor, those that turn more than `high_freq_factor` times are kept (arXiv:2407.21783)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None and scaling.original_max_position_embeddings is not None
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    kept = (turns - low) / (high - low)
    between = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    slow = wavelengths > scaling.original_max_position_embeddings / low
    fast = wavelengths < scaling.original_max_position_embeddings / high
    return torch.where(slow, frequencies / scaling.factor, torch.where(fast, frequencies, between))


def _by_ramp(tokens_per_radian: Tensor, head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN: kept up to the pair that turns `beta_fast` times, slowed down from that of `beta_slow` on."""
    positions = scaling.original_max_position_embeddings
    assert positions is not None

    def pair_of(turns: float) -> float:
        return head_dim * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_of(scaling.beta_fast or 32), pair_of(scaling.beta_slow or 1)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last = last + 0.001 if first == last else last  # no division by zero
    pairs = torch.arange(head_dim // 2, dtype=torch.float32)
    kept = 1 - torch.clamp((pairs - first) / (last - first), 0, 1)
    slowed = 1.0 / (scaling.factor * tokens_per_radian)
    return slowed * (1 - kept) + 1.0 / tokens_per_radian * kept


def reference_apply_rope(x_BxTxNxH: Tensor, cos_BxTx1xH: Tensor, sin_BxTx1xH: Tensor) -> Tensor:
    """Turns every pair of features by its position's angle; keeps the type of `x`.

    The tables may have a batch size of 1 when all rows have the same positions.
    """
    first, second = x_BxTxNxH.chunk(2, dim=-1)
    turned_BxTxNxH = torch.cat([-second, first], dim=-1)
    return (x_BxTxNxH * cos_BxTx1xH + turned_BxTxNxH * sin_BxTx1xH).to(x_BxTxNxH.dtype)


def apply_rope(x_BxTxNxH: Tensor, cos_BxTx1xH: Tensor, sin_BxTx1xH: Tensor) -> Tensor:
    """`reference_apply_rope` in half the time, with the gradient written by hand."""
    return _Turn.apply(x_BxTxNxH, cos_BxTx1xH, sin_BxTx1xH)


class _Turn(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BxTxNxH: Tensor, cos_BxTx1xH: Tensor, sin_BxTx1xH: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BxTx1xH, sin_BxTx1xH)
        return _turn(x_BxTxNxH, cos_BxTx1xH, sin_BxTx1xH)

    @staticmethod
    def backward(ctx: Any, grad_BxTxNxH: Tensor) -> tuple[Tensor, None, None]:
        cos_BxTx1xH, sin_BxTx1xH = ctx.saved_tensors
        return _turn(grad_BxTxNxH, cos_BxTx1xH, -sin_BxTx1xH), None, None


def _turn(x_BxTxNxH: Tensor, cos_BxTx1xH: Tensor, sin_BxTx1xH: Tensor) -> Tensor:
    first, second = x_BxTxNxH.chunk(2, dim=-1)
    half_sin = sin_BxTx1xH[..., : first.shape[-1]]
    if torch.compiler.is_compiling():  # a compiler makes one pass of this, and several of changes in place
        half_cos = cos_BxTx1xH[..., : first.shape[-1]]
        halves = first * half_cos - second * half_sin, second * half_cos + first * half_sin
        return torch.cat(halves, dim=-1).to(x_BxTxNxH.dtype)
    out_BxTxNxH = x_BxTxNxH * cos_BxTx1xH
    out_first, out_second = out_BxTxNxH.chunk(2, dim=-1)
    out_first.addcmul_(second, half_sin, value=-1)
    out_second.addcmul_(first, half_sin)
    return out_BxTxNxH.to(x_BxTxNxH.dtype)

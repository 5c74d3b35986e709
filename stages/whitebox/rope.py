"""Rotary position embeddings: RoPE, Su et al. 2021, arXiv:2104.09864.

Each pair of features of a query or key is turned by an angle that grows with the token's position, so that
the dot product of two of them depends on their distance only. Pairs are (i, i + H/2), as in Hugging Face's
weights, and not (2i, 2i + 1), as in the paper's equation 34: the same rotation under a fixed permutation of
the features.

Shapes: B batch, T tokens, N heads, H head size, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_tables(
    num_positions: int, head_dim: int, theta: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angle of every position and feature: cos_PxH, sin_PxH, in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    turns_per_token = 1.0 / theta**exponents
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, turns_per_token)
    angles_PxH = torch.cat([angles, angles], dim=-1)
    return angles_PxH.cos(), angles_PxH.sin()


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
    out_BxTxNxH = x_BxTxNxH * cos_BxTx1xH
    first, second = x_BxTxNxH.chunk(2, dim=-1)
    out_first, out_second = out_BxTxNxH.chunk(2, dim=-1)
    half_sin = sin_BxTx1xH[..., : first.shape[-1]]
    out_first.addcmul_(second, half_sin, value=-1)
    out_second.addcmul_(first, half_sin)
    return out_BxTxNxH.to(x_BxTxNxH.dtype)

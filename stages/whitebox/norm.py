"""RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467.

`reference_rms_norm` is the formula; the module computes the same with a gradient written by hand, which
takes half the time on a CPU. A test holds them together.

Shapes: ... any, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def reference_rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Scales the last dimension to a root mean square of 1, then by a weight per feature.

    In float32 whatever comes in, because squares overflow and underflow in 16 bits.
    """
    wide_D = x_D.float()
    inverse_rms = torch.rsqrt(wide_D.pow(2).mean(dim=-1, keepdim=True) + eps)
    return weight_D * (wide_D * inverse_rms).to(x_D.dtype)


class RMSNorm(nn.Module):
    """`reference_rms_norm` with a learned weight."""

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        """The same shape; float32 weights make the result float32."""
        return _RMSNorm.apply(x_D, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = x / rms(x). Of a gradient g, what points along n does not pass: n has a fixed length.

    dx = (g w - n mean(g w n)) / rms(x),  dw = sum over tokens of g n.
    """

    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide_D = x_D.float()
        length = torch.linalg.vector_norm(wide_D, dim=-1, keepdim=True)
        inverse_rms = length.square_().div_(wide_D.shape[-1]).add_(eps).rsqrt_()
        normal_D = wide_D * inverse_rms
        ctx.save_for_backward(normal_D, inverse_rms, weight_D)
        ctx.input_dtype = x_D.dtype
        return weight_D * normal_D.to(x_D.dtype)

    @staticmethod
    def backward(ctx: Any, grad_D: Tensor) -> tuple[Tensor, Tensor, None]:
        normal_D, inverse_rms, weight_D = ctx.saved_tensors
        grad_D, wide_weight_D = grad_D.float(), weight_D.float()
        along_D = grad_D * normal_D
        grad_weight_D = along_D.flatten(0, -2).sum(dim=0)
        mean = (along_D @ wide_weight_D).div_(weight_D.shape[0]).unsqueeze(-1)
        grad_x_D = (grad_D * wide_weight_D).sub_(normal_D * mean).mul_(inverse_rms)
        return grad_x_D.to(ctx.input_dtype), grad_weight_D.to(weight_D.dtype), None

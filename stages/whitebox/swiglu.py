"""The gate of the feed-forward layer, SwiGLU: Shazeer 2020, arXiv:2002.05202.

`reference_swiglu` is the formula; `swiglu` computes the same with a gradient written by hand, which keeps two
tensors for the backward pass instead of three. A test holds them together.

Shapes: ... any, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def reference_swiglu(gate_F: Tensor, up_F: Tensor) -> Tensor:
    """silu(gate) x up, with silu(x) = x sigmoid(x)."""
    return F.silu(gate_F) * up_F


def swiglu(gate_F: Tensor, up_F: Tensor) -> Tensor:
    """`reference_swiglu` with less memory in training."""
    if not torch.is_grad_enabled():
        return reference_swiglu(gate_F, up_F)
    return _SwiGLU.apply(gate_F, up_F)


class _SwiGLU(torch.autograd.Function):
    """silu'(x) = s + silu(x) (1 - s) with s = sigmoid(x): two cheap operations in place of a kept tensor."""

    @staticmethod
    def forward(ctx: Any, gate_F: Tensor, up_F: Tensor) -> Tensor:
        ctx.save_for_backward(gate_F, up_F)
        return F.silu(gate_F).mul_(up_F)

    @staticmethod
    def backward(ctx: Any, grad_F: Tensor) -> tuple[Tensor, Tensor]:
        gate_F, up_F = ctx.saved_tensors
        grad_gate_F = torch.ops.aten.silu_backward(grad_F * up_F, gate_F)
        return grad_gate_F, F.silu(gate_F).mul_(grad_F)

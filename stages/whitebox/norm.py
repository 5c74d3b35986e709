"""RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467.

Shapes: ... any, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scales the last dimension to a root mean square of 1, then by a learned weight per feature."""

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.eps = eps

    def forward(self, x_D: Tensor) -> Tensor:
        """Computes in float32 whatever comes in, because squares overflow and underflow in 16 bits."""
        wide_D = x_D.float()
        inverse_rms = torch.rsqrt(wide_D.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * (wide_D * inverse_rms).to(x_D.dtype)

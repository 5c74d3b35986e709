"""The gated feed-forward layer.

Shapes: B batch, T tokens, D width, F feed-forward.
"""

from __future__ import annotations

from torch import Tensor, nn

from stages.whitebox.device import in_product_dtype
from stages.whitebox.swiglu import swiglu


class FeedForward(nn.Module):
    """SwiGLU: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        """Returns y_BxTxD."""
        x_BxTxD = in_product_dtype(x_BxTxD)
        return self.down_proj(swiglu(self.gate_proj(x_BxTxD), self.up_proj(x_BxTxD)))

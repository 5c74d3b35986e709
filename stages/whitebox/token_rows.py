"""Some rows of a frozen embedding, trained: PEFT's trainable tokens.

Low-rank adapters leave the embedding as it is. But the control tokens of a chat never stood in the text that
was pretrained on: their rows say nothing yet, and where the output matrix is the embedding, the model can
hardly write them.

Shapes: V vocabulary, D width, K trained rows, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenRows(nn.Module):
    """An embedding of which only the rows `ids` are trained; they begin as they were."""

    ids: Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.register_buffer("ids", torch.tensor(ids, device=base.weight.device), persistent=False)
        self.rows_KxD = nn.Parameter(base.weight.detach()[self.ids].clone())

    @property
    def weight(self) -> Tensor:
        """W_VxD with the trained rows in it; gradients reach these only."""
        return self.base.weight.index_copy(0, self.ids, self.rows_KxD)

    def forward(self, ids_BxT: Tensor) -> Tensor:
        """e_BxTxD."""
        return F.embedding(ids_BxT, self.weight)

    def merged(self) -> nn.Embedding:
        """An ordinary embedding with the same values."""
        layer = nn.Embedding(*self.base.weight.shape, device="meta")
        layer.weight = nn.Parameter(self.weight.detach())
        return layer

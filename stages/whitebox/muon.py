"""Muon: momentum whose matrices are made orthogonal before they are added.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; at scale Liu et al. 2025, arXiv:2502.16982.
Gradients of weight matrices are nearly of low rank: a few directions take almost the whole step. Setting
all singular values to 1 lets the rare directions learn as fast as the loud ones. In a run of 410k tokens at
depth 4 it reached 2.07 bits per byte and AdamW, searched less, 2.60; it took a quarter more time
(stages/pretrain/README.md has the table).

Shapes: M rows, N columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stages.whitebox.divided_tensors import divide_like, whole

# The quintic of the reference implementation: it lifts small singular values fast and ends between 0.7 and
# 1.2. Exact 1 is not needed, and five iterations of the exact polynomial would leave small values small.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only; embeddings, the output matrix and vectors belong to AdamW.

    Args:
        params: parameters with two dimensions, or three: then each is a stack of matrices.
        lr: the spectral norm of one update, so that it need not change with the width.
        momentum: of the gradient's running mean, with Nesterov's look ahead.
        weight_decay: as AdamW's, times the learning rate.
        compute_dtype: of the matrix products of the orthogonalisation.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.compute_dtype = compute_dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, weight_MxN: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        state = self.state[weight_MxN]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight_MxN)
        mean_MxN = state["momentum"].lerp_(weight_MxN.grad, 1 - momentum)
        ahead_MxN = weight_MxN.grad.lerp(mean_MxN, momentum)
        # Orthogonal is a property of the whole matrix: processes that hold parts put it together first.
        whole_MxN = whole(ahead_MxN).to(self.compute_dtype)
        if whole_MxN.ndim == 3:  # a matrix per expert
            update_MxN = torch.stack([orthogonalize(matrix) for matrix in whole_MxN])
        else:
            update_MxN = orthogonalize(whole_MxN)
        update_MxN = divide_like(update_MxN.to(weight_MxN.dtype), weight_MxN)
        num_rows, num_columns = weight_MxN.shape[-2:]
        # The root makes outputs of tall matrices change as much as those of wide ones.
        scale = max(1.0, num_rows / num_columns) ** 0.5
        weight_MxN.mul_(1 - lr * weight_decay).add_(update_MxN, alpha=-lr * scale)


def orthogonalize(matrix_MxN: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows (or columns), roughly: singular values between about 0.7 and
    1.2.

    Newton-Schulz iterations: polynomials of the matrix act on its singular values and need products only.
    """
    is_tall = matrix_MxN.shape[0] > matrix_MxN.shape[1]
    wide = matrix_MxN.T if is_tall else matrix_MxN
    wide = wide / (wide.norm() + 1e-7)
    first, third, fifth = QUINTIC
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + torch.addmm(gram, gram, gram, beta=third, alpha=fifth) @ wide
    return wide.T if is_tall else wide

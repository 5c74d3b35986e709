"""GPTQ: rounding one input at a time, and letting the inputs not yet rounded make up for the error.

Frantar et al. 2022, arXiv:2210.17323. What matters is not how far a weight moves but how far the layer's
outputs move on real inputs: their squared error is d^T H d for a change d of a row, with H the sum of x x^T
over the calibration inputs. Three differences from the paper's code: no order by activation, no blocks of
lazy updates (the matrices are small), and scales that minimise the squared error instead of covering the
largest weight.

Shapes: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.quantize.rounding import best_scales, round_to
from stages.whitebox.quantized_linear import IntegerMatrix

DAMPING = 0.01
"""Added to H's diagonal, as a share of its mean: inputs that hardly occur must not move their weights far."""


def quantize_gptq(weight_OxI: Tensor, hessian_IxI: Tensor, bits: int, group_size: int) -> IntegerMatrix:
    """A matrix of `bits` with one scale per `group_size` inputs of a row.

    Args:
        hessian_IxI: sum of x x^T over calibration inputs.

    Raises:
        ValueError: the inputs do not divide into groups.
    """
    rows, columns = weight_OxI.shape
    if columns % group_size:
        raise ValueError(f"{columns} inputs do not divide into groups of {group_size}")
    weight_OxI = weight_OxI.detach().double().clone()
    factor_IxI = _inverse_factor(hessian_IxI)
    values_OxI = torch.empty(rows, columns, dtype=torch.int8)
    scales_OxG = torch.empty(rows, columns // group_size, dtype=torch.bfloat16)
    for start in range(0, columns, group_size):
        group = slice(start, start + group_size)
        scale_Ox1 = best_scales(weight_OxI[:, group], bits)
        scales_OxG[:, start // group_size] = scale_Ox1[:, 0].to(torch.bfloat16)
        for column in range(start, start + group_size):
            values_OxI[:, column] = _round_column(weight_OxI, column, scale_Ox1, factor_IxI[column], bits)
    return IntegerMatrix(values_OxI, scales_OxG, bits)


def _round_column(weight_OxI: Tensor, column: int, scale_Ox1: Tensor, factor_I: Tensor, bits: int) -> Tensor:
    """Rounds one column in place and spreads its error over the later ones; returns the integers, O."""
    exact_Ox1 = weight_OxI[:, column : column + 1]
    integers_Ox1 = round_to(exact_Ox1, scale_Ox1, bits)
    error_Ox1 = (exact_Ox1 - integers_Ox1 * scale_Ox1) / factor_I[column]
    weight_OxI[:, column:] -= error_Ox1 * factor_I[column:]
    return integers_Ox1[:, 0].to(torch.int8)


def _inverse_factor(hessian_IxI: Tensor) -> Tensor:
    """Upper Cholesky factor of H^-1: row c holds how the inputs from c on share an error made at c."""
    hessian_IxI = hessian_IxI.double().clone()
    diagonal_I = hessian_IxI.diagonal()
    # The least damping is for a layer whose inputs were all zero: it stays invertible.
    diagonal_I += DAMPING * diagonal_I.mean().clamp_min(1e-12)
    inverse_IxI = torch.cholesky_inverse(torch.linalg.cholesky(hessian_IxI))
    return torch.linalg.cholesky(inverse_IxI, upper=True)

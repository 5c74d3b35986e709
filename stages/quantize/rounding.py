"""Round-to-nearest: scales, and the integers that belong to them.

Shapes: O outputs, I inputs, G groups of inputs, g inputs of one group, C candidate scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.whitebox.quantized_linear import IntegerMatrix

COVERED_SHARES = {4: torch.linspace(1.0, 0.6, 41), 8: torch.ones(1)}
"""Shares of the largest weight that a scale may cover. Clipping a few outliers pays at 4 bits; at 8 bits the
search found the share 1 for nearly every row, so there is none."""


def best_scales(weight_OxIg: Tensor, bits: int) -> Tensor:
    """One scale per row, out of a grid of clipped ranges the one with the least squared error: scale_Ox1.

    Scales are multiples that bfloat16 has, since that is how they are stored and multiplied. A row of zeros
    gets scale 1.
    """
    largest_Ox1 = weight_OxIg.abs().amax(dim=1, keepdim=True)
    candidates_OxC = largest_Ox1 * COVERED_SHARES[bits].to(weight_OxIg) / ((1 << (bits - 1)) - 1)
    candidates_OxC = candidates_OxC.to(torch.bfloat16).to(weight_OxIg.dtype)
    candidates_OxC = torch.where(candidates_OxC > 0, candidates_OxC, 1.0)
    errors = [_squared_error(weight_OxIg, scale_Ox1, bits) for scale_Ox1 in candidates_OxC.split(1, dim=1)]
    best_Ox1 = torch.cat(errors, dim=1).argmin(dim=1, keepdim=True)
    return candidates_OxC.gather(1, best_Ox1)


def round_to(weight_OxI: Tensor, scale_Ox1: Tensor, bits: int) -> Tensor:
    """The nearest integers that `bits` bits have (-8 to 7, -128 to 127), still as floats."""
    half = 1 << (bits - 1)
    return (weight_OxI / scale_Ox1).round().clamp(-half, half - 1)


def quantize_nearest(weight_OxI: Tensor, bits: int, group_size: int | None = None) -> IntegerMatrix:
    """Each weight to its nearest integer; one scale per row, or per `group_size` inputs of a row.

    Raises:
        ValueError: the inputs do not divide into groups.
    """
    columns = weight_OxI.shape[1]
    group_size = group_size or columns
    if columns % group_size:
        raise ValueError(f"{columns} inputs do not divide into groups of {group_size}")
    rows_x_g = weight_OxI.detach().float().reshape(-1, group_size)
    scales = best_scales(rows_x_g, bits)
    values_OxI = round_to(rows_x_g, scales, bits).view_as(weight_OxI).to(torch.int8)
    return IntegerMatrix(values_OxI, scales.view(-1, columns // group_size).to(torch.bfloat16), bits)


def _squared_error(weight_OxIg: Tensor, scale_Ox1: Tensor, bits: int) -> Tensor:
    error_OxIg = round_to(weight_OxIg, scale_Ox1, bits) * scale_Ox1 - weight_OxIg
    return error_OxIg.square().sum(dim=1, keepdim=True)

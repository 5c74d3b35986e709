"""Products of one row with an integer weight, by PyTorch's own CPU kernels where they are right.

Decoding one text multiplies one row with every weight of the model, so its time is the time to read the
weights. These kernels read 4, 8 or 16 bits per weight instead of 32. None of them is a documented interface
of PyTorch, and not every build has them: each is tried on the matrix that it is to serve, compared with the
plain product, and left out if it fails or differs. tests/benchmarks/decode_speed.py measures them.

Shapes: O outputs, I inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Activations and results in bfloat16 have 8 bits: 2^-9 of rounding each. Wrong layouts are wrong by O(1).
BFLOAT16_TOLERANCE = 0.02
EXACT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RowKernel:
    """`multiply` takes x_1xI to y_1xO, in the type of x."""

    name: str
    multiply: Callable[[Tensor], Tensor]


def pick_kernel(values_OxI: Tensor, scales_OxG: Tensor, bits: int) -> RowKernel | None:
    """The kernel for one layer: bfloat16 activations times 8- or 4-bit weights; None where none is right."""
    make = _int8_kernel if bits == 8 else _int4_kernel
    return _verified(make, values_OxI, scales_OxG, BFLOAT16_TOLERANCE)


def pick_exact_kernel(values_OxI: Tensor, scales_OxG: Tensor, bits: int) -> RowKernel | None:
    """The kernel for the output matrix: float32 activations times 16-bit weights; None where it is not right.

    Logits are compared with each other, and in bfloat16 the best two of them are often equal. Integers of 8
    bits are exact in float16, so this product is that of float32, at half the memory traffic.
    """
    if bits != 8 or scales_OxG.shape[1] != 1:
        return None
    return _verified(_half_kernel, values_OxI, scales_OxG, EXACT_TOLERANCE)


def _int8_kernel(values_OxI: Tensor, scales_OxG: Tensor) -> RowKernel:
    scales_O = scales_OxG[:, 0].to(torch.bfloat16).contiguous()

    def multiply(x_1xI: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x_1xI.to(torch.bfloat16), values_OxI, scales_O).to(x_1xI.dtype)

    return RowKernel("int8 weights, bfloat16 activations", multiply)


def _int4_kernel(values_OxI: Tensor, scales_OxG: Tensor) -> RowKernel:
    group_size = values_OxI.shape[1] // scales_OxG.shape[1]
    # The kernel computes (unsigned - 8) x scale + zero; our integers are symmetric, so the zeros are zero.
    packed = torch._convert_weight_to_int4pack_for_cpu(values_OxI.int() + 8, 1)
    scales_GxO = scales_OxG.T.to(torch.bfloat16)
    scales_and_zeros_GxOx2 = torch.stack([scales_GxO, torch.zeros_like(scales_GxO)], dim=-1).contiguous()
    product = torch._weight_int4pack_mm_for_cpu

    def multiply(x_1xI: Tensor) -> Tensor:
        return product(x_1xI.to(torch.bfloat16), packed, group_size, scales_and_zeros_GxOx2).to(x_1xI.dtype)

    return RowKernel("int4 weights, bfloat16 activations", multiply)


def _half_kernel(values_OxI: Tensor, scales_OxG: Tensor) -> RowKernel:
    packed = torch.ops.quantized.linear_prepack_fp16(values_OxI.float(), None)
    scales_1xO = scales_OxG.float().T.contiguous()
    product = torch.ops.quantized.linear_dynamic_fp16

    def multiply(x_1xI: Tensor) -> Tensor:
        return product(x_1xI.float(), packed) * scales_1xO

    return RowKernel("float16 weights, float32 activations", multiply)


def _verified(
    make: Callable[[Tensor, Tensor], RowKernel], values_OxI: Tensor, scales_OxG: Tensor, tolerance: float
) -> RowKernel | None:
    """The kernel, if it exists and gives the plain product on one random row; the row is always the same."""
    if values_OxI.device.type != "cpu":
        return None
    x_1xI = torch.randn(1, values_OxI.shape[1], generator=torch.Generator().manual_seed(0))
    try:
        kernel = make(values_OxI, scales_OxG)
        found_1xO = kernel.multiply(x_1xI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    repeats = values_OxI.shape[1] // scales_OxG.shape[1]
    expected_1xO = F.linear(x_1xI, values_OxI.float() * scales_OxG.float().repeat_interleave(repeats, dim=1))
    is_right = (found_1xO - expected_1xO).abs().max() <= tolerance * expected_1xO.abs().max()
    return kernel if bool(is_right) else None

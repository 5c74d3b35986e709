"""Weights as small integers: how they are stored, and the layers that compute with them.

A weight is `integer x scale`, with one scale per output row (int8) or per group of neighbouring inputs
(int4). Scales are rounded to bfloat16 before the integers are chosen, so nothing is lost where a kernel
wants them in that type.

Shapes: O outputs, I inputs, G groups of inputs, V vocabulary, D width, W 32-bit words of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.whitebox.decode_kernels import RowKernel, pick_kernel

WORD_BITS = 32


@dataclass(frozen=True)
class IntegerMatrix:
    """A quantized matrix: W_OxI[o, i] = values_OxI[o, i] x scales_OxG[o, i // group_size].

    Raises:
        ValueError: the shapes do not fit each other, or `bits` is neither 4 nor 8.
    """

    values_OxI: Tensor
    scales_OxG: Tensor
    bits: int

    def __post_init__(self) -> None:
        (rows, columns), (scale_rows, groups) = self.values_OxI.shape, self.scales_OxG.shape
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits per weight; this format has 4 or 8")
        if scale_rows != rows or columns % groups:
            raise ValueError(f"scales of shape {scale_rows}x{groups} do not fit a matrix of {rows}x{columns}")

    @property
    def group_size(self) -> int:
        """Inputs that share a scale; the whole row when there is one scale per row."""
        return self.values_OxI.shape[1] // self.scales_OxG.shape[1]

    def dequantize(self) -> Tensor:
        """W_OxI in float32."""
        grouped_OxGxg = self.values_OxI.unflatten(1, (-1, self.group_size)).float()
        return (grouped_OxGxg * self.scales_OxG.float()[:, :, None]).flatten(1)


def pack_words(values_OxI: Tensor, bits: int) -> Tensor:
    """Integers side by side in 32-bit words, the first in the lowest bits: words_OxW, int32.

    They are stored without sign, shifted up by half of their range, as compressed-tensors has it.

    Raises:
        ValueError: a row does not fill whole words.
    """
    per_word = WORD_BITS // bits
    if values_OxI.shape[1] % per_word:
        raise ValueError(
            f"rows of {values_OxI.shape[1]} weights; expected a multiple of {per_word} per 32-bit word"
        )
    unsigned_OxWxP = values_OxI.long().add(1 << (bits - 1)).unflatten(1, (-1, per_word))
    shifts_P = bits * torch.arange(per_word, device=values_OxI.device)
    words_OxW = (unsigned_OxWxP << shifts_P).sum(dim=2)
    return torch.where(words_OxW < 1 << 31, words_OxW, words_OxW - (1 << 32)).int()


def unpack_words(words_OxW: Tensor, bits: int) -> Tensor:
    """The inverse of `pack_words`: values_OxI, int8."""
    shifts_P = bits * torch.arange(WORD_BITS // bits, device=words_OxW.device, dtype=torch.int32)
    unsigned_OxWxP = (words_OxW[:, :, None] >> shifts_P) & ((1 << bits) - 1)
    return (unsigned_OxWxP - (1 << (bits - 1))).flatten(1).to(torch.int8)


class _QuantizedModule(nn.Module):
    """Holds a matrix as buffers, so that it moves with the model and is never trained."""

    values: Tensor
    scales: Tensor

    def __init__(self, matrix: IntegerMatrix) -> None:
        super().__init__()
        self.bits = matrix.bits
        self.register_buffer("values", matrix.values_OxI)
        self.register_buffer("scales", matrix.scales_OxG)

    @property
    def matrix(self) -> IntegerMatrix:
        """The integers and scales as they are stored."""
        return IntegerMatrix(self.values, self.scales, self.bits)

    @property
    def weight(self) -> Tensor:
        """The weight in float32, made anew at every use."""
        return self.matrix.dequantize()


class QuantizedLinear(_QuantizedModule):
    """A linear layer on integer weights; a bias stays as it was.

    Several rows at once (a prompt, a batch) are multiplied in float32 with the dequantized weight: exact, and
    as fast as it gets, since unpacking costs once and the product is large. A single row, which is what
    decoding one text needs, is bound by reading the weight; there a kernel that reads the integers
    themselves is used, if this machine has one that proved right on this very matrix.
    """

    bias: Tensor | None

    def __init__(self, matrix: IntegerMatrix, fast_decode: bool = True, bias_O: Tensor | None = None) -> None:
        super().__init__(matrix)
        self.out_features, self.in_features = matrix.values_OxI.shape
        self.register_buffer("bias", bias_O)
        self.kernel: RowKernel | None = None
        if fast_decode:
            self.kernel = pick_kernel(self.values, self.scales, self.bits)

    def forward(self, x_I: Tensor) -> Tensor:
        """x_...xI to y_...xO, in the type of x."""
        if self.kernel is not None and x_I.numel() == self.in_features and x_I.is_cpu:
            y_O = self.kernel.multiply(x_I.view(1, -1)).view(*x_I.shape[:-1], self.out_features)
            return y_O if self.bias is None else y_O + self.bias.to(y_O.dtype)
        bias_O = self.bias if self.bias is None else self.bias.to(x_I.dtype)
        return F.linear(x_I, self.weight.to(x_I.dtype), bias_O)

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        kernel = self.kernel.name if self.kernel else "float32"
        return f"in={self.in_features}, out={self.out_features}, bits={self.bits}, decodes with {kernel}"


class QuantizedEmbedding(_QuantizedModule):
    """A table of token vectors, int8 with one scale per token; only the rows asked for are unpacked."""

    def forward(self, ids_BxT: Tensor) -> Tensor:
        """e_BxTxD in float32."""
        return self.values[ids_BxT].float() * self.scales[ids_BxT].float()

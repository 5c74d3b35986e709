"""NF4: weights in 4 bits, with levels where a normal distribution has its mass (Dettmers et al. 2023,
arXiv:2305.14314, section 3 and appendix E).

Trained weights are nearly normal with mean 0. So a block of 64 of them is divided by its largest, and each is
rounded to the nearest of 16 levels that lie as quantiles of that distribution do; 0 is one of them. The
largest values of the blocks, in float32, would be half a bit per weight: double quantisation rounds these,
too, to 8 bits (dynamic tree quantisation: Dettmers et al. 2021, arXiv:2110.02861, section 2.1). Together that
is 4.13 bits per weight.

Layout: row after row, two codes a byte, the first in the high four bits.

Shapes: N weights, K = N / 64 blocks, O outputs, I inputs, ... any.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.whitebox.device import in_product_dtype

BLOCK = 64
"""Weights that share a scale."""
SCALES_BLOCK = 256
"""Scales that share one, when they are quantized themselves."""
OUTERMOST = 1 - (1 / 32 + 1 / 30) / 2
"""Probability of the outermost level; 1 would lie at infinity."""
EXPONENTS = 7


@cache
def nf4_levels() -> Tensor:
    """The 16 levels, ascending from -1 to 1: seven quantiles below 0, eight above it, and 0 (appendix E)."""
    quantile = NormalDist().inv_cdf
    below = [-quantile(OUTERMOST + (0.5 - OUTERMOST) * i / 7) for i in range(7)]
    above = [quantile(OUTERMOST + (0.5 - OUTERMOST) * i / 8) for i in range(8)]
    levels = torch.tensor(sorted([*below, 0.0, *above]), dtype=torch.float64)
    return (levels / levels.max()).float()


@cache
def dynamic_levels() -> Tensor:
    """The 256 levels of the 8-bit scales, ascending: fine near 0, coarse near 1, for all powers of ten.

    With exponent e the values lie in 10^(e - 7) to 10^(e - 6), and 2^e of them share that range evenly: the
    fewer bits the exponent takes, the more are left for the fraction.
    """
    levels = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - EXPONENTS + 1)
        levels += [sign * float(middle) for middle in middles for sign in (-1, 1)]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nearest(values_N: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level of each value, uint8; between two, the lower one."""
    middles = ((levels[:-1] + levels[1:]) / 2).to(values_N.device)
    return torch.bucketize(values_N, middles).to(torch.uint8)


@dataclass(frozen=True)
class QuantizedScales:
    """One number per block of weights, in 8 bits: levels[codes] x largest + mean."""

    codes_K: Tensor
    largest: Tensor
    """Of each 256 scales, after the mean was taken off."""
    mean: Tensor
    """All scales are positive; without their mean they use both signs."""

    @classmethod
    def of(cls, scales_K: Tensor) -> QuantizedScales:
        """Rounds scales in float32."""
        mean = scales_K.mean()
        blocks = _blocks(scales_K - mean, SCALES_BLOCK)
        largest = blocks.abs().amax(dim=1)
        codes = nearest(_divided(blocks, largest), dynamic_levels())
        return cls(codes.flatten()[: len(scales_K)].clone(), largest, mean)

    def dequantize(self) -> Tensor:
        """scales_K in float32."""
        levels = dynamic_levels().to(self.codes_K.device)
        largest = self.largest.repeat_interleave(SCALES_BLOCK)[: len(self.codes_K)]
        return levels[self.codes_K.int()] * largest + self.mean


def nf4_quantize(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of all weights, packed in pairs: codes_N/2 uint8; and the largest value of each block, scales_K.

    Where they do not fill their last block or byte, zeros do.
    """
    blocks_KxB = _blocks(weights.detach().float().flatten(), BLOCK)
    scales_K = blocks_KxB.abs().amax(dim=1)
    codes = nearest(_divided(blocks_KxB, scales_K), nf4_levels()).flatten()
    codes = codes[: weights.numel() + weights.numel() % 2]
    return codes[0::2] << 4 | codes[1::2], scales_K


def nf4_dequantize(codes: Tensor, scales_K: Tensor, shape: torch.Size) -> Tensor:
    """The weights that the codes stand for, in float32."""
    values = _pairs(codes.device)[codes.int()].flatten()
    whole = F.pad(values, (0, len(scales_K) * BLOCK - len(values))).view(-1, BLOCK)
    return whole.mul_(scales_K[:, None]).flatten()[: shape.numel()].view(shape)


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is held in 4 bits; one layer's weight is dense at a time.

    The buffers are in no checkpoint: they follow from the model that the training began with.
    """

    codes: Tensor
    scales: Tensor
    largest: Tensor
    mean: Tensor
    bias: Tensor | None

    def __init__(self, weight_OxI: Tensor, bias_O: Tensor | None = None, double: bool = True) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OxI.shape
        codes, scales_K = nf4_quantize(weight_OxI)
        self.double = double
        parts = {"codes": codes, "scales": scales_K, "bias": None if bias_O is None else bias_O.detach()}
        if double:
            rounded = QuantizedScales.of(scales_K)
            parts |= {"scales": rounded.codes_K, "largest": rounded.largest, "mean": rounded.mean}
        for name, tensor in parts.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> Nf4Linear:
        """The layer with its weight rounded."""
        return cls(layer.weight, layer.bias)

    @property
    def weight(self) -> Tensor:
        """W_OxI in float32, made anew at every use."""
        scales_K = self.scales
        if self.double:
            scales_K = QuantizedScales(self.scales, self.largest, self.mean).dequantize()
        return nf4_dequantize(self.codes, scales_K, torch.Size((self.out_features, self.in_features)))

    @property
    def num_bytes(self) -> int:
        """Of the weight, with its scales and without a bias."""
        held = [buffer for name, buffer in self.named_buffers() if name != "bias"]
        return sum(buffer.numel() * buffer.element_size() for buffer in held)

    def forward(self, x_I: Tensor) -> Tensor:
        """x_...xI to y_...xO; under autocast in its type."""
        y_O: Tensor = _Product.apply(in_product_dtype(x_I), self)
        return y_O


class _Product(torch.autograd.Function):
    """x W^T + b. The dense weight is not kept for the backward pass but made again: that saves its memory."""

    @staticmethod
    def forward(ctx: Any, x_I: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        bias_O = None if layer.bias is None else layer.bias.to(x_I.dtype)
        return F.linear(x_I, layer.weight.to(x_I.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, grad_O: Tensor) -> tuple[Tensor, None]:
        return grad_O @ ctx.layer.weight.to(grad_O.dtype), None


@cache
def _pairs(device: torch.device) -> Tensor:
    """Both values of every byte, 256 x 2: one look-up for two weights."""
    bytes_256 = torch.arange(256)
    return nf4_levels()[torch.stack([bytes_256 >> 4, bytes_256 & 15], dim=1)].to(device)


def _blocks(values_N: Tensor, size: int) -> Tensor:
    return F.pad(values_N, (0, -len(values_N) % size)).view(-1, size)


def _divided(blocks: Tensor, largest: Tensor) -> Tensor:
    """By each block's largest value; a block of zeros stays one."""
    return blocks / torch.where(largest > 0, largest, 1.0)[:, None]

"""NF4 against bitsandbytes: the same codes, the same weights, and fewer bytes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stages.whitebox.nf4 import Nf4Linear, dynamic_levels, nf4_dequantize, nf4_levels, nf4_quantize

bitsandbytes = pytest.importorskip("bitsandbytes.functional")

# Widths that are multiples of 64: where a block goes over the end of a row, bitsandbytes 0.50.2 on a CPU
# dequantizes with other scales than it quantized with.
SHAPES = [(64, 64), (96, 320), (1, 128)]


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_levels_are_theirs() -> None:
    _, state = bitsandbytes.quantize_4bit(torch.randn(64, 64), quant_type="nf4", blocksize=64)
    torch.testing.assert_close(nf4_levels(), state.code, rtol=0, atol=3e-7)
    assert torch.equal(dynamic_levels(), bitsandbytes.create_dynamic_map())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_equal_theirs_and_stand_for_the_same_weights(shape: tuple[int, int], double: bool) -> None:
    weight = random_weight(shape)
    codes, state = bitsandbytes.quantize_4bit(
        weight, quant_type="nf4", blocksize=64, compress_statistics=double
    )
    layer = Nf4Linear(weight, double=double)
    assert torch.equal(layer.codes, codes.flatten())
    theirs = bitsandbytes.dequantize_4bit(codes, state)
    torch.testing.assert_close(layer.weight, theirs, rtol=0, atol=1e-3 if double else 1e-7)


def test_codes_of_odd_shapes_equal_theirs() -> None:
    for shape in [(7, 9), (300, 515), (48, 80)]:
        weight = random_weight(shape)
        codes, scales_K = nf4_quantize(weight)
        assert torch.equal(codes, bitsandbytes.quantize_4bit(weight, quant_type="nf4")[0].flatten())
        # Half of the widest gap between two levels, 0.30, of the block's largest.
        far = (nf4_dequantize(codes, scales_K, weight.shape) - weight).abs().max()
        assert far < 0.16 * weight.abs().max()


def test_zeros_stay_zero() -> None:
    assert not Nf4Linear(torch.zeros(3, 64)).weight.any()


def test_it_takes_about_an_eighth_of_the_bytes_of_float32() -> None:
    weight = random_weight((256, 512))
    num_blocks = weight.numel() // 64
    scale_of_scales = 4 * (num_blocks // 256) + 4
    assert Nf4Linear(weight).num_bytes == weight.numel() // 2 + num_blocks + scale_of_scales
    assert Nf4Linear(weight, double=False).num_bytes == weight.numel() // 2 + 4 * num_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_dense_weight(dtype: torch.dtype) -> None:
    layer = Nf4Linear(random_weight((96, 64)), bias_O=random_weight((96,)))
    x = torch.randn(2, 5, 64, requires_grad=True)
    grad = torch.randn(2, 5, 96).to(dtype)
    assert layer.bias is not None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        ours = layer(x)
        (ours_dx,) = torch.autograd.grad(ours, x, grad)
        theirs = F.linear(x, layer.weight, layer.bias)
        (theirs_dx,) = torch.autograd.grad(theirs, x, grad)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours_dx, theirs_dx)


def test_the_backward_pass_keeps_no_dense_weight() -> None:
    layer = Nf4Linear(random_weight((96, 64)))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True)).sum()
    assert sum(tensor.numel() for tensor in kept) == 0

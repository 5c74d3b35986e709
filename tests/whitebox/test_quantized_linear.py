"""Integer matrices: packing against compressed-tensors, layers against the plain product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stages.whitebox import decode_kernels
from stages.whitebox.decode_kernels import RowKernel, pick_exact_kernel, pick_kernel
from stages.whitebox.quantized_linear import (
    IntegerMatrix,
    QuantizedEmbedding,
    QuantizedLinear,
    pack_words,
    unpack_words,
)


def random_matrix(
    bits: int, rows: int = 48, group_size: int | None = None, columns: int = 128
) -> IntegerMatrix:
    generator = torch.Generator().manual_seed(rows + columns + bits)
    half = 1 << (bits - 1)
    values = torch.randint(-half, half, (rows, columns), generator=generator, dtype=torch.int8)
    num_groups = columns // (group_size or columns)
    scales = (0.01 + torch.rand(rows, num_groups, generator=generator)).to(torch.bfloat16)
    return IntegerMatrix(values, scales, bits)


MATRICES = [random_matrix(8), random_matrix(4, group_size=32), random_matrix(4, group_size=64)]


def test_dequantize_is_integer_times_scale_of_its_group() -> None:
    values = torch.tensor([[1, -2, 3, -8], [7, 0, -1, 4]], dtype=torch.int8)
    matrix = IntegerMatrix(values, torch.tensor([[0.5, 2.0], [1.0, 0.25]]), 4)
    assert matrix.group_size == 2
    assert matrix.dequantize().tolist() == [[0.5, -1.0, 6.0, -16.0], [7.0, 0.0, -0.25, 1.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_equals_compressed_tensors(bits: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    values = random_matrix(bits).values_OxI
    words = pack_words(values, bits)
    assert words.dtype == torch.int32
    assert torch.equal(words, helpers.pack_to_int32(values, bits))
    assert torch.equal(unpack_words(words, bits), values)


def test_every_integer_survives_packing() -> None:
    for bits in (4, 8):
        half = 1 << (bits - 1)
        values = torch.arange(-half, half, dtype=torch.int8).view(2, -1)
        assert torch.equal(unpack_words(pack_words(values, bits), bits), values)


def test_refuses_what_does_not_fit() -> None:
    values = torch.zeros(4, 12, dtype=torch.int8)
    with pytest.raises(ValueError, match="multiple of 8 per 32-bit word"):
        pack_words(values, 4)
    with pytest.raises(ValueError, match="do not fit a matrix of 4x12"):
        IntegerMatrix(values, torch.ones(4, 5), 4)
    with pytest.raises(ValueError, match="5 bits per weight"):
        IntegerMatrix(values, torch.ones(4, 1), 5)


@pytest.mark.parametrize("matrix", MATRICES, ids=["int8", "int4g32", "int4g64"])
def test_many_rows_are_the_exact_product(matrix: IntegerMatrix) -> None:
    x = torch.randn(2, 5, 128)
    assert torch.equal(QuantizedLinear(matrix)(x), F.linear(x, matrix.dequantize()))


@pytest.mark.parametrize("matrix", MATRICES, ids=["int8", "int4g32", "int4g64"])
def test_one_row_is_the_product_within_bfloat16_and_repeatable(matrix: IntegerMatrix) -> None:
    x = torch.randn(1, 1, 128)
    exact = F.linear(x, matrix.dequantize())
    layer = QuantizedLinear(matrix)
    found = layer(x)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 0.02 * exact.abs().max()
    assert torch.equal(layer(x), found)
    assert torch.equal(QuantizedLinear(matrix, fast_decode=False)(x), exact)


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = MATRICES[0]
    arguments = (matrix.values_OxI, matrix.scales_OxG, 8)

    def swapped(values: torch.Tensor, scales: torch.Tensor) -> RowKernel:
        return RowKernel("swapped", lambda x: F.linear(x, (values.float() * scales.float()).flip(0)))

    def missing(values: torch.Tensor, scales: torch.Tensor) -> RowKernel:
        raise RuntimeError("not compiled in")

    for fault in (swapped, missing):
        monkeypatch.setattr(decode_kernels, "_int8_kernel", fault)
        assert pick_kernel(*arguments) is None
    x = torch.randn(1, 128)
    assert torch.equal(QuantizedLinear(matrix)(x), F.linear(x, matrix.dequantize()))


def test_the_exact_kernel_is_exact_to_float32() -> None:
    matrix = random_matrix(8, rows=300)
    kernel = pick_exact_kernel(matrix.values_OxI, matrix.scales_OxG, 8)
    if kernel is None:
        pytest.skip("this build of PyTorch has no float16 product for the CPU")
    x = torch.randn(1, 128)
    exact = F.linear(x.double(), matrix.values_OxI.double() * matrix.scales_OxG.double())
    assert (kernel.multiply(x).double() - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_no_exact_kernel_for_groups() -> None:
    matrix = MATRICES[1]
    assert pick_exact_kernel(matrix.values_OxI, matrix.scales_OxG, 4) is None


def test_embedding_unpacks_the_rows_asked_for() -> None:
    matrix = random_matrix(8)
    ids = torch.tensor([[0, 7], [47, 7]])
    assert torch.equal(QuantizedEmbedding(matrix)(ids), matrix.dequantize()[ids])


def test_nothing_is_trainable_and_the_printout_names_the_kernel() -> None:
    layer = QuantizedLinear(MATRICES[1], fast_decode=False)
    assert list(layer.parameters()) == []
    assert set(layer.state_dict()) == {"values", "scales"}
    assert "bits=4, decodes with float32" in repr(layer)

"""Choosing integers: bounds on the error, and that looking further ahead pays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from stages.quantize import calibration
from stages.quantize.calibration import quantize_calibrated, quantize_nearest_everywhere
from stages.quantize.gptq import quantize_gptq
from stages.quantize.rounding import best_scales, quantize_nearest
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import EMBEDDING, OUTPUT, QuantizedLM
from stages.whitebox.quantized_linear import IntegerMatrix


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(24, 64, generator=torch.Generator().manual_seed(2)) * 0.05


@pytest.fixture
def inputs() -> torch.Tensor:
    """Inputs of which a few features dominate and most go together, as activations do."""
    generator = torch.Generator().manual_seed(3)
    mixed = torch.randn(512, 16, generator=generator) @ torch.randn(16, 64, generator=generator)
    return mixed + 0.3 * torch.randn(512, 64, generator=generator)


def test_int8_moves_no_weight_by_more_than_half_a_step(weight: torch.Tensor) -> None:
    matrix = quantize_nearest(weight, 8)
    steps = matrix.scales_OxG.float()
    assert steps.shape == (24, 1)
    # bfloat16 may round the scale down by 1/256, which clips the largest weight by as much.
    clipped = weight.abs().amax(dim=1, keepdim=True) / 256
    assert ((matrix.dequantize() - weight).abs() <= torch.maximum(steps / 2 + 1e-7, clipped)).all()


def test_searched_scales_beat_covering_the_largest_weight(weight: torch.Tensor) -> None:
    def squared_error(scale: torch.Tensor) -> float:
        return float(((weight / scale).round().clamp(-8, 7) * scale - weight).square().sum())

    covering = weight.abs().amax(dim=1, keepdim=True) / 7
    assert squared_error(best_scales(weight, 4)) < 0.9 * squared_error(covering)


def test_zeros_stay_zeros_and_small_rows_keep_their_precision() -> None:
    weight = torch.stack([torch.zeros(32), torch.linspace(-1e-4, 1e-4, 32), torch.linspace(-9, 9, 32)])
    found = quantize_nearest(weight, 8).dequantize()
    assert torch.equal(found[0], weight[0])
    assert torch.allclose(found[1] * 9e4, found[2], atol=0.05)


def test_groups_must_divide_the_inputs(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="64 inputs do not divide into groups of 48"):
        quantize_nearest(weight, 4, 48)
    with pytest.raises(ValueError, match="64 inputs do not divide into groups of 48"):
        quantize_gptq(weight, torch.eye(64), 4, 48)


def test_gptq_moves_the_outputs_less_than_rounding_does(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    def output_error(dequantized: torch.Tensor) -> float:
        return float((inputs @ (dequantized - weight).T).square().sum())

    nearest = quantize_nearest(weight, 4, 32)
    calibrated = quantize_gptq(weight, inputs.T @ inputs, 4, 32)
    assert output_error(calibrated.dequantize()) < 0.5 * output_error(nearest.dequantize())


def test_gptq_is_rounding_where_inputs_are_independent(weight: torch.Tensor) -> None:
    calibrated, nearest = quantize_gptq(weight, torch.eye(64), 4, 32), quantize_nearest(weight, 4, 32)
    assert torch.equal(calibrated.values_OxI, nearest.values_OxI)
    assert torch.equal(calibrated.scales_OxG, nearest.scales_OxG)


def test_gptq_survives_inputs_that_never_occur(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    inputs = inputs.clone()
    inputs[:, 5:40] = 0
    for hessian in (inputs.T @ inputs, torch.zeros(64, 64)):
        assert torch.isfinite(quantize_gptq(weight, hessian, 4, 32).dequantize()).all()


QWEN2 = {"qk_norm": False, "attention_bias": True, "sliding_window": 6}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return loud_model()


def loud_model(**options: Any) -> CausalLM:
    torch.manual_seed(4)
    config = ModelConfig(128, 64, 96, 2, 4, 2, 16, max_position_embeddings=64, **options)
    model = CausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5.0 if parameter.ndim > 1 else 1.0)
    return model


def test_calibration_leaves_the_model_alone_and_reports_layers(model: CausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done: list[int] = []
    ids = torch.randint(4, 128, (8, 64), generator=torch.Generator().manual_seed(0))
    weights = quantize_calibrated(model, ids, 4, 32, done.append)
    assert done == [1, 2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert {matrix.bits for name, matrix in weights.matrices.items() if name != EMBEDDING} == {4}
    assert weights.matrices[EMBEDDING].bits == 8
    assert set(weights.others) == {name for name in before if "norm" in name}


def test_the_integers_depend_neither_on_where_tensors_lie_nor_on_what_lay_there(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(4 * 64).reshape(4, 64) % model.config.vocab_size
    expected = quantize_calibrated(model, ids, 4, 32).matrices
    elsewhere = copy.deepcopy(model)
    for parameter in elsewhere.parameters():
        parameter.data = misplaced(parameter.data)
    # Memory that is read before it is written is NaN then, and so would be what it is added to.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        found = quantize_calibrated(elsewhere, ids, 4, 32).matrices
    finally:
        torch.use_deterministic_algorithms(False)
    for name, matrix in expected.items():
        assert torch.equal(matrix.values_OxI, found[name].values_OxI), name
        assert torch.equal(matrix.scales_OxG, found[name].scales_OxG), name


def misplaced(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers where no vector of the processor begins, as in a file that is mapped."""
    room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    return room[1:].view_as(tensor).copy_(tensor)


@pytest.mark.parametrize("options", [{}, QWEN2])
def test_calibrated_logits_are_closer_than_rounded_ones(options: dict[str, Any]) -> None:
    model = loud_model(**options)
    generator = torch.Generator().manual_seed(1)
    # Few tokens occur often, so that the inputs have a direction to calibrate for.
    ids = torch.multinomial(1 / torch.arange(1.0, 129), 32 * 64, replacement=True, generator=generator).view(
        32, 64
    )

    def logit_error(weights: object) -> float:
        with torch.no_grad():
            return float((QuantizedLM(weights)(ids[:4]) - model(ids[:4])).square().mean())

    calibrated = logit_error(quantize_calibrated(model, ids, 4, 32))
    assert calibrated < 0.85 * logit_error(quantize_nearest_everywhere(model, 4, 32))


def test_a_layer_is_calibrated_on_what_it_sees_through_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs that o_proj has been calibrated on are those of a plain forward pass."""
    model, ids = loud_model(**QWEN2), torch.arange(4, 68)[None]
    expected: list[torch.Tensor] = []
    projection = model.model.layers[0].self_attn.o_proj
    with projection.register_forward_pre_hook(lambda _, inputs: expected.append(inputs[0][0])):
        model(ids)
    seen: list[torch.Tensor] = []

    def note(weight: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int) -> IntegerMatrix:
        if weight is projection.weight:
            seen.append(hessian)
        return quantize_gptq(weight, hessian, bits, group_size)

    monkeypatch.setattr(calibration, "quantize_gptq", note)
    quantize_calibrated(model, ids, 4, 32)
    torch.testing.assert_close(seen[0].float(), expected[0].T @ expected[0], atol=1e-2, rtol=1e-4)


def test_an_untied_output_matrix_is_a_table_of_its_own() -> None:
    config = ModelConfig(128, 64, 96, 1, 4, 2, 16, max_position_embeddings=64, tie_word_embeddings=False)
    weights = quantize_nearest_everywhere(CausalLM(config), 4, 32)
    assert weights.matrices[OUTPUT].bits == 8 and weights.matrices[OUTPUT].scales_OxG.shape == (128, 1)

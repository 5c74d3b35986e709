"""Quantized folders: read back whole, opened by transformers, refused when they are not right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.quantize.calibration import quantize_nearest_everywhere
from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import save_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.kv_cache import KVCache
from stages.whitebox.model import CausalLM
from stages.whitebox.quantized_checkpoint import (
    QuantizedLM,
    QuantizedWeights,
    load_quantized,
    read_quantized,
    save_quantized,
)
from stages.whitebox.rope_scaling import RopeScaling

IDS = torch.tensor([[1, 30, 31, 200, 7, 7, 99], [1, 5, 6, 7, 8, 9, 10]])


QWEN2 = {"qk_norm": False, "attention_bias": True, "sliding_window": 3, "sliding_layers": (1,)}
YARN = {"rope_scaling": RopeScaling("yarn", 4.0, 16), "rope_theta": 100.0, "attention_bias": True}
OTHERS = [QWEN2, {**YARN, "attention_output_bias": True}]


def tiny_config(tied: bool = True, qk_norm: bool = True, **options: Any) -> ModelConfig:
    return ModelConfig(
        vocab_size=240,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **{"qk_norm": qk_norm, **options},
    )


def tiny_model(config: ModelConfig) -> CausalLM:
    torch.manual_seed(1)
    model = CausalLM(config).eval()
    for parameter in model.parameters():  # far from zero, so that logits differ visibly
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(std=0.3)
    return model


def quantize(config: ModelConfig, bits: int) -> QuantizedWeights:
    return quantize_nearest_everywhere(tiny_model(config), bits, None if bits == 8 else 32)


@pytest.fixture(scope="module")
def int4_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4")
    save_quantized(quantize(tiny_config(), 4), folder)
    return folder


@pytest.fixture
def own_copy(int4_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int4_folder, tmp_path / "copy"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("tied", "qk_norm"), [(True, True), (False, True), (True, False)])
def test_transformers_opens_it_unpatched_with_the_same_logits(
    bits: int, tied: bool, qk_norm: bool, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    save_quantized(quantize(tiny_config(tied, qk_norm), bits), tmp_path)
    reference, loaded = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    with torch.no_grad():
        expected, found = reference(IDS).logits, load_quantized(tmp_path)(IDS)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("options", OTHERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_biases_windows_and_scaled_rope_go_through_too(
    options: dict[str, Any], bits: int, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    config = tiny_config(**options)
    save_quantized(quantize(config, bits), tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    exact, fast = load_quantized(tmp_path, fast_decode=False), load_quantized(tmp_path)
    with torch.no_grad():
        expected = reference(IDS).logits
        torch.testing.assert_close(exact(IDS), expected, atol=1e-4, rtol=0)
        cache = KVCache(config, 1, 7)
        decoded = torch.cat([fast(one, cache=cache) for one in IDS[:1].split(1, dim=1)], dim=1)
    assert (decoded - expected[:1]).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_read_is_what_was_written(tied: bool, tmp_path: Path) -> None:
    written = quantize(tiny_config(tied), 4)
    save_quantized(written, tmp_path)
    read = read_quantized(tmp_path)
    assert read.config == written.config
    assert set(read.matrices) == set(written.matrices) and set(read.others) == set(written.others)
    for name, matrix in written.matrices.items():
        assert torch.equal(read.matrices[name].values_OxI, matrix.values_OxI)
        assert torch.equal(read.matrices[name].scales_OxG, matrix.scales_OxG)


def test_the_same_weights_give_the_same_bytes_readable_by_others(int4_folder: Path, tmp_path: Path) -> None:
    save_quantized(read_quantized(int4_folder), tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert file_sha256(tmp_path / name) == file_sha256(int4_folder / name)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("bits", [4, 8])
def test_logits_are_those_of_the_dequantized_model(bits: int) -> None:
    config = tiny_config()
    weights = quantize(config, bits)
    plain = CausalLM(config).eval()
    dequantized = {f"{name}.weight": matrix.dequantize() for name, matrix in weights.matrices.items()}
    plain.load_state_dict({**weights.others, **dequantized})
    with torch.no_grad():
        assert torch.allclose(QuantizedLM(weights, fast_decode=False)(IDS), plain(IDS), atol=1e-5)


def test_decoding_kernels_stay_close_and_can_be_left_out(int4_folder: Path) -> None:
    fast, exact = load_quantized(int4_folder), load_quantized(int4_folder, fast_decode=False)
    one = IDS[:1, :1]
    with torch.no_grad():
        difference = (fast(one) - exact(one)).abs().max()
        assert difference < 0.05 * exact(one).abs().max()
        assert torch.equal(fast(IDS), exact(IDS))
    assert exact.output_kernel is None


def test_a_float_model_is_refused_with_the_way_to_open_it(tmp_path: Path) -> None:
    save_model(tiny_model(tiny_config()), tmp_path)
    with pytest.raises(ValueError, match="open it with load_model"):
        load_quantized(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a quantized model's folder"):
        load_quantized(tmp_path)


def test_a_cut_file_is_refused(own_copy: Path) -> None:
    weights = own_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_quantized(own_copy)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight_packed", "has scales but no tensor"),
        ("model.layers.0.input_layernorm.weight", "lacks model.layers.0.input_layernorm.weight"),
        ("model.layers.0.mlp.down_proj.weight_scale", "takes model.layers.0.mlp.down_proj.weight_packed"),
    ],
)
def test_a_missing_tensor_is_named(own_copy: Path, lost: str, message: str) -> None:
    tensors = load_file(own_copy / "model.safetensors")
    del tensors[lost]
    save_file(tensors, own_copy / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_quantized(own_copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("hidden_size", 32, "config.json asks for"), ("num_hidden_layers", 1, "describes no such module")],
)
def test_a_config_of_another_model_is_refused(own_copy: Path, field: str, value: int, message: str) -> None:
    path = own_copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message):
        load_quantized(own_copy)


def test_other_bits_are_refused(own_copy: Path) -> None:
    path = own_copy / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization_config"]["config_groups"]["group_1"]["weights"]["num_bits"] = 3
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="this code reads 4 or 8"):
        load_quantized(own_copy)

"""A saved model opens here and in transformers, and damage is named."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import load_model, read_stop_ids, save_model
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM

Make = Callable[..., CausalLM]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_transformers_opens_it_unpatched(make_model: Make, tmp_path: Path, tied: bool, qk_norm: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_model(tie_word_embeddings=tied, qk_norm=qk_norm)
    save_model(model, tmp_path, stop_ids=[7])
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids_BxT = torch.randint(4, 61, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(ids_BxT), peer(ids_BxT).logits, atol=1e-4, rtol=0)
    prompt = [1, 9, 30]
    ours = generate(model, prompt, max_new_tokens=20, stop_ids=[2, 7])
    theirs = peer.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 3:].tolist()
    assert [token for token in theirs if token not in (2, 7)] == ours


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_bit_for_bit(make_model: Make, tmp_path: Path, tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied


def test_the_same_weights_give_the_same_bytes_readable_by_all(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "a")
    save_model(make_model(), tmp_path / "b")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert file_sha256(tmp_path / "a" / name) == file_sha256(tmp_path / "b" / name)
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) & 0o044 == 0o044


def test_a_loaded_model_can_be_trained_and_converted(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    model = load_model(tmp_path)
    model(torch.tensor([[1, 5, 6]])).sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    assert load_model(tmp_path, dtype=torch.bfloat16).output_weight().dtype == torch.bfloat16


def test_the_type_of_the_weights_stands_in_config_json(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model().to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_stop_ids_come_back(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path, stop_ids=[7, 2])
    assert read_stop_ids(tmp_path) == [2, 7]


def test_damage_is_named(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; expected a model folder"):
        load_model(tmp_path)
    save_model(make_model(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "hidden_size": 40}))
    with pytest.raises(ValueError, match=r"embed_tokens.weight has shape \(61, 32\), .* asks for \(61, 40\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_model(tmp_path)


def test_a_tensor_too_many_or_too_few_is_named(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(qk_norm=False), tmp_path / "llama")
    save_model(make_model(), tmp_path / "qwen")
    (tmp_path / "llama" / "config.json").write_bytes((tmp_path / "qwen" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"q_norm\.weight has shape missing"):
        load_model(tmp_path / "llama")


def test_a_routers_bias_is_float32_whatever_the_file_has(make_model: Make, tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = make_model(**experts, scoring_func="sigmoid", n_shared_experts=1)
    save_model(model.bfloat16(), tmp_path)
    for dtype in (None, torch.float32, torch.bfloat16):
        again = load_model(tmp_path, dtype=dtype)
        kinds = {name: tensor.dtype for name, tensor in again.state_dict().items() if "bias" in name}
        assert kinds and set(kinds.values()) == {torch.float32}

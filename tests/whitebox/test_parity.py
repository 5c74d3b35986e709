"""Every architecture against transformers in float32: numbers, gradients, text, and files both ways.

Tolerance: the largest difference is at most 1e-5 of the largest value of the tensor.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import load_model, save_model
from stages.whitebox.generate import generate
from stages.whitebox.model import CausalLM
from stages.whitebox.rope_scaling import RopeScaling

transformers = pytest.importorskip("transformers")

Make = Callable[..., CausalLM]
Fields = dict[str, Any]
LLAMA = {"qk_norm": False, "tie_word_embeddings": False, "rope_theta": 500_000.0}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3_ROPE = RopeScaling("llama3", 4.0, 24, low_freq_factor=1.0, high_freq_factor=4.0)
VARIANTS: dict[str, tuple[str, Fields]] = {
    "llama 3": ("Llama", LLAMA),
    "llama 3.1 rope": ("Llama", {**LLAMA, "rope_theta": 100.0, "rope_scaling": LLAMA3_ROPE}),
    "llama with biases": ("Llama", {**LLAMA, "attention_bias": True, "attention_output_bias": True}),
    "linear rope": ("Llama", {**LLAMA, "rope_scaling": RopeScaling("linear", 2.5)}),
    "dynamic rope": (
        "Llama",
        {**LLAMA, "rope_scaling": RopeScaling("dynamic", 4.0), "max_position_embeddings": 12},
    ),
    "mistral": ("Mistral", {"qk_norm": False, "sliding_window": 5}),
    "qwen2": ("Qwen2", {"qk_norm": False, "attention_bias": True}),
    "qwen2, some windows": (
        "Qwen2",
        {"qk_norm": False, "attention_bias": True, "sliding_window": 5, "sliding_layers": (1,)},
    ),
    "qwen3": ("Qwen3", {"rope_theta": 1e6}),
    "qwen3, untied, wide heads": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 12}),
    "qwen3 with biases": ("Qwen3", {"attention_bias": True, "attention_output_bias": True}),
    "qwen3, first layer windowed": ("Qwen3", {"sliding_window": 4, "sliding_layers": (0,)}),
    "yarn": ("Qwen3", {"rope_theta": 100.0, "rope_scaling": RopeScaling("yarn", 4.0, 12)}),
    "yarn, all options": (
        "Llama",
        {
            **LLAMA,
            "rope_theta": 100.0,
            "rope_scaling": RopeScaling(
                "yarn", 3.0, 16, beta_fast=4.0, beta_slow=0.5, mscale=0.7, mscale_all_dim=1.1, truncate=False
            ),
        },
    ),
    "qwen3-moe": ("Qwen3Moe", EXPERTS),
    "qwen3-moe, one expert, its own weight, a dense layer": (
        "Qwen3Moe",
        {
            **EXPERTS,
            "num_experts_per_tok": 1,
            "norm_topk_prob": False,
            "dense_layers": (0,),
            "sliding_window": 6,
        },
    ),
    "shared experts": (
        "Dots1",
        {
            **EXPERTS,
            "scoring_func": "sigmoid",
            "n_shared_experts": 2,
            "dense_layers": (0,),
            "routed_scaling_factor": 1.5,
        },
    ),
}


def assert_same(found: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    largest = expected.abs().max().item()
    difference = (found - expected).abs().max().item()
    assert difference <= 1e-5 * largest, f"{name}: {difference:.2e} of {largest:.2e}"


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(4, 61, shape, generator=torch.Generator().manual_seed(1))


def build(make_model: Make, fields: Fields) -> CausalLM:
    model = make_model(**fields)
    for name, buffer in model.named_buffers():  # the routers' biases: unequal, so that they choose
        assert name.endswith("e_score_correction_bias")
        buffer.copy_(torch.linspace(-0.2, 0.2, len(buffer)))
    return model


def opened_by_transformers(model: CausalLM, folder: Path) -> torch.nn.Module:
    save_model(model, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def loss_of(model: CausalLM, ids_BxT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the loss as transformers counts it: with the routers' where there are some."""
    logits_BxTxV = model(ids_BxT)
    loss = F.cross_entropy(logits_BxTxV[:, :-1].flatten(0, 1), ids_BxT[:, 1:].flatten())
    if model.config.num_experts and model.config.scoring_func == "softmax":
        loss = loss + model.config.router_aux_loss_coef * model.router_loss()
    return logits_BxTxV, loss


@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_and_every_gradient(make_model: Make, tmp_path: Path, name: str) -> None:
    architecture, fields = VARIANTS[name]
    model = build(make_model, {**fields, "router_aux_loss_coef": 0.5})
    peer = opened_by_transformers(model, tmp_path)
    assert type(peer).__name__ == f"{architecture}ForCausalLM"
    ids_BxT = random_ids(3, 23)
    logits_BxTxV, loss = loss_of(model, ids_BxT)
    with_routers = {"output_router_logits": True} if architecture == "Qwen3Moe" else {}
    answer = peer(input_ids=ids_BxT, labels=ids_BxT, use_cache=False, **with_routers)
    assert_same(logits_BxTxV, answer.logits)
    assert_same(loss, answer.loss)
    loss.backward()
    answer.loss.backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert theirs.keys() == ours.keys()
    for parameter_name, grad in ours.items():
        assert_same(grad, theirs[parameter_name], parameter_name)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_text(make_model: Make, tmp_path: Path, name: str) -> None:
    model = build(make_model, VARIANTS[name][1])
    peer = opened_by_transformers(model, tmp_path)
    prompt = random_ids(9).tolist()
    ours = generate(model, prompt, max_new_tokens=20, stop_ids=[])
    theirs = peer.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert theirs[0, 9:].tolist() == ours
    assert len(ours) == 20


@pytest.mark.parametrize("name", VARIANTS)
def test_through_files_of_transformers_and_back(make_model: Make, tmp_path: Path, name: str) -> None:
    model = build(make_model, VARIANTS[name][1])
    opened_by_transformers(model, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.config == model.config
    weights = again.state_dict()
    for tensor_name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[tensor_name]), tensor_name
    save_model(again, tmp_path / "again")
    for file in ("model.safetensors", "config.json"):
        assert file_sha256(tmp_path / "again" / file) == file_sha256(tmp_path / "ours" / file)


def test_trained_weights(make_model: Make, tmp_path: Path) -> None:
    """Weights that have left their random beginning, with experts, YaRN and windows at once."""
    rope = RopeScaling("yarn", 4.0, 12)
    model = build(make_model, {**EXPERTS, "rope_theta": 100.0, "rope_scaling": rope, "sliding_window": 9})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids_BxT = torch.arange(4, 36).repeat(4, 1) + torch.arange(4)[:, None]
    first, last = None, None
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, ids_BxT)[1]
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < first / 2
    peer = opened_by_transformers(model, tmp_path)
    assert_same(model(ids_BxT), peer(ids_BxT).logits)
    ours = generate(model, [4, 5, 6], max_new_tokens=20, stop_ids=[])
    assert (
        peer.generate(torch.tensor([[4, 5, 6]]), max_new_tokens=20, do_sample=False)[0, 3:].tolist() == ours
    )


def test_weights_in_several_files_and_16_bits(make_model: Make, tmp_path: Path) -> None:
    model = build(make_model, EXPERTS).to(torch.bfloat16)
    opened_by_transformers(model, tmp_path / "ours").save_pretrained(
        tmp_path / "theirs", max_shard_size="20KB"
    )
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    again = load_model(tmp_path / "theirs")
    assert again.output_weight().dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    wide = load_model(tmp_path / "theirs", dtype=torch.float32)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    assert_same(wide(random_ids(2, 9)), peer(random_ids(2, 9)).logits)
    missing = next((tmp_path / "theirs").glob("*-00002-of-*.safetensors"))
    missing.unlink()
    with pytest.raises(ValueError, match=f"{missing.name} does not exist"):
        load_model(tmp_path / "theirs")


def test_fused_experts_are_read_too(make_model: Make, tmp_path: Path) -> None:
    model = build(make_model, EXPERTS)
    opened_by_transformers(model, tmp_path / "a").save_pretrained(tmp_path / "b", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "b")(random_ids(1, 9)), model(random_ids(1, 9)))


def test_an_expert_without_a_matrix_is_named(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(**EXPERTS), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lack model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight"):
        load_model(tmp_path)


def test_a_tied_output_that_differs_is_refused_and_the_same_is_dropped(
    make_model: Make, tmp_path: Path
) -> None:
    save_model(make_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    assert "lm_head.weight" not in load_model(tmp_path).state_dict()
    weights["lm_head.weight"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        load_model(tmp_path)


def test_an_index_that_leads_elsewhere_is_refused(make_model: Make, tmp_path: Path) -> None:
    save_model(make_model(), tmp_path / "model")
    shutil.move(tmp_path / "model" / "model.safetensors", tmp_path / "other.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.norm.weight": "../other.safetensors"}}')
    with pytest.raises(ValueError, match="in the same folder"):
        load_model(tmp_path / "model")
    index.write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_model(tmp_path / "model")

"""Adapters against PEFT on the same weights: logits, gradients, files both ways; merging; resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.whitebox.adapter_file import (
    base_digest,
    check_same_kind,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from stages.whitebox.checkpoint import save_model
from stages.whitebox.lora import (
    LoraConfig,
    adapters,
    add_adapters,
    embedding_weights,
    merge_adapters,
    num_trained,
)
from stages.whitebox.model import CausalLM
from stages.whitebox.optim import build_adamw
from stages.whitebox.token_rows import TokenRows

Make = Callable[..., CausalLM]
LORA = LoraConfig(rank=4, alpha=6.0)
TOKENS = (5, 9, 33)
WHOLE = replace(LORA, whole_embedding=True)
KINDS = [
    replace(LORA, token_ids=TOKENS),
    WHOLE,
    replace(LORA, rank_stabilized=True),
    replace(LORA, magnitude=True),
]
SOME = ("q_proj", "down_proj")
LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
IDS = torch.randint(4, 60, (2, 17), generator=torch.Generator().manual_seed(1))


def fill(model: CausalLM) -> CausalLM:
    """Random adapters: B as it begins would hide every mistake."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith(("_A", "_B", "_magnitude")):
                parameter.add_(torch.randn(parameter.shape, generator=random))
        for layer in adapters(model).values():
            layer.lora_B.copy_(0.2 * torch.randn(layer.lora_B.shape, generator=random))
            if layer.lora_magnitude is not None:
                layer.lora_magnitude.mul_(1 + torch.rand(layer.lora_magnitude.shape, generator=random))
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Length of the difference, by the length of what is expected."""
    return ((found - expected).norm() / expected.norm()).item()


def opened_by_peft(base: Path, adapter: Path) -> Any:
    """The exported base in transformers, with the adapter's folder on it."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(theirs, adapter, is_trainable=True).eval()


@pytest.mark.parametrize("targets", [(), SOME, ("layers.0.self_attn.q_proj", "down_proj")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_ours_opens_in_peft_with_the_same_logits_and_gradients(
    make_model: Make, tmp_path: Path, kind: LoraConfig, targets: tuple[str, ...]
) -> None:
    kind = replace(kind, targets=targets)
    model = make_model(qk_norm=False)  # Llama
    save_model(model, tmp_path / "base")
    base = base_digest(model)
    add_adapters(model, kind)
    save_adapter(fill(model), kind, tmp_path / "adapter", base)
    check_same_kind(make_model(qk_norm=False), kind, read_adapter_config(tmp_path / "adapter"), tmp_path)
    theirs = opened_by_peft(tmp_path / "base", tmp_path / "adapter")
    expected = theirs(IDS).logits
    assert relative_error(model(IDS), expected) < 1e-6
    model(IDS).square().mean().backward()
    expected.square().mean().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    beside = bool(kind.token_ids) or kind.whole_embedding
    assert len(grads) == len(adapters(model)) * (3 if kind.magnitude else 2) + beside
    if kind.whole_embedding:
        (theirs_grad,) = (grad for key, grad in grads.items() if "modules_to_save" in key)
        torch.testing.assert_close(model.model.embed_tokens.weight.grad, theirs_grad, rtol=1e-4, atol=1e-6)
    if isinstance(model.model.embed_tokens, TokenRows):
        (theirs_grad,) = (grad for key, grad in grads.items() if "trainable_tokens" in key)
        torch.testing.assert_close(model.model.embed_tokens.rows_KxD.grad, theirs_grad, rtol=1e-4, atol=1e-6)
    for name, layer in adapters(model).items():
        prefix = f"base_model.model.{name}."
        for ours in (layer.lora_A, layer.lora_B, layer.lora_magnitude):
            if ours is not None:
                part = {id(layer.lora_A): "lora_A", id(layer.lora_B): "lora_B"}.get(
                    id(ours), "lora_magnitude"
                )
                (theirs_grad,) = (grad for key, grad in grads.items() if key.startswith(prefix + part))
                torch.testing.assert_close(ours.grad, theirs_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_opens_here_with_the_same_logits(
    make_model: Make, tmp_path: Path, kind: LoraConfig
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = make_model(qk_norm=False)
    save_model(model, tmp_path / "base")
    torch.manual_seed(3)
    theirs = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
        peft.LoraConfig(
            r=kind.rank,
            lora_alpha=kind.alpha,
            use_rslora=kind.rank_stabilized,
            use_dora=kind.magnitude,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            init_lora_weights=False,
            trainable_token_indices=list(kind.token_ids) or None,
            modules_to_save=["embed_tokens"] if kind.whole_embedding else None,
            ensure_weight_tying=kind.whole_embedding,
        ),
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "trainable_tokens" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter/adapter_model.safetensors"))
    found = read_adapter_config(tmp_path / "adapter")
    check_same_kind(model, kind, found, tmp_path / "adapter")
    base = base_digest(model)
    add_adapters(model, found)
    load_adapter(model, tmp_path / "adapter", base)
    expected = theirs(IDS).logits
    assert relative_error(model(IDS), expected) < 1e-6
    save_adapter(model, found, tmp_path / "ours", base)
    assert set(load_file(tmp_path / "ours/adapter_model.safetensors")) == names


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(make_model: Make, kind: LoraConfig, four_bit: bool) -> None:
    model = make_model(attention_bias=True, qk_norm=False)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    add_adapters(model, kind, four_bit=four_bit)
    before = fill(model)(IDS)
    merge_adapters(model)
    torch.testing.assert_close(model(IDS), before, rtol=1e-5, atol=1e-5)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == names
    assert num_trained(model) == model.config.num_params()


def test_an_untied_embedding_and_output_matrix_open_in_peft_and_here(
    make_model: Make, tmp_path: Path
) -> None:
    models = [make_model(qk_norm=False, tie_word_embeddings=False) for _ in range(2)]
    base = base_digest(models[0])
    save_model(models[0], tmp_path / "base")
    for model in models:
        add_adapters(model, WHOLE)
    assert list(embedding_weights(models[0])) == ["model.embed_tokens.weight", "lm_head.weight"]
    expected = fill(models[0])(IDS)
    save_adapter(models[0], WHOLE, tmp_path / "adapter", base)
    assert (
        relative_error(opened_by_peft(tmp_path / "base", tmp_path / "adapter")(IDS).logits, expected) < 1e-6
    )
    assert read_adapter_config(tmp_path / "adapter") == replace(WHOLE, targets=LINEAR)
    load_adapter(models[1], tmp_path / "adapter", base)
    torch.testing.assert_close(models[1](IDS), expected, rtol=0, atol=0)


def test_the_first_step_sees_the_model_as_it_was(make_model: Make) -> None:
    for kind in KINDS:
        model = make_model()
        expected = model.eval()(IDS)
        add_adapters(model, kind)
        assert not any(module.training for module in model.modules())  # no dropout before training begins
        torch.testing.assert_close(model(IDS), expected, rtol=0, atol=1e-5)


def test_only_adapters_are_trained_and_they_are_few(make_model: Make) -> None:
    model = make_model()
    add_adapters(model, LORA)
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert len(adapters(model)) == 7 * model.config.num_hidden_layers
    sizes = [layer.base.in_features + layer.base.out_features for layer in adapters(model).values()]
    assert num_trained(model) == LORA.rank * sum(sizes)
    first = model.get_parameter("model.layers.0.self_attn.q_proj.lora_A").clone()
    other = make_model()
    add_adapters(other, LORA, seed=1)
    assert not torch.equal(first, other.get_parameter("model.layers.0.self_attn.q_proj.lora_A"))


def test_experts_and_router_stay_frozen(make_model: Make) -> None:
    model = make_model(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    add_adapters(model, LORA)
    assert {name.rpartition(".")[2] for name in adapters(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_second_matrix_learns_faster_with_lora_plus(make_model: Make) -> None:
    model = make_model()
    add_adapters(model, LORA)
    groups = build_adamw(model, 1e-3, lora_plus_ratio=16.0).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == 2 * len(adapters(model))
    for layer in adapters(model).values():
        assert (rates[id(layer.lora_A)], rates[id(layer.lora_B)]) == (1e-3, 16e-3)


def test_the_embedding_has_a_rate_of_its_own(make_model: Make) -> None:
    model = make_model(tie_word_embeddings=False)
    add_adapters(model, WHOLE)
    groups = build_adamw(model, 1e-3, weight_decay=0.2, embedding_lr=3e-4).param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.pop(id(model.model.embed_tokens.weight)) == (3e-4, 0.0)
    assert found.pop(id(model.lm_head.weight)) == (3e-4, 0.2)
    assert set(found.values()) == {(1e-3, 0.2)}
    assert len(found) == 2 * len(adapters(model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": TOKENS, "whole_embedding": True}, "no tokens of it can be named"),
        ({"rank": 0}, "rank of an adapter is 0"),
        ({"alpha": 0.0}, "alpha of an adapter is 0.0"),
        ({"dropout": 1.0}, "dropout of an adapter is 1.0"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**fields)


def test_an_unknown_target_is_refused_with_the_list(make_model: Make) -> None:
    wanted = "asked for on qproj; .* are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj$"
    with pytest.raises(ValueError, match=wanted):
        add_adapters(make_model(), replace(LORA, targets=("qproj", "q_proj")))


@pytest.fixture
def saved(make_model: Make, tmp_path: Path) -> Path:
    """An adapter of the model of seed 0."""
    model = make_model()
    base = base_digest(model)
    add_adapters(model, LORA)
    save_adapter(fill(model), LORA, tmp_path / "saved", base)
    return tmp_path / "saved"


def test_an_adapter_of_another_base_or_shape_is_refused(make_model: Make, saved: Path) -> None:
    for model, message in [
        (make_model(seed=1), "trained beside another base model"),
        (make_model(intermediate_size=64), "trained beside another base model"),
    ]:
        base = base_digest(model)
        add_adapters(model, LORA)
        with pytest.raises(ValueError, match=message):
            load_adapter(model, saved, base)
    # PEFT's files do not say beside what they were trained, so there the shapes speak.
    wide, base = make_model(intermediate_size=64), load_header(saved)
    add_adapters(wide, LORA)
    with pytest.raises(ValueError, match=r"gate_proj.lora_B.weight has shape \(48, 4\), .* has \(64, 4\)"):
        load_adapter(wide, saved, base)


def load_header(folder: Path) -> str:
    """The digest of the base in the file."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return file.metadata()["base_sha256"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (replace(LORA, rank=8), "has rank 4, expected 8: set"),
        (
            replace(LORA, targets=SOME),
            r"v_proj \(14 layers\), expected down_proj, q_proj \(4 layers\): set",
        ),
        (replace(LORA, magnitude=True, alpha=1.0), "alpha 6.0, expected 1.0; kind LoRA, expected DoRA"),
        (
            replace(LORA, token_ids=TOKENS),
            r"trained tokens .., expected .5, 9, 33.: set .*adapter_embeddings",
        ),
        (WHOLE, r"has trained tokens \[\], expected all: set"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    make_model: Make, saved: Path, wanted: LoraConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_kind(make_model(), wanted, read_adapter_config(saved), saved)


def test_dora_with_the_scale_of_rslora_is_another_kind_than_dora(make_model: Make, saved: Path) -> None:
    dora = replace(LORA, magnitude=True)
    with pytest.raises(ValueError, match="kind DoRA with rsLoRA's scale, expected DoRA: set"):
        check_same_kind(make_model(), dora, replace(dora, rank_stabilized=True), saved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"LORA"', '"IA3"', "of kind IA3; expected LORA"),
        ('"none"', '"all"', "bias = 'all' is not supported here"),
        ('"modules_to_save": null', '"modules_to_save": ["embed_tokens"]', "with ensure_weight_tying = true"),
        ('"modules_to_save": null', '"modules_to_save": ["norm"]', r"modules_to_save = \['norm'\] is not"),
        ("{", "", "is not JSON"),
        ('"r": 4', '"rank": 4', "lacks r; expected numbers"),
        ('"bias"', '"init_lora_weights": "pissa", "bias"', "init_lora_weights = 'pissa' is not supported"),
        ('"bias"', '"alora_invocation_tokens": [5], "bias"', "alora_invocation_tokens = .5. is not supp"),
    ],
)
def test_an_adapter_that_means_something_else_is_refused(
    saved: Path, old: str, new: str, message: str
) -> None:
    path = saved / "adapter_config.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_adapter_config(saved)

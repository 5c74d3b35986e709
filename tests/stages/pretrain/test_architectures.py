"""Every kind of model that the settings can ask for: trained, stopped, resumed bit for bit, opened
elsewhere."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts.checkpoint import CHECKPOINT
from stages.pretrain.balance import balancing
from stages.pretrain.run import run
from stages.pretrain.spec import PretrainConfig
from stages.runtime.errors import StopRequested
from stages.runtime.session import StageSession
from stages.runtime.store import file_sha256
from stages.whitebox.checkpoint import load_model
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM

SIZES = {"vocab_size": 999, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
LLAMA_3 |= {"original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_type": "yarn"}
FILES: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llama", **SIZES, "rope_theta": 5e5, "rope_scaling": LLAMA_3},
    "Qwen2 with YaRN": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": True, "rope_scaling": YARN},
}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Dots1": {"num_experts": 4, "num_experts_per_tok": 2, "expert_balance": "bias"},
    "Qwen2": {"architecture": "tiny-llm-zh-16m"},
    "Qwen3": {"sliding_window": 8, "separate_documents": True},
    "Mistral": {"sliding_window": 8, "qk_norm": False, "optimizer": "adamw"},
    **{kind: {"shape_from": "config.json"} for kind in FILES},
}


@pytest.mark.parametrize("kind", KINDS)
def test_trained_stopped_resumed_and_opened_elsewhere(
    kind: str,
    config: PretrainConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    session: StageSession,
    monkeypatch: pytest.MonkeyPatch,
    read_events: Callable[[str], list[dict[str, Any]]],
) -> None:
    transformers = pytest.importorskip("transformers")
    fields = dict(KINDS[kind])
    if kind in FILES:
        (tmp_path / "config.json").write_text(json.dumps(FILES[kind]))
        fields["shape_from"] = str(tmp_path)
    config = PretrainConfig(**{**config.model_dump(), "train_tokens": 2_500, **fields})
    folders = [tmp_path / name for name in ("resumed", "whole")]
    for folder in folders:
        folder.mkdir()
    with monkeypatch.context() as patch:
        steps = iter(range(100))
        patch.setattr(session, "should_stop", lambda: next(steps) >= 3)
        with pytest.raises(StopRequested):
            run(config, inputs, {"model": folders[0]}, session)
    metrics = run(config, inputs, {"model": folders[0]}, session)
    assert any("going on after step 4" in event["message"] for event in read_events("log"))
    session.work_dir = tmp_path / "elsewhere"
    run(config, inputs, {"model": folders[1]}, session)
    weights = [file_sha256(folder / "model.safetensors") for folder in folders]
    assert weights[0] == weights[1]
    assert CHECKPOINT.check(folders[0]) == []

    peer = transformers.AutoModelForCausalLM.from_pretrained(folders[0])
    assert type(peer).__name__ == f"{kind.partition(' ')[0]}ForCausalLM"
    model, ids_BxT = load_model(folders[0]), torch.arange(4, 34)[None]
    with torch.no_grad():
        expected = peer(ids_BxT).logits
        assert (model(ids_BxT) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert metrics["num_params"] == model.config.num_params()
    reported = {name for event in read_events("metrics") for name in event["values"]}
    assert ("router_loss" in reported) == bool(model.config.num_experts)
    if kind in FILES:
        wanted = ModelConfig.from_hf({**FILES[kind], "vocab_size": 320})
        ids = {name: getattr(wanted, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        assert replace(model.config, **ids) == wanted
        named = transformers.AutoConfig.for_model(**FILES[kind])
        assert peer.config.rope_parameters.items() >= named.rope_parameters.items()
        for name in SIZES.keys() - {"vocab_size"} | {"tie_word_embeddings"}:
            assert getattr(peer.config, name) == getattr(named, name), name
        attention = peer.model.layers[0].self_attn
        biases = [part.bias for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert all((bias is not None and bias.any()) == kind.startswith("Qwen2") for bias in biases)
    if kind == "Dots1":
        biases = torch.stack([block.mlp.gate.e_score_correction_bias for block in model.model.layers])
        assert (biases != 0).any()


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_experts_in_two_processes_come_out_as_in_one(
    balance: str,
    config: PretrainConfig,
    inputs: dict[str, Path],
    tmp_path: Path,
    session: StageSession,
    make_program: Callable[[PretrainConfig], Any],
) -> None:
    """Begun with ddp, killed, ended with fsdp. One row at a time, so the balancing loss sees the same."""
    fields: dict[str, Any] = {"num_experts": 4, "expert_balance": balance, "micro_batch_size": 1}
    fields |= {"train_tokens": 5_000, "evaluations": 1, "precision": "float32"}
    fields |= {"checkpoint_every_seconds": 0.2}
    alone = PretrainConfig(**{**config.model_dump(), **fields})
    program = make_program(PretrainConfig(**{**alone.model_dump(), "processes": 2, "data_parallel": "ddp"}))
    code, text = program.end_with(signal.SIGKILL, after_step=3)
    assert code == -signal.SIGKILL, text
    other = PretrainConfig(**{**alone.model_dump(), "processes": 2, "data_parallel": "fsdp"})
    assert "going on after step" in make_program(other).finish()
    session.work_dir = tmp_path / "alone"
    (tmp_path / "model").mkdir()
    expected = run(alone, inputs, {"model": tmp_path / "model"}, session)
    found = json.loads((program.output / "manifest.json").read_text())["metrics"]
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], abs=1e-4)
    both = (load_model(folder).state_dict() for folder in (tmp_path / "model", program.output / "model"))
    one, two = both
    for name, weights in one.items():
        assert torch.allclose(weights, two[name], atol=1e-4), name
        if name.endswith("correction_bias"):
            assert torch.equal(weights, two[name]) and weights.any()


def test_a_skipped_step_leaves_the_biases_of_experts_alone() -> None:
    torch.manual_seed(0)
    shape = ModelConfig.from_depth(1, 64, max_position_embeddings=16)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = CausalLM(replace(shape, **experts, scoring_func="sigmoid", n_shared_experts=1))
    on_step = balancing(model, lambda _step, _values: None)
    bias_E = model.model.layers[0].mlp.gate.e_score_correction_bias
    model.train()
    model(torch.arange(16)[None])
    on_step(1, {"skipped_steps": 1.0})
    assert (bias_E == 0).all()
    on_step(2, {"train_loss": 1.0})
    assert (bias_E == 0).all()  # what a skipped step chose counts no more
    model(torch.arange(16)[None])
    on_step(3, {"train_loss": 1.0})
    assert (bias_E != 0).any()

"""Each named shape is the published one: counted in transformers, on a device without memory."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.pretrain.spec import Architecture
from stages.whitebox.model import CausalLM
from stages.whitebox.shapes import SHAPES

transformers = pytest.importorskip("transformers")

# Millions, as their authors give them; GPT-2's and TinyLlama3's from their sizes.
PUBLISHED = {
    "tiny-llm-zh-16m": 16,
    "tiny-llm-zh-42m": 42,
    "tiny-llm-zh-92m": 92,
    "tiny-llm-zh-210m": 210,
    "tiny-llm-zh-440m": 440,
    "tiny-llm-zh-1.5b": 1480,
    "tinyllama3": 8.5,
    "minimind-64m": 64,
    "minimind-moe": 198,
    "gpt2-124m": 124,
    "qwen2-0.5b": 494,
    "qwen3-0.6b": 596,
}


def on_meta(name: str) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(**SHAPES[name].config().to_hf())
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_transformers_and_about_the_published(name: str) -> None:
    config = SHAPES[name].config()
    peer = on_meta(name)
    with torch.device("meta"):
        ours = {key: tuple(p.shape) for key, p in CausalLM(config).named_parameters()}
    theirs = {key: tuple(p.shape) for key, p in peer.named_parameters()}
    assert ours == theirs
    assert config.num_params() == sum(parameter.numel() for parameter in peer.parameters())
    assert config.num_params() / 1e6 == pytest.approx(PUBLISHED[name], rel=0.05)


@pytest.mark.parametrize("name", [name for name in SHAPES if not SHAPES[name].options.get("num_experts")])
def test_operations_are_those_that_transformers_does(name: str) -> None:
    config, num_tokens = SHAPES[name].config(), 256
    ids_BxT = torch.zeros(1, num_tokens, dtype=torch.long, device="meta")
    mask_Bx1xTxT = torch.zeros(1, 1, num_tokens, num_tokens, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(name)(ids_BxT, attention_mask=mask_Bx1xTxT, use_cache=False)
    rope = config.head_dim * num_tokens  # they multiply positions with frequencies as a matrix product
    forward = counter.get_total_flops()
    assert 3 * forward / num_tokens == pytest.approx(config.flops_per_token(num_tokens), abs=3 * rope)


def test_operations_with_experts_are_of_those_that_work() -> None:
    dense, mixture = SHAPES["minimind-64m"].config(), SHAPES["minimind-moe"].config()
    routers = 8 * 768 * 4
    assert mixture.flops_per_token(512) == dense.flops_per_token(512) + 6 * routers
    assert mixture.num_active_params() == dense.num_params() + routers


def test_a_sliding_window_bounds_what_attention_costs() -> None:
    config = SHAPES["gpt2-124m"].config()
    windowed = type(config)(**{**vars(config), "sliding_window": 128})
    assert windowed.flops_per_token(1024) == config.flops_per_token(128)
    assert windowed.flops_per_token(64) == config.flops_per_token(64)


def test_the_names_are_those_of_the_setting() -> None:
    assert ("depth", *SHAPES) == get_args(Architecture)


def test_vocabulary_and_context_are_the_run_s() -> None:
    config = SHAPES["tinyllama3"].config(vocab_size=8192, context_tokens=128)
    assert (config.vocab_size, config.max_position_embeddings) == (8192, 128)
    assert (SHAPES["tinyllama3"].config().vocab_size, SHAPES["tinyllama3"].context_tokens) == (4096, 256)

"""What follows from `depth`, and that everything can be set by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from stages.pretrain.recipe import (
    activation_bytes_per_token,
    make_recipe,
    recipe_rows,
    step_law_batch_tokens,
    step_law_learning_rate,
)
from stages.pretrain.setup import model_config
from stages.pretrain.spec import SPEC, PretrainConfig
from stages.runtime.errors import UserError
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

GIB = 2**30


def model_of(depth: int) -> ModelConfig:
    return ModelConfig.from_depth(depth, vocab_size=4096, max_position_embeddings=512)


def shape_of(config: PretrainConfig) -> ModelConfig:
    return model_config(config, cast(Tokenizer, SimpleNamespace(vocab_size=500)))


def test_depth_alone_decides_everything() -> None:
    model = model_of(4)
    recipe = make_recipe(PretrainConfig(depth=4), model, 16 * GIB)
    assert recipe.train_tokens == pytest.approx(20 * model.num_params(), rel=0.01)
    assert recipe.rows_per_step == recipe.micro_batch_size * recipe.accumulation_steps
    assert recipe.total_steps * recipe.global_batch_tokens == recipe.train_tokens
    assert 0 < recipe.warmup_steps < 0.1 * recipe.total_steps
    assert (recipe.learning_rate, recipe.matrix_learning_rate) == (0.02, 0.02)


def test_what_is_set_by_hand_stays() -> None:
    config = PretrainConfig(
        depth=2,
        context_tokens=128,
        train_tokens=100_000,
        global_batch_tokens=2048,
        micro_batch_size=4,
        learning_rate=0.5,
        optimizer="adamw",
        warmup_fraction=0.1,
    )
    recipe = make_recipe(config, model_of(2), 16 * GIB)
    assert (recipe.global_batch_tokens, recipe.micro_batch_size, recipe.accumulation_steps) == (2048, 4, 4)
    assert (recipe.total_steps, recipe.warmup_steps) == (49, 5)
    assert (recipe.learning_rate, recipe.matrix_learning_rate) == (0.5, None)


def test_a_wider_model_has_gentler_embeddings() -> None:
    rates = [make_recipe(PretrainConfig(depth=d), model_of(d), GIB).learning_rate for d in (4, 16)]
    assert rates[0] == pytest.approx(2 * rates[1])


@pytest.mark.parametrize("rows", [1, 5, 7, 12])
def test_micro_batches_are_equal_and_make_up_the_batch(rows: int) -> None:
    config = PretrainConfig(context_tokens=64, global_batch_tokens=64 * rows, micro_batch_size=4)
    recipe = make_recipe(config, model_of(4), 16 * GIB)
    assert recipe.micro_batch_size <= 4
    assert rows <= recipe.rows_per_step <= rows + 3


@pytest.mark.parametrize("micro", [1, 4, 5, 8, 100])
def test_the_update_is_the_same_whatever_fits_at_once(micro: int) -> None:
    config = PretrainConfig(context_tokens=256, train_tokens=1_200_000)
    by_hand = config.model_copy(update={"micro_batch_size": micro})
    recipes = [make_recipe(each, model_of(4), 16 * GIB) for each in (config, by_hand)]
    assert [(r.rows_per_step, r.total_steps) for r in recipes] == [(13, 361)] * 2
    assert recipes[1].micro_batch_size == (13 if micro == 100 else 1)


def test_little_memory_makes_small_micro_batches_and_the_same_batch() -> None:
    config = PretrainConfig(depth=8, context_tokens=256, global_batch_tokens=16_384)
    large, small = (make_recipe(config, model_of(8), memory) for memory in (64 * GIB, GIB))
    assert small.micro_batch_size < large.micro_batch_size
    assert small.global_batch_tokens == large.global_batch_tokens
    assert small.memory_bytes < large.memory_bytes
    assert small.micro_batch_size * 256 * activation_bytes_per_token(model_of(8)) <= GIB // 4


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("experts", [{}, {"num_experts": 8}, {"num_experts": 8, "expert_balance": "bias"}])
def test_the_estimate_of_activations_is_what_torch_keeps(depth: int, experts: dict[str, Any]) -> None:
    model = CausalLM(shape_of(PretrainConfig(depth=depth, **experts)))
    ids = torch.randint(0, 500, (2, 129))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.hidden_states(ids[:, :-1])
    found = (sum(kept.values()) + hidden.nbytes) / 256
    assert activation_bytes_per_token(model.config) == pytest.approx(found, rel=0.15)


def test_the_step_law_is_the_papers() -> None:
    # Li et al. 2025, table of fitted constants: 1B parameters, 100B tokens
    assert step_law_learning_rate(10**9, 10**11) == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step_law_batch_tokens(10**11) == pytest.approx(0.58 * 1e11**0.571, abs=1)
    assert step_law_learning_rate(10**5, 10**9) == 6e-3


def test_the_table_says_what_a_user_asks() -> None:
    rows = dict(recipe_rows(make_recipe(PretrainConfig(), model_of(4), GIB)))
    assert rows["layers x width"] == "4 x 256"
    assert rows["parameters"] == f"{model_of(4).num_params():,}"
    assert "per parameter" in rows["training tokens"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"dept": 4}, "did you mean 'depth'"),
        ({"depth": 0}, "depth = 0"),
        ({"train_tokens": "chinchila"}, "chinchila"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_a_wrong_setting_is_explained(raw: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPEC.parse_config(raw)


def test_a_known_model_is_taken_as_it_is_and_what_would_not_count_is_refused() -> None:
    config = PretrainConfig(architecture="tinyllama3", depth=9, context_tokens=128)
    model = shape_of(config)
    assert (model.hidden_size, model.num_hidden_layers, model.qk_norm) == (288, 8, False)
    assert (model.vocab_size, model.max_position_embeddings) == (500, 128)
    with pytest.raises(ValueError, match="architecture = 'tinyllama3' has no effect with continue_from"):
        PretrainConfig(architecture="tinyllama3", continue_from="a-model")
    with pytest.raises(ValueError, match=r"qk_norm = False has no effect with shape_from = 'config\.json'"):
        PretrainConfig(shape_from="config.json", qk_norm=False)
    with pytest.raises(ValueError, match=r"shape_from = 'config\.json' has no effect with continue_from"):
        PretrainConfig(shape_from="config.json", continue_from="a-model")
    with pytest.raises(UserError, match=r"^\[pretrain\] num_experts = 4 has no effect with architecture"):
        SPEC.parse_config({"architecture": "minimind-moe", "num_experts": 4})
    with pytest.raises(ValueError, match="qk_norm = False has no effect with architecture"):
        PretrainConfig(architecture="qwen3-0.6b", qk_norm=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_experts_per_tok": 1},
        {"expert_balance": "bias"},
        {"optimizer": "adamw", "matrix_learning_rate": 0.01},
        {"rendezvous": "here:29500"},
    ],
)
def test_a_setting_that_would_not_count_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{list(fields)[-1]} = .* has no effect with"):
        PretrainConfig(**fields)


def test_experts_at_work_are_as_wide_as_the_layer_that_they_replace() -> None:
    dense = shape_of(PretrainConfig())
    by_loss = shape_of(PretrainConfig(num_experts=8))
    assert (by_loss.to_hf()["model_type"], by_loss.num_experts_per_tok) == ("qwen3_moe", 2)
    assert 2 * by_loss.moe_intermediate_size == dense.intermediate_size
    by_bias = shape_of(PretrainConfig(num_experts=8, expert_balance="bias"))
    assert (by_bias.to_hf()["model_type"], by_bias.n_shared_experts) == ("dots1", 1)
    assert 3 * by_bias.moe_intermediate_size == dense.intermediate_size
    rows = {row[0]: row[1] for row in recipe_rows(make_recipe(PretrainConfig(num_experts=8), by_bias, 2**33))}
    assert rows["feed-forward"] == "2 of 8 experts and 1 shared, 256 each"
    assert "of which" in rows["parameters"]
    with pytest.raises(ValueError, match="expected at most num_experts, 1"):
        PretrainConfig(num_experts=1)
    with pytest.raises(ValueError, match="needs qk_norm"):
        PretrainConfig(num_experts=8, qk_norm=False)


def test_the_token_budget_follows_the_parameters_at_work() -> None:
    mixture = shape_of(PretrainConfig(num_experts=8))
    recipe = make_recipe(PretrainConfig(num_experts=8), mixture, 2**33)
    assert recipe.train_tokens == pytest.approx(20 * mixture.num_active_params(), rel=0.01)
    assert mixture.num_params() > 1.5 * mixture.num_active_params()

"""Adapters in training: they resume with the same bits, checkpoints hold them alone, and the base stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.whitebox.batches import PackedBatches, TokenShards
from stages.whitebox.lora import LoraConfig, add_adapters, num_trained
from stages.whitebox.losses import cross_entropy_sum
from stages.whitebox.model import CausalLM
from stages.whitebox.token_rows import TokenRows
from stages.whitebox.trainer import StepLoss, TrainerSettings, train
from stages.whitebox.training_state import list_checkpoints

Make = Callable[..., CausalLM]
LORA = LoraConfig(rank=4, alpha=6.0)
TOKENS = (5, 9, 33)
WHOLE = replace(LORA, whole_embedding=True)


class Killed(BaseException):
    """Stands for a SIGKILL: nobody catches it."""


@pytest.fixture
def tune(make_model: Make, counting_shards: Path) -> Callable[..., CausalLM]:
    """Train adapters for ten steps, with dropout; `seed` is the base model's."""

    def run(
        folder: Path,
        four_bit: bool = False,
        kill_after: int = 0,
        seed: int = 0,
        kind: LoraConfig = replace(LORA, token_ids=TOKENS),  # noqa: B008 - frozen
        **settings: Any,
    ) -> CausalLM:
        model = make_model(seed)
        model.activation_checkpointing = bool(settings.pop("activation_checkpointing", False))
        add_adapters(model, replace(kind, dropout=0.2), four_bit=four_bit)

        def on_step(step: int, _values: dict[str, float]) -> None:
            if step == kill_after:
                raise Killed

        train(
            model,
            PackedBatches(TokenShards(counting_shards, "train"), 2, 16, seed=0),
            next_token_loss,
            TrainerSettings(total_steps=10, learning_rate=1e-2, checkpoint_every_steps=2, **settings),
            checkpoint_dir=folder,
            on_step=on_step,
            log=lambda _message: None,
        )
        return model

    return run


def next_token_loss(model: CausalLM, batch: dict[str, Tensor]) -> StepLoss:
    hidden = model.hidden_states(batch["ids"])
    return StepLoss(*cross_entropy_sum(hidden, model.output_weight(), batch["targets"]))


def bits(model: CausalLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(first: CausalLM, second: CausalLM) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema_decay": 0.8},
        {"lora_plus_ratio": 4.0},
        {"kind": WHOLE, "embedding_learning_rate": 3e-3},
    ],
)
@pytest.mark.parametrize("four_bit", [False, True])
def test_a_killed_run_ends_with_the_same_bits(
    tune: Callable[..., CausalLM], tmp_path: Path, four_bit: bool, settings: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        tune(tmp_path / "killed", four_bit, kill_after=5, **settings)
    resumed = tune(tmp_path / "killed", four_bit, **settings)
    assert_same_bits(resumed, tune(tmp_path / "whole", four_bit, **settings))


@pytest.mark.parametrize("kind", [replace(LORA, token_ids=TOKENS), WHOLE])
def test_checkpoints_hold_what_is_trained_and_not_the_base(
    tune: Callable[..., CausalLM], tmp_path: Path, kind: LoraConfig
) -> None:
    model = tune(tmp_path / "run", kind=kind)
    saved = load_file(list_checkpoints(tmp_path / "run")[0] / "tensors.safetensors")
    trained = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in saved if name.startswith("model.")} == trained
    weights = sum(saved[name].numel() for name in trained)
    moments = sum(t.numel() for name, t in saved.items() if name.startswith("optimizer.exp"))
    assert (weights, moments) == (num_trained(model), 2 * weights)


def test_a_checkpoint_does_not_go_on_beside_another_base(
    tune: Callable[..., CausalLM], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        tune(tmp_path / "run", kill_after=5)
    with pytest.raises(ValueError, match=r"of other settings \(frozen weights \w{12} -> \w{12}\)"):
        tune(tmp_path / "run", seed=1)


def test_dropout_draws_the_same_again_under_activation_checkpointing(
    tune: Callable[..., CausalLM], tmp_path: Path
) -> None:
    assert_same_bits(tune(tmp_path / "a"), tune(tmp_path / "b", activation_checkpointing=True))


def test_the_base_does_not_move(make_model: Make, tune: Callable[..., CausalLM], tmp_path: Path) -> None:
    before, model = bits(make_model()), tune(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name and ".rows_" not in name:
            assert torch.equal(tensor, before[name.replace(".base.", ".")]), name
    assert isinstance(model.model.embed_tokens, TokenRows)
    moved = (model.output_weight() != before["model.embed_tokens.weight"]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == list(TOKENS)

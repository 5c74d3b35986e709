"""Models whose weights are about to be read: shapes, and not one number drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stages.whitebox.config import ModelConfig
from stages.whitebox.empty import without_values
from stages.whitebox.model import CausalLM


@pytest.mark.parametrize("tied", [True, False])
def test_all_shapes_and_no_numbers(config: ModelConfig, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, tie_word_embeddings=tied)
    expected = {name: tensor.shape for name, tensor in CausalLM(config).state_dict().items()}

    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("a number was drawn")

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, draw)
    with without_values():
        model = CausalLM(config)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_numbers_are_drawn_again_outside() -> None:
    with without_values():
        nn.Linear(2, 2)
    assert nn.Linear(2, 2).weight.abs().sum() > 0
    assert not nn.Embedding(2, 2).weight.is_meta

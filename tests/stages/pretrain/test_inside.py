"""What the report is told of the inside of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.pretrain.inside import MAX_MAPS, draw_attention, draw_layers, layer_values
from stages.runtime.session import StageSession
from stages.whitebox.batches import TokenShards
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.tokenizer import Tokenizer

Events = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def model() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(ModelConfig.from_depth(4, 320, max_position_embeddings=32)).eval()


def test_the_probe_is_the_same_each_time_and_draws_no_random_numbers(
    model: CausalLM, inputs: dict[str, Path]
) -> None:
    validation = TokenShards(inputs["tokens"], "validation")
    before = torch.get_rng_state()
    with torch.no_grad():
        first, second = (layer_values(model, validation, 32) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert {name.partition("/")[2] for name in first} == {"0", "1", "2", "3"}
    assert all(value > 0 for value in first.values())


def test_layers_are_drawn_from_the_history(session: StageSession, read_events: Events) -> None:
    names = ("residual_rms", "attention_rms", "feed_forward_rms", "largest", "grad_norm")
    history = {f"{name}/{layer}": [[5, 0.5], [10, 1.0 + layer]] for name in names for layer in range(20)}
    draw_layers(history, session)
    gradients, activations = read_events("chart")
    assert list(gradients["series"]) == [f"layer {n}" for n in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert activations["series"]["residual stream"] == [[n, 1.0 + n] for n in range(20)]
    assert read_events("table")[0]["rows"][3] == [3, *["4"] * 5]


def test_no_more_maps_than_can_be_looked_at(
    model: CausalLM, inputs: dict[str, Path], session: StageSession, read_events: Events
) -> None:
    draw_attention(model, Tokenizer.from_folder(inputs["tokenizer"]), "The hen\nsleeps " * 20, session)
    event = read_events("chart")[0]
    assert len(event["panels"]) == MAX_MAPS < 4 * 4
    assert list(event["panels"]) == sorted(event["panels"])
    assert len(event["x_names"]) == 24
    assert any("⏎" in name for name in event["x_names"])
    for rows in event["panels"].values():
        assert [sum(row) for row in rows] == pytest.approx([1.0] * 24, abs=0.02)

"""What the settings leave open is decided by the data and the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.sft.conversations import Chats
from stages.sft.setup import batch_shape, choose_context, trainer_settings
from stages.sft.spec import SftConfig
from stages.sft.training_rows import held_out_rows
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.checkpoint import load_model
from stages.whitebox.device import Device
from stages.whitebox.packing import PackedRows, pack

CPU = Device(torch.device("cpu"), torch.float32, "a test")


def rows_of(count: int, length: int = 64) -> PackedRows:
    return pack([RenderedChat([1] * length, [False] + [True] * (length - 1))] * count, length, pad_id=3)


def chats_of(length: int) -> dict[str, Chats]:
    return {"train": Chats(["c"], ["qa"], [RenderedChat([1] * length, [True] * length)])}


@pytest.mark.parametrize(("longest", "expected"), [(20, 128), (128, 128), (129, 128), (4000, 128)])
def test_rows_hold_the_longest_conversation_that_the_model_can_read(
    base_model: Any, longest: int, expected: int
) -> None:
    model = load_model(base_model.model)  # reads 128 tokens
    assert choose_context(SftConfig(), model, chats_of(longest)) == expected
    assert choose_context(SftConfig(context_tokens=40), model, chats_of(longest)) == 40


def test_short_trainings_have_small_updates() -> None:
    small, large = rows_of(10), rows_of(2000)
    assert batch_shape(SftConfig(), small, CPU.device) == (1, 1)
    rows, accumulation = batch_shape(SftConfig(), large, CPU.device)
    assert 10 <= rows * accumulation <= 30
    assert batch_shape(SftConfig(batch_tokens=640), large, CPU.device) == (10, 1)


def test_small_micro_batches_make_up_the_same_update() -> None:
    for micro, expected in ((16, (10, 1)), (8, (5, 2)), (5, (5, 2)), (4, (2, 5)), (3, (2, 5)), (1, (1, 10))):
        config = SftConfig(batch_tokens=640, micro_batch_size=micro)
        assert batch_shape(config, rows_of(100), CPU.device) == expected


@pytest.mark.parametrize(("device", "expected"), [("cpu", (32, 4)), ("cuda", (64, 2))])
def test_a_gpu_takes_more_tokens_at_once(device: str, expected: tuple[int, int]) -> None:
    assert batch_shape(SftConfig(batch_tokens=8192), rows_of(200), torch.device(device)) == expected


def test_steps_follow_from_epochs_unless_limited(base_model: Any) -> None:
    model = load_model(base_model.model)
    settings = trainer_settings(SftConfig(epochs=1.5), model, rows_of(100), 4, 2, CPU)
    assert (settings.total_steps, settings.accumulation_steps) == (19, 2)
    assert settings.learning_rate == pytest.approx(2e-3 * 256 / 32)
    limited = trainer_settings(SftConfig(max_steps=7, learning_rate=1e-4), model, rows_of(100), 4, 2, CPU)
    assert (limited.total_steps, limited.learning_rate) == (7, 1e-4)
    assert settings.matrix_learning_rate is None
    muon = trainer_settings(SftConfig(optimizer="muon"), model, rows_of(100), 4, 2, CPU)
    assert muon.matrix_learning_rate == SftConfig().matrix_learning_rate
    assert {type(optimizer).__name__ for optimizer in muon.build_optimizers(model)} == {"Muon", "AdamW"}


def test_held_out_conversations_of_which_nothing_is_trained_on_are_named(base_model: Any) -> None:
    long_prompt = RenderedChat([1] * 50, [False] * 40 + [True] * 10)
    chats = Chats(["c"], ["qa"], [long_prompt])
    with pytest.raises(
        ValueError, match="held-out conversations: none of 1 conversations has a token to"
    ) as caught:
        held_out_rows(SftConfig(), chats, 30, base_model.tokenizer)
    assert "set [sft] context_tokens higher" in str(caught.value)
    assert held_out_rows(SftConfig(), chats, 64, base_model.tokenizer).num_rows == 1

"""Loss and every gradient of a packed batch against TRL's collator and transformers' model, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.sft.conversations import read_chats
from stages.sft.noise import EmbeddingNoise
from stages.sft.row_batches import RowBatches
from stages.sft.training_loss import TrainingLoss
from stages.whitebox.checkpoint import load_model
from stages.whitebox.packing import pack


def test_loss_and_gradients_of_packed_conversations_equal_trls(
    base_model: Any, conversations_part: Path
) -> None:
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = base_model.tokenizer
    chats = read_chats(conversations_part, tokenizer, 1000)["validation"].rendered
    rows = pack(chats, 128, tokenizer.pad_id)
    ours = load_model(base_model.model)
    found = TrainingLoss(EmbeddingNoise(0.0, 0))(
        ours, RowBatches(rows, rows.num_rows, 0).batch_of(range(rows.num_rows))
    )
    assert rows.num_rows < len(chats), "several conversations share a row"
    (found.loss_sum / found.num_targets).backward()

    labels = [
        [i if is_target else -100 for i, is_target in zip(c.ids, c.is_target, strict=True)] for c in chats
    ]
    batch = DataCollatorForLanguageModeling(tokenizer.pad_id, padding_free=True)(
        [{"input_ids": c.ids, "labels": told} for c, told in zip(chats, labels, strict=True)]
    )
    batch = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    theirs = AutoModelForCausalLM.from_pretrained(base_model.model, attn_implementation="eager")
    loss = theirs(
        **batch, use_cache=False
    ).loss  # with a cache it would not look at where positions begin anew
    loss.backward()
    assert float(found.loss_sum.detach()) / found.num_targets == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-5, atol=1e-6, msg=name)

"""A turn counts as exact when greedy decoding writes it; compared with greedy decoding itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.sft.conversations import read_chats
from stages.sft.held_out_chats import most_likely, score_chats
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.checkpoint import load_model
from stages.whitebox.generate import generate
from stages.whitebox.packing import pack


def test_exact_turns_are_what_greedy_decoding_writes(tuned: Any) -> None:
    model = load_model(tuned.outputs["model"])
    chats = []
    for first in range(20, 28):
        ids = [1, first, 30, 31]
        written = generate(model, ids, max_new_tokens=5, stop_ids=[])
        if first % 2:
            written[-1] = (written[-1] + 1) % 600
        again = generate(model, [*ids, *written, 40], max_new_tokens=3, stop_ids=[])
        is_target = [False] * 4 + [True] * 5 + [False] + [True] * 3
        chats.append(RenderedChat([*ids, *written, 40, *again], is_target))
    marked = 599  # stands for <tool_call>: no greedy turn has it
    chats.append(RenderedChat([1, 20, marked, 21], [False, False, True, True]))
    found = score_chats(model, pack(chats, 64, pad_id=3), call_id=marked)
    assert (found.num_answers, found.num_exact_answers) == (16, 12)
    assert (found.num_calls, found.num_exact_calls) == (1, 0)
    assert found.exact_answers == 0.75


def test_loss_equals_the_sum_over_conversations_alone(
    tuned: Any, base_model: Any, conversations_part: Path
) -> None:
    tokenizer, model = base_model.tokenizer, load_model(tuned.outputs["model"])
    chats = read_chats(conversations_part, tokenizer, 1000)["validation"].rendered
    nats = 0.0
    for chat in chats:
        with torch.no_grad():
            logp = model(torch.tensor([chat.ids]))[0].log_softmax(dim=-1)
        nats -= sum(float(logp[t - 1, chat.ids[t]]) for t in range(1, len(chat.ids)) if chat.is_target[t])
    found = score_chats(model, pack(chats, 128, tokenizer.pad_id), call_id=0)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.num_targets == sum(chat.num_targets for chat in chats)


def test_most_likely_marks_only_counted_positions() -> None:
    weight = torch.eye(4)
    hidden = torch.eye(4)[None]
    targets = torch.tensor([[0, 3, -100, 3]])
    assert most_likely(hidden, weight, targets).tolist() == [[True, False, False, True]]
    assert most_likely(hidden, weight, torch.full((1, 4), -100)).tolist() == [[False] * 4]

"""Messages count as much as they weigh: a plain loop over tokens against reading, packing and batching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_contracts import CONVERSATIONS
from data_contracts.tables import write_part
from stages.sft.conversations import read_chats
from stages.sft.noise import EmbeddingNoise
from stages.sft.row_batches import RowBatches
from stages.sft.training_loss import TrainingLoss
from stages.whitebox.chat_format import render
from stages.whitebox.checkpoint import load_model
from stages.whitebox.packing import pack

LOSS = TrainingLoss(EmbeddingNoise(0.0, 0))
WEIGHTS = [None, 0.0, 2.5, 0.125]


def talk(number: int) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": f"{role} {number}{place}", "weight": weight}
        for place, weight in enumerate(WEIGHTS[: 2 + number % 3])
        for role in ("user", "assistant")
    ]


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weighted")
    rows = [
        {
            "conversation_id": f"c{number}",
            "source": "s",
            "kind": "own",
            "split": "train" if number else "validation",
            "messages": [{"tool_calls": [], **message} for message in talk(number)],
        }
        for number in range(7)
    ]
    write_part(folder, CONVERSATIONS, rows)
    assert CONVERSATIONS.check(folder) == []
    return folder


def test_the_loss_divides_by_the_sum_of_weights_as_a_plain_loop_does(weighted: Path, base_model: Any) -> None:
    tokenizer, model = base_model.tokenizer, load_model(base_model.model)
    chats = read_chats(weighted, tokenizer, 100)["train"].rendered
    rows = pack(chats, 100, tokenizer.pad_id)
    found = LOSS(model, RowBatches(rows, rows.num_rows, 0).batch_of(range(rows.num_rows)))
    nats, total, count = 0.0, 0.0, 0
    for number in range(1, 7):
        messages = talk(number)
        for place, message in enumerate(messages):
            weight = 1.0 if message["weight"] is None else message["weight"]
            if message["role"] == "user" or weight == 0:
                continue
            prompt = render(messages[:place], tokenizer, add_generation_prompt=True).ids
            answer = [*tokenizer.encode(message["content"]), tokenizer.special_id("<|im_end|>")]
            with torch.no_grad():
                logp = model(torch.tensor([[*prompt, *answer]]))[0].log_softmax(dim=-1)
            for offset, token in enumerate(answer):
                nats -= weight * float(logp[len(prompt) + offset - 1, token])
                total, count = total + weight, count + 1
    assert float(found.loss_sum.detach()) == pytest.approx(nats, rel=1e-5)
    assert (found.weight, found.num_targets) == (pytest.approx(total, rel=1e-6), count)


def test_weights_of_one_change_no_bit(base_model: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    plain, said = (
        render([*messages[:1], {**messages[1], **w}], base_model.tokenizer) for w in ({}, {"weight": 1})
    )
    assert plain == said and not said.weights
    assert pack([plain], 64, 3).weights_RxT is None


def test_a_weight_below_zero_is_refused(base_model: Any) -> None:
    with pytest.raises(ValueError, match="a message has weight -1, expected 0"):
        render([{"role": "assistant", "content": "a", "weight": -1}], base_model.tokenizer)


def test_an_answer_of_the_teacher_weighs_as_much_as_the_one_it_replaces(
    weighted: Path, base_model: Any
) -> None:
    tokenizer = base_model.tokenizer
    answer = {"role": "assistant", "content": "otherwise", "tool_calls": []}
    found = read_chats(weighted, tokenizer, 100, {f"c{number}": answer for number in range(1, 7)})["train"]
    for name, chat in zip(found.ids, found.rendered, strict=True):
        messages = talk(int(name[1:]))
        weight = messages[-1]["weight"]
        assert chat.ids == render([*messages[:-1], {**answer, "weight": weight}], tokenizer).ids
        assert (chat.weights or [float(t) for t in chat.is_target])[-2] == (1.0 if weight is None else weight)

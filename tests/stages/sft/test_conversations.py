"""Which conversations an epoch is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_contracts import CONVERSATIONS
from data_contracts.tables import write_part
from stages.sft.conversations import (
    Chats,
    count_tokens,
    read_chats,
    repeat_by_kind,
    replayed_documents,
)
from stages.whitebox.batches import TokenShards
from stages.whitebox.chat_format import RenderedChat


def test_splits_and_kinds(conversations_part: Path, base_model: Any) -> None:
    chats = read_chats(conversations_part, base_model.tokenizer, 1000)
    assert (len(chats["train"]), len(chats["validation"])) == (32, 8)
    assert set(chats["train"].kinds) == {"qa", "tool"}


def test_a_limit_draws_the_same_ones_whatever_the_order(
    conversations_part: Path, base_model: Any, tmp_path: Path
) -> None:
    from data_contracts.tables import read_rows

    write_part(tmp_path, CONVERSATIONS, list(read_rows(conversations_part))[::-1])
    drawn = [
        set(read_chats(folder, base_model.tokenizer, 10)["train"].ids)
        for folder in (conversations_part, tmp_path)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 10


def test_an_empty_split_is_said(conversations_part: Path, base_model: Any, tmp_path: Path) -> None:
    from data_contracts.tables import read_rows

    rows = [row for row in read_rows(conversations_part) if row["split"] == "train"]
    write_part(tmp_path, CONVERSATIONS, rows)
    with pytest.raises(
        ValueError, match=r"there are no validation conversations \(\d+ train\); give corpus_prep more text"
    ):
        read_chats(tmp_path, base_model.tokenizer, 10)


def chats_of(kinds: list[str]) -> Chats:
    rendered = [RenderedChat([1, 10 + i], [False, True]) for i in range(len(kinds))]
    return Chats([f"c{i}" for i in range(len(kinds))], kinds, rendered)


def test_weights_repeat_conversations() -> None:
    chats = chats_of(["qa", "tool"] * 100)
    epoch = repeat_by_kind(chats, {"tool": 2.5, "qa": 0.0})
    counts = [epoch.count(chat) for chat in chats.rendered]
    assert set(counts[::2]) == {0}
    assert set(counts[1::2]) == {2, 3}
    assert 230 <= len(epoch) <= 270
    assert repeat_by_kind(chats, {}) == chats.rendered


def test_weights_hold_among_drawn_conversations(tmp_path: Path, base_model: Any) -> None:
    """Which conversations are drawn says nothing about which of them are repeated."""
    message = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": "hello"}
    rows = [
        {
            "conversation_id": f"c{number}",
            "source": "test",
            "kind": "qa",
            "split": "train" if number else "validation",
            "messages": [message, answer],
        }
        for number in range(801)
    ]
    write_part(tmp_path, CONVERSATIONS, rows)
    drawn = read_chats(tmp_path, base_model.tokenizer, 400)["train"]
    assert 150 <= len(repeat_by_kind(drawn, {"qa": 0.5})) <= 250


def test_head_keeps_even_distances() -> None:
    assert chats_of(["qa"] * 9).head(3).ids == ["c0", "c4", "c8"]
    assert len(chats_of(["qa"] * 2).head(3)) == 2


def test_replayed_documents_train_on_every_token(base_model: Any) -> None:
    shards = TokenShards(base_model.tokens, "train")
    replayed, num_cut = replayed_documents(shards, 300, context_tokens=64, seed=0)
    assert 300 <= count_tokens(replayed) < 364
    for chat in replayed:
        assert chat.ids[0] == base_model.tokenizer.bos_id
        assert chat.is_target == [False] + [True] * (len(chat.ids) - 1)
    assert replayed != replayed_documents(shards, 300, context_tokens=64, seed=1).documents
    lengths = sorted(len(shards.document(index)) for index in range(shards.num_documents))
    everything = replayed_documents(shards, sum(lengths), context_tokens=64, seed=0)
    assert everything.num_cut == sum(length > 64 for length in lengths) > num_cut

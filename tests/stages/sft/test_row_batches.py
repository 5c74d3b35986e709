"""Batches of packed rows: every row once per epoch, and a place that can be saved."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from stages.sft.row_batches import RowBatches
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.packing import PackedRows, pack


def rows() -> PackedRows:
    chats = [RenderedChat([1, *range(10, 10 + n)], [False] * 2 + [True] * (n - 1)) for n in range(4, 24)]
    return pack(chats, 24, pad_id=3)


def test_every_row_once_per_epoch() -> None:
    packed = rows()
    batches = RowBatches(packed, 3, seed=0)
    drawn = [row for _ in range(packed.num_rows) for row in batches.next_rows()]
    for epoch in range(3):
        part = drawn[epoch * packed.num_rows : (epoch + 1) * packed.num_rows]
        assert Counter(part) == Counter(range(packed.num_rows))
    assert drawn[: packed.num_rows] != drawn[packed.num_rows : 2 * packed.num_rows]


@pytest.mark.parametrize(("context_tokens", "num_padding"), [(96, 29), (24, 21)])
def test_padding_columns_are_cut_off_but_for_an_even_width(context_tokens: int, num_padding: int) -> None:
    packed = pack([RenderedChat([1, 8, 9], [False, False, True])], context_tokens, pad_id=3)
    batch = RowBatches(packed, 1, seed=0).next_batch()
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "ids": [[1, 8, 9] + num_padding * [3]],
        "targets": [[-100, 9, -100] + num_padding * [-100]],
        "document_ids": [[1, 1, 1] + num_padding * [0]],
        "positions": [[0, 1, 2, *range(num_padding)]],
        "places": [0],
    }


def test_a_saved_place_goes_on_the_same() -> None:
    first, second = RowBatches(rows(), 3, seed=5), RowBatches(rows(), 3, seed=5)
    for _ in range(4):
        first.next_batch()
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        theirs, mine = first.next_batch(), second.next_batch()
        assert all(torch.equal(theirs[name], mine[name]) for name in theirs)
    with pytest.raises(ValueError, match="seed 5, these have 6"):
        RowBatches(rows(), 3, seed=6).load_state_dict(first.state_dict())

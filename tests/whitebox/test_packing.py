"""Packing cuts nothing that fits, counts what it must cut, and does not change what a model computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.config import ModelConfig
from stages.whitebox.model import CausalLM
from stages.whitebox.packing import pack

PAD, BOS = 3, 1


def chat(length: int, first_target: int = 2, seed: int = 0) -> RenderedChat:
    """BOS and random ids; targets from `first_target` on."""
    ids = np.random.default_rng([seed, length]).integers(10, 90, length).tolist()
    return RenderedChat([BOS, *ids[1:]], [i >= first_target for i in range(length)])


def unpack(rows: object, row: int, number: int, name: str) -> list[int]:
    inside = rows.document_ids_RxT[row] == number  # type: ignore[attr-defined]
    return getattr(rows, name)[row][inside].tolist()


def test_every_conversation_is_whole_and_in_one_row() -> None:
    chats = [chat(length, seed=length) for length in np.random.default_rng(1).integers(4, 60, 200).tolist()]
    rows = pack(chats, 64, PAD)
    found = sorted(
        unpack(rows, row, number, "ids_RxT")
        for row in range(rows.num_rows)
        for number in range(1, rows.document_ids_RxT[row].max() + 1)
    )
    assert found == sorted(c.ids for c in chats)
    assert (rows.num_truncated, rows.num_without_targets) == (0, 0)
    assert rows.fill_fraction > 0.9


def test_layout_of_a_row() -> None:
    rows = pack(
        [RenderedChat([BOS, 7], [False, True]), RenderedChat([BOS, 8, 9], [False, False, True])], 7, PAD
    )
    assert rows.ids_RxT.tolist() == [[BOS, 8, 9, BOS, 7, PAD, PAD]]
    assert rows.labels_RxT.tolist() == [[-100, -100, 9, -100, 7, -100, -100]]
    assert rows.targets_RxT.tolist() == [[-100, 9, -100, 7, -100, -100, -100]]
    assert rows.document_ids_RxT.tolist() == [[1, 1, 1, 2, 2, 0, 0]]
    assert rows.positions_RxT.tolist() == [[0, 1, 2, 0, 1, 0, 1]]


def test_too_long_conversations_are_cut_and_counted() -> None:
    rows = pack([chat(20), chat(9), chat(30, first_target=25)], 10, PAD)
    assert (rows.num_rows, rows.num_truncated, rows.num_without_targets) == (2, 2, 1)
    assert rows.ids_RxT[0].tolist() == chat(20).ids[:10]


def test_every_row_has_a_target() -> None:
    silent = RenderedChat([BOS, 5, 6], [False] * 3)
    rows = pack([silent, chat(8), silent, chat(5)], 8, PAD)
    assert rows.num_without_targets == 2
    assert ((rows.targets_RxT != -100).sum(axis=1) > 0).all()


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of 1 conversations has a token to train on within 4 tokens"):
        pack([chat(9, first_target=5)], 4, PAD)
    with pytest.raises(ValueError, match="needs at least 2"):
        pack([chat(9)], 1, PAD)


def test_packing_is_deterministic() -> None:
    chats = [chat(5 + i % 7, seed=i) for i in range(40)]
    assert (pack(chats, 16, PAD).ids_RxT == pack(chats, 16, PAD).ids_RxT).all()


def test_logits_of_a_packed_conversation_equal_those_of_it_alone() -> None:
    torch.manual_seed(0)
    model = CausalLM(ModelConfig(100, 32, 64, 2, 2, 1, 16)).eval()
    chats = [chat(length, seed=length) for length in (11, 7, 13, 5)]
    rows = pack(chats, 20, PAD)
    with torch.no_grad():
        packed = model(
            torch.from_numpy(rows.ids_RxT).long(),
            positions_BxT=torch.from_numpy(rows.positions_RxT).long(),
            document_ids_BxT=torch.from_numpy(rows.document_ids_RxT).long(),
        )
        for row in range(rows.num_rows):
            for number in range(1, rows.document_ids_RxT[row].max() + 1):
                alone = model(torch.tensor([unpack(rows, row, number, "ids_RxT")]))[0]
                inside = torch.from_numpy(rows.document_ids_RxT[row] == number)
                torch.testing.assert_close(packed[row][inside], alone, rtol=0, atol=1e-5)

"""Packing conversations into rows of fixed length without cutting one that fits.

Best-fit decreasing (`best_fit.pack_windows`): the longest first, each into the fullest row with room. A
conversation attends only to itself (`document_ids`) and counts its positions from zero, so packing changes
speed and nothing else: the logits of a packed conversation equal those of the same conversation alone.

Shapes: R rows, T tokens of a row (context_tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.whitebox.best_fit import pack_windows
from stages.whitebox.chat_format import RenderedChat
from stages.whitebox.losses import IGNORED

PADDING_DOCUMENT = 0  # documents of a row count from 1


@dataclass(frozen=True)
class PackedRows:
    """Rows ready for training, and what packing did to get them."""

    ids_RxT: np.ndarray
    """int32; padded with the pad id."""
    labels_RxT: np.ndarray
    """int32; the id itself where it is trained on, else -100. Not shifted: see `targets_RxT`."""
    document_ids_RxT: np.ndarray
    """int32; 1, 2, ... by conversation within the row, 0 for padding."""
    positions_RxT: np.ndarray
    """int32; counts from 0 within each conversation."""
    num_truncated: int
    """Conversations longer than a row: their end was cut off."""
    num_without_targets: int
    """Conversations left out because no token of theirs (or of what was left) is trained on."""

    @property
    def targets_RxT(self) -> np.ndarray:
        """What each position has to predict: the label one to the right, -100 at the end of a row."""
        last = np.full_like(self.labels_RxT[:, :1], IGNORED)
        # A conversation begins with BOS, which is no target, so nothing predicts across conversations.
        return np.concatenate([self.labels_RxT[:, 1:], last], axis=1)

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.ids_RxT.shape[0])

    @property
    def fill_fraction(self) -> float:
        """Share of positions that hold a conversation rather than padding."""
        return float((self.document_ids_RxT != PADDING_DOCUMENT).mean()) if self.num_rows else 0.0


def pack(chats: Sequence[RenderedChat], context_tokens: int, pad_id: int) -> PackedRows:
    """Pack `chats` into rows of `context_tokens`; the same input gives the same rows.

    Raises ValueError when nothing is left to train on.
    """
    if context_tokens < 2:
        raise ValueError(f"context_tokens is {context_tokens}, a row needs at least 2")
    cut = [_truncate(chat, context_tokens) for chat in chats]
    usable = [chat for chat in cut if any(chat.is_target[1:])]
    if not usable:
        raise ValueError(
            f"none of {len(chats)} conversations has a token to train on within {context_tokens} tokens"
        )
    rows = pack_windows([len(chat.ids) for chat in usable], context_tokens)
    return PackedRows(
        *_fill([[usable[i] for i in row] for row in rows], context_tokens, pad_id),
        num_truncated=sum(len(chat.ids) > context_tokens for chat in chats),
        num_without_targets=len(chats) - len(usable),
    )


def _truncate(chat: RenderedChat, context_tokens: int) -> RenderedChat:
    if len(chat.ids) <= context_tokens:
        return chat
    return RenderedChat(chat.ids[:context_tokens], chat.is_target[:context_tokens])


def _fill(
    rows: Sequence[Sequence[RenderedChat]], context_tokens: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(rows), context_tokens)
    ids, labels = np.full(shape, pad_id, np.int32), np.full(shape, IGNORED, np.int32)
    documents, positions = np.full(shape, PADDING_DOCUMENT, np.int32), np.zeros(shape, np.int32)
    for r, row in enumerate(rows):
        start = 0
        for number, chat in enumerate(row, start=1):
            span = slice(start, start + len(chat.ids))
            ids[r, span] = chat.ids
            labels[r, span] = np.where(chat.is_target, chat.ids, IGNORED)
            documents[r, span] = number
            positions[r, span] = np.arange(len(chat.ids))
            start = span.stop
        positions[r, start:] = np.arange(context_tokens - start)
    return ids, labels, documents, positions

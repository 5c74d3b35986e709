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
    ends_cut_RxT: np.ndarray
    """bool; True at the last token of a conversation whose end was cut off."""
    weights_RxT: np.ndarray | None
    """float32; how much each label counts in the loss. None where all count 1."""
    num_truncated: int
    """Conversations longer than a row: their end was cut off."""
    num_cut_before_call: int
    """How many of them would have ended inside a tool call, and end before it instead."""
    num_without_targets: int
    """Conversations left out because no token of theirs (or of what was left) is trained on."""

    @property
    def targets_RxT(self) -> np.ndarray:
        """What each position has to predict: the label one to the right, -100 at the end of a row."""
        # A conversation begins with BOS, which is no target, so nothing predicts across conversations.
        return _shifted(self.labels_RxT, IGNORED)

    @property
    def target_weights_RxT(self) -> np.ndarray | None:
        """The weight of each of `targets_RxT`; 0 where there is none."""
        return None if self.weights_RxT is None else _shifted(self.weights_RxT, 0.0)

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
    ends = [last_whole_end(chat, context_tokens) for chat in chats]
    cut = [_truncate(chat, end) for chat, end in zip(chats, ends, strict=True)]
    usable = [chat for chat in cut if any(chat.is_target[1:])]
    if not usable:
        raise ValueError(
            f"none of {len(chats)} conversations has a token to train on within {context_tokens} tokens"
        )
    whole = {id(chat) for chat in chats}
    rows = pack_windows([len(chat.ids) for chat in usable], context_tokens)
    packed = [[usable[i] for i in row] for row in rows]
    return PackedRows(
        *_fill(packed, context_tokens, pad_id),
        _ends([[(len(chat.ids), id(chat) not in whole) for chat in row] for row in packed], context_tokens),
        _weights(packed, context_tokens) if any(chat.weights for chat in usable) else None,
        num_truncated=sum(len(chat.ids) > context_tokens for chat in chats),
        num_cut_before_call=sum(
            end < min(len(chat.ids), context_tokens) for chat, end in zip(chats, ends, strict=True)
        ),
        num_without_targets=len(chats) - len(usable),
    )


def last_whole_end(chat: RenderedChat, context_tokens: int) -> int:
    """How much of `chat` is kept in a row: all, or what fits but for a tool call that does not fit whole.

    Text may end anywhere: its beginning is what the assistant wrote, and it is not taught to stop there. Half
    a call is different: what executes calls would have to refuse it.
    """
    end = min(len(chat.ids), context_tokens)
    return next((begins for begins, stops in chat.calls if begins < end < stops), end)


def _truncate(chat: RenderedChat, end: int) -> RenderedChat:
    if len(chat.ids) == end:
        return chat
    return RenderedChat(chat.ids[:end], chat.is_target[:end], chat.weights[:end])


def _shifted(values_RxT: np.ndarray, last: float) -> np.ndarray:
    return np.concatenate([values_RxT[:, 1:], np.full_like(values_RxT[:, :1], last)], axis=1)


def _ends(rows: Sequence[Sequence[tuple[int, bool]]], context_tokens: int) -> np.ndarray:
    """rows: length of each conversation, and whether its end was cut off."""
    ends_cut = np.zeros((len(rows), context_tokens), bool)
    for r, row in enumerate(rows):
        stops = np.cumsum([length for length, _ in row])
        ends_cut[r, stops[[is_cut for _, is_cut in row]] - 1] = True
    return ends_cut


def _weights(rows: Sequence[Sequence[RenderedChat]], context_tokens: int) -> np.ndarray:
    weights = np.zeros((len(rows), context_tokens), np.float32)
    for r, row in enumerate(rows):
        values = [weight for chat in row for weight in (chat.weights or chat.is_target)]
        weights[r, : len(values)] = values
    return weights


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

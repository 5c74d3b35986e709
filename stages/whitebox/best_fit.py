"""Best-fit decreasing: windows of many lengths into rows of one length, nearly without padding.

The longest window first, each into the fullest row that still has room (Johnson et al. 1974, "Worst-case
performance bounds for simple one-dimensional packing algorithms"; for training text Ding et al. 2024,
arXiv:2404.10830). Windows of one length are placed together: the row with the least sufficient room stays
the best one until no further window of this length fits, so whole groups of rows with equal room are filled
at once. That makes it fast: millions of documents in a second.

Shapes: N windows, D documents, P pieces, R rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def fit_rows(lengths_N: NDArray[np.int64], context_tokens: int) -> NDArray[np.int64]:
    """The row of each window, numbered from 0 without gaps. The same lengths give the same rows.

    Raises:
        ValueError: a length is below 1 or above `context_tokens`.
    """
    if len(lengths_N) and not 1 <= lengths_N.min() <= lengths_N.max() <= context_tokens:
        raise ValueError(
            f"windows have {lengths_N.min()} to {lengths_N.max()} tokens, expected 1 to {context_tokens}"
        )
    order_N = longest_first(lengths_N)
    counts = np.bincount(lengths_N, minlength=context_tokens + 1)
    rows = _OpenRows(context_tokens)
    row_N = np.empty(len(lengths_N), dtype=np.int64)
    done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[length])
        while done < end:
            placed = rows.fill(length, end - done)
            row_N[order_N[done : done + len(placed)]] = placed
            done += len(placed)
    return row_N


class _OpenRows:
    """Rows by the room that they have left."""

    def __init__(self, context_tokens: int) -> None:
        self._context_tokens = context_tokens
        self._num_rows = 0
        self._by_room: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        self._rooms = 0
        """Bit r is set: there are rows with room r. Finding the least sufficient room is one shift."""

    def fill(self, length: int, count: int) -> NDArray[np.int64]:
        """The row of each of the next windows of `length`: at least of one, at most of `count`."""
        sufficient = self._rooms >> length
        if sufficient:
            room = length + (sufficient & -sufficient).bit_length() - 1
            rows = np.concatenate(self._by_room.pop(room))
            self._rooms ^= 1 << room
        else:
            room = self._context_tokens
            rows = np.arange(self._num_rows, self._num_rows - (-count // (room // length)))
            self._num_rows += len(rows)
        per_row = room // length
        num_full, rest = divmod(count, per_row)
        num_full = min(num_full, len(rows))
        self._put(rows[:num_full], room - per_row * length)
        if num_full == len(rows):
            return np.repeat(rows, per_row)
        self._put(rows[num_full : num_full + 1], room - rest * length)
        self._put(rows[num_full + 1 :], room)
        return np.concatenate([np.repeat(rows[:num_full], per_row), np.repeat(rows[num_full], rest)])

    def _put(self, rows: NDArray[np.int64], room: int) -> None:
        if len(rows) and room:
            self._by_room[room].append(rows)
            self._rooms |= 1 << room


def longest_first(lengths_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices by falling length; equal lengths keep their order."""
    top = int(lengths_N.max(initial=0))
    # NumPy sorts integers of 16 bits by counting, ten times as fast as those of 64.
    return np.argsort((top - lengths_N).astype(np.uint16 if top < 2**16 else np.int64), kind="stable")


def pack_windows(lengths: Sequence[int], context_tokens: int) -> list[list[int]]:
    """The indices of the windows of each row, the longest first. The same lengths give the same rows.

    Raises:
        ValueError: a length is below 1 or above `context_tokens`.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    if len(lengths_N) == 0:
        return []
    row_N, order_N = fit_rows(lengths_N, context_tokens), longest_first(lengths_N)
    by_row_N = order_N[np.argsort(row_N[order_N], kind="stable")]
    ends = np.cumsum(np.bincount(row_N)).tolist()
    indices = by_row_N.tolist()
    return [indices[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class PackedDocuments:
    """Which piece of which document stands in which row."""

    document_P: NDArray[np.int64]
    start_P: NDArray[np.int64]
    """First token of the piece in its document. Where it is not 0 the piece is a continuation: it needs one
    more place in the row, for the BOS that is repeated before it."""
    length_P: NDArray[np.int64]
    """Tokens of the document, the repeated BOS not counted."""
    row_starts_R1: NDArray[np.int64]
    """R + 1: the pieces of row r are those from row_starts[r] up to row_starts[r + 1]."""
    context_tokens: int

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.row_starts_R1) - 1

    @property
    def padding_fraction(self) -> float:
        """Share of all places that hold nothing."""
        used = int(self.length_P.sum()) + int(np.count_nonzero(self.start_P))
        return 1 - used / max(1, self.num_rows * self.context_tokens)

    @property
    def cut_tokens_fraction(self) -> float:
        """Share of the tokens that belong to a document that was cut: one that is longer than a row."""
        is_cut_P = np.isin(self.document_P, self.document_P[self.start_P > 0])
        return float(self.length_P[is_cut_P].sum() / max(1, self.length_P.sum()))


def pack_documents(lengths_D: NDArray[np.int64], context_tokens: int) -> PackedDocuments:
    """Packs documents into rows; only those longer than a row are cut, and as seldom as can be.

    No token is lost: the first piece of a long document fills a row, each further one is BOS and the next
    `context_tokens` - 1 tokens, and the last one goes where it fits best.

    Raises:
        ValueError: `context_tokens` is below 2, or a document has no token.
    """
    if context_tokens < 2 or lengths_D.min(initial=1) < 1:
        raise ValueError(
            f"packing needs rows of 2 tokens or more and documents of 1 or more, found {context_tokens} "
            f"and {lengths_D.min(initial=1)}"
        )
    more_D = np.maximum(0, -(-(lengths_D - context_tokens) // (context_tokens - 1)))
    document_P = np.repeat(np.arange(len(lengths_D)), 1 + more_D)
    first_D = np.cumsum(1 + more_D) - (1 + more_D)
    number_P = np.arange(len(document_P)) - first_D[document_P]
    start_P = np.where(number_P > 0, context_tokens + (number_P - 1) * (context_tokens - 1), 0)
    room_P = np.where(number_P > 0, context_tokens - 1, context_tokens)
    length_P = np.minimum(lengths_D[document_P] - start_P, room_P)
    row_P = fit_rows(length_P + (number_P > 0), context_tokens)
    order_P = np.argsort(row_P, kind="stable")
    row_starts_R1 = np.concatenate([[0], np.cumsum(np.bincount(row_P))]).astype(np.int64)
    return PackedDocuments(
        document_P[order_P], start_P[order_P], length_P[order_P], row_starts_R1, context_tokens
    )


def cut_by_concatenation(lengths_D: NDArray[np.int64], context_tokens: int) -> float:
    """Share of the documents that would fit a row and are cut all the same when the rows are cut from all
    documents one behind another."""
    ends_D = np.cumsum(lengths_D)
    is_cut_D = (ends_D - lengths_D) // context_tokens != (ends_D - 1) // context_tokens
    fits_D = lengths_D <= context_tokens
    return float(np.count_nonzero(is_cut_D & fits_D) / max(1, np.count_nonzero(fits_D)))

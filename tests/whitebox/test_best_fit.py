"""Packing cuts nothing that fits, loses nothing, pads next to nothing, and is best-fit decreasing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.whitebox.best_fit import (
    PackedDocuments,
    cut_by_concatenation,
    fit_rows,
    pack_documents,
    pack_windows,
)

CONTEXT = st.integers(2, 40)


def one_by_one(lengths: list[int], context_tokens: int) -> list[int]:
    """Best-fit decreasing as it is written in books: how full each row is, in the end."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(context_tokens - length)
    return sorted(rooms)


@settings(max_examples=300, deadline=None)
@given(st.data(), CONTEXT)
def test_the_rows_are_those_of_best_fit_decreasing(data: st.DataObject, context_tokens: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, context_tokens), max_size=80))
    row_N = fit_rows(np.array(lengths, dtype=np.int64), context_tokens)
    used = np.bincount(row_N, weights=lengths).astype(int)
    assert sorted(context_tokens - used) == one_by_one(lengths, context_tokens)
    rows = pack_windows(lengths, context_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert [sum(lengths[index] for index in row) for row in rows] == used.tolist()


def pieces_of(packed: PackedDocuments) -> list[list[tuple[int, int, int]]]:
    """(document, start, length) of each row's pieces."""
    triples = list(
        zip(packed.document_P.tolist(), packed.start_P.tolist(), packed.length_P.tolist(), strict=True)
    )
    starts = packed.row_starts_R1.tolist()
    return [triples[a:b] for a, b in pairwise(starts)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=60), CONTEXT)
def test_no_token_is_lost_and_nothing_is_cut_that_fits(lengths: list[int], context_tokens: int) -> None:
    packed = pack_documents(np.array(lengths, dtype=np.int64), context_tokens)
    rows = pieces_of(packed)
    found: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        assert sum(length + (start > 0) for _, start, length in row) <= context_tokens
        for document, start, length in row:
            found.setdefault(document, []).append((start, length))
    assert sorted(found) == list(range(len(lengths)))
    for document, pieces in found.items():
        ends = [start + length for start, length in sorted(pieces)]
        assert [start for start, _ in sorted(pieces)] == [0, *ends[:-1]]
        assert ends[-1] == lengths[document]
        fewest = 1 + max(0, -(-(lengths[document] - context_tokens) // (context_tokens - 1)))
        assert len(pieces) == fewest
    used = sum(length + (start > 0) for row in rows for _, start, length in row)
    if rows:
        assert packed.padding_fraction == pytest.approx(1 - used / (len(rows) * context_tokens))
    too_long = sum(length for length in lengths if length > context_tokens)
    assert packed.cut_tokens_fraction == pytest.approx(too_long / max(1, sum(lengths)))


@pytest.mark.parametrize("context_tokens", [512, 2048])
def test_documents_as_long_as_on_the_web_leave_under_a_thousandth_empty(context_tokens: int) -> None:
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(500), 1.1, 100_000), 3, 200_000).astype(np.int64)
    packed = pack_documents(lengths, context_tokens)
    assert 0 <= packed.padding_fraction < 0.001
    assert packed.length_P.sum() == lengths.sum()
    assert np.isin(
        np.unique(packed.document_P[packed.start_P > 0]), np.flatnonzero(lengths > context_tokens)
    ).all()
    assert cut_by_concatenation(lengths, context_tokens) > 0.1


def test_packing_fills_rows_and_is_the_same_every_time() -> None:
    lengths = [3, 8, 5, 2, 6, 1, 4, 7]
    assert pack_windows(lengths, 8) == [[1], [7, 5], [4, 3], [2, 0], [6]]
    assert pack_windows([], 8) == []


def test_documents_cut_by_concatenation() -> None:
    assert cut_by_concatenation(np.array([4, 4, 5, 3, 9]), 8) == pytest.approx(0)
    assert cut_by_concatenation(np.array([5, 5, 6]), 8) == pytest.approx(1 / 3)


@pytest.mark.parametrize("lengths", [[0], [9], [1, 2, 9, 3]])
def test_lengths_beyond_a_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 8"):
        pack_windows(lengths, 8)


def test_empty_documents_and_rows_of_one_token_are_refused() -> None:
    with pytest.raises(ValueError, match="documents of 1 or more"):
        pack_documents(np.array([3, 0]), 8)
    with pytest.raises(ValueError, match="rows of 2"):
        pack_documents(np.array([3]), 1)
    assert pack_documents(np.array([], dtype=np.int64), 8).num_rows == 0

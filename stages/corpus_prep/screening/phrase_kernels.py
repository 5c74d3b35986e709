"""Counting many phrases in one pass: the automaton of Aho and Corasick (1975) as a table over UTF-8 bytes.

Bytes that no phrase holds share a column, and small letters share one with capitals, so that a row is some
tens of numbers wide and not 256.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.runtime.compiled import njit


@njit(cache=True)
def _is_letter_before(data: NDArray[np.uint8], at: int, start: int) -> bool:
    """Whether a Latin letter or a digit ends just before `at`: U+00C0 to U+024F are the leads C3 to C9."""
    if at <= start:
        return False
    byte = data[at - 1]
    if byte < 0x80:
        return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122
    return at - 2 >= start and 0xC3 <= data[at - 2] <= 0xC9


@njit(cache=True)
def _is_letter_after(data: NDArray[np.uint8], at: int, end: int) -> bool:
    if at >= end:
        return False
    byte = data[at]
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or 0xC3 <= byte <= 0xC9


@njit(cache=True)
def count_phrases(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    columns: NDArray[np.uint8],
    goto: NDArray[np.int32],
    phrase_at: NDArray[np.int32],
    next_match: NDArray[np.int32],
    lengths: NDArray[np.int32],
    is_word: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(hits [N], first phrase [N] or -1, where it begins in its text [N] or -1).

    goto [states, columns]: where a byte leads. phrase_at [states]: the phrase that ends there or -1.
    next_match [states]: the state of the next shorter phrase that ends there, or 0.
    lengths [states]: bytes of the phrase that ends there.
    """
    number = len(offsets) - 1
    hits = np.zeros(number, np.int64)
    first = np.full(number, -1, np.int64)
    place = np.full(number, -1, np.int64)
    for text in range(number):
        start, end = offsets[text], offsets[text + 1]
        state = np.int32(0)
        for at in range(start, end):
            state = goto[state, columns[data[at]]]
            ending = state if phrase_at[state] >= 0 else next_match[state]
            while ending != 0:
                phrase = phrase_at[ending]
                begin = at + 1 - lengths[ending]
                inside = is_word[phrase] and (
                    _is_letter_before(data, begin, start) or _is_letter_after(data, at + 1, end)
                )
                if not inside:
                    hits[text] += 1
                    if first[text] < 0:
                        first[text], place[text] = phrase, begin - start
                ending = next_match[ending]
    return hits, first, place

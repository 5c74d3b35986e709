"""Letters of each script in three windows of every text, counted over UTF-8 bytes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.screening.repair_kernels import decode
from stages.runtime.compiled import njit

SCRIPTS = ("han", "kana", "hangul", "arabic", "cyrillic", "latin", "foreign")
CODE_SIGN = len(SCRIPTS)
NOTHING = CODE_SIGN + 1
"""Digits, punctuation, white space."""
NUM_COLUMNS = NOTHING + 1
TABLE_SIZE = 0x32000
WINDOW_BYTES = 1500
"""Headers are often in another language than the text: beginning, middle and end are looked at."""

_RANGES = {
    "han": ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)),
    "kana": ((0x3040, 0x30FF),),
    "hangul": ((0xAC00, 0xD7AF),),
    "arabic": ((0x0600, 0x06FF), (0x0750, 0x077F)),
    "cyrillic": ((0x0400, 0x04FF),),
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F)),
}


@cache
def script_table() -> NDArray[np.uint8]:
    """Code point -> index into SCRIPTS, CODE_SIGN or NOTHING."""
    table = np.full(TABLE_SIZE, NOTHING, np.uint8)
    for point in range(0x250, TABLE_SIZE):
        if chr(point).isalpha():
            table[point] = SCRIPTS.index("foreign")
    for script, ranges in _RANGES.items():
        for first, last in ranges:
            table[first : last + 1] = SCRIPTS.index(script)
    table[[ord(sign) for sign in "{}();=<>[]_"]] = CODE_SIGN
    return table


@njit(cache=True)
def _character_start(data: NDArray[np.uint8], at: int, start: int) -> int:
    """`at`, moved back to where its character begins: bytes 10xxxxxx are never the first."""
    while at > start and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


@njit(cache=True)
def window_spans(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], window_bytes: int = WINDOW_BYTES
) -> NDArray[np.int64]:
    """spans [N, 3, 2]: where the windows of each text begin and end; short texts are one window."""
    spans = np.zeros((len(offsets) - 1, 3, 2), np.int64)
    for index in range(len(spans)):
        start, end = offsets[index], offsets[index + 1]
        spans[index, :, :] = end
        spans[index, 0, 0] = start
        if end - start <= 3 * window_bytes:
            continue
        middle = _character_start(data, (start + end) // 2, start)
        spans[index, 0, 1] = _character_start(data, start + window_bytes, start)
        spans[index, 1, 0] = middle
        spans[index, 1, 1] = _character_start(data, middle + window_bytes, start)
        spans[index, 2, 0] = _character_start(data, end - window_bytes, start)
    return spans


@njit(cache=True)
def count_scripts(
    data: NDArray[np.uint8], spans: NDArray[np.int64], table: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """counts [N, NUM_COLUMNS]: characters of each script in the windows of each text."""
    counts = np.zeros((len(spans), NUM_COLUMNS), np.int64)
    for index in range(len(spans)):
        for window in range(3):
            at, end = spans[index, window, 0], spans[index, window, 1]
            while at < end:
                point, size = np.int64(data[at]), 1
                if point >= 0x80:
                    point, size = decode(data, at, end)
                counts[index, table[point] if point < len(table) else NOTHING] += 1
                at += size
    return counts

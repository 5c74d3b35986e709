"""Which texts need a repair, and the two commonest repairs, over UTF-8 bytes.

`find_needs` reads every byte once and looks each character up in a table that says what it may call for.
It may call for too much (repair_text then changes nothing), never for too little. Line ends and white space
are mended here, because every second file needs it; whatever else is flagged goes to repair_text.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stages.runtime.compiled import njit

LINE_ENDS, WHITE_SPACE, OTHER = 1, 2, 4
TABLE_SIZE = 0x32000
"""No character above that is assigned but for tags, variation selectors and private use: those are OTHER."""

_NEWLINE, _RETURN, _SPACE, _TAB = 10, 13, 32, 9
_WIDE_SPACE = 0x3000
_REPAIRED = "\u200b\u2060\ufeff\u00ad\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"


@cache
def need_table() -> NDArray[np.uint8]:
    """Code point -> OTHER where a character of its own, or after another one, calls for repair_text."""
    table = np.zeros(TABLE_SIZE, np.uint8)
    controls = [*range(32), *range(0x7F, 0xA0)]
    table[[c for c in controls if c not in (_NEWLINE, _RETURN, _TAB)]] = OTHER
    table[[ord(character) for character in _REPAIRED]] = OTHER
    table[0xD800:0xE000] = OTHER
    table[_composing()] = OTHER
    return table


def _composing() -> list[int]:
    """Characters that are not in NFC alone, or may not be after another one (NFC_Quick_Check of UAX 15)."""
    found = [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]  # Hangul vowels and final consonants
    for point in range(0x80, TABLE_SIZE):
        character = chr(point)
        if unicodedata.combining(character) or not unicodedata.is_normalized("NFC", character):
            found.append(point)
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.append(int(parts[1], 16))
    return found


@njit(cache=True)
def decode(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """(code point, bytes) of the character of two to four bytes at `at`; never reads past `end`."""
    lead = data[at]
    if lead < 0xE0 and at + 1 < end:
        return ((lead & 0x1F) << 6) | (data[at + 1] & 0x3F), 2
    if lead < 0xF0 and at + 2 < end:
        return ((lead & 0x0F) << 12) | ((data[at + 1] & 0x3F) << 6) | (data[at + 2] & 0x3F), 3
    if at + 3 < end:
        point = ((lead & 0x07) << 18) | ((data[at + 1] & 0x3F) << 12)
        return point | ((data[at + 2] & 0x3F) << 6) | (data[at + 3] & 0x3F), 4
    return 0xFFFD, end - at


@njit(cache=True)
def _looks_garbled(before: int, point: int) -> bool:
    """Two characters that begin what UTF-8 looks like when it was read as Windows-1252."""
    if before in (0xC2, 0xC3):
        return 0x80 <= point <= 0xBF or 0x201A <= point <= 0x203A or point == 0x20AC
    return (before == 0xE2 and point == 0x20AC) or (before == 0xEF and point == 0xBB)


@njit(cache=True)
def _needs_of(data: NDArray[np.uint8], start: int, end: int, table: NDArray[np.uint8]) -> int:
    needs = 0
    before = _NEWLINE  # so that a text that begins with a newline is flagged
    newlines = 3
    at = start
    while at < end:
        point, size = np.int64(data[at]), 1
        if point >= 0x80:
            point, size = decode(data, at, end)
            if _looks_garbled(before, point):
                needs |= OTHER
        needs |= table[point] if point < len(table) else OTHER
        if point == _NEWLINE:
            newlines += 1
            if newlines > 3 or before in (_SPACE, _TAB, _WIDE_SPACE):
                needs |= WHITE_SPACE
        else:
            newlines = 0
            if point == _RETURN:
                needs |= LINE_ENDS
        before = point
        at += size
    if end > start and before in (_NEWLINE, _SPACE, _TAB, _WIDE_SPACE):
        needs |= WHITE_SPACE
    return needs


@njit(cache=True)
def find_needs(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """needs [N]: LINE_ENDS, WHITE_SPACE and OTHER of each text, as bits."""
    needs = np.zeros(len(offsets) - 1, np.uint8)
    for index in range(len(needs)):
        needs[index] = _needs_of(data, offsets[index], offsets[index + 1], table)
    return needs


@njit(cache=True)
def _without_space(out: NDArray[np.uint8], start: int, end: int) -> int:
    """`end`, moved back over spaces, tabs and ideographic spaces (E3 80 80)."""
    while end > start:
        if out[end - 1] in (_SPACE, _TAB):
            end -= 1
        elif end - start >= 3 and out[end - 1] == 0x80 and out[end - 2] == 0x80 and out[end - 3] == 0xE3:
            end -= 3
        else:
            break
    return end


@njit(cache=True)
def _mend(data: NDArray[np.uint8], start: int, end: int, out: NDArray[np.uint8], to: int) -> tuple[int, bool]:
    """Write one text with its line ends and white space mended; (where it ends, whether white space went)."""
    first, newlines, mended = to, 0, False
    at = start
    while at < end:
        byte = data[at]
        at += 1
        if byte == _RETURN:
            byte = _NEWLINE
            if at < end and data[at] == _NEWLINE:
                at += 1
        if byte != _NEWLINE:
            out[to] = byte
            to += 1
            continue
        kept = _without_space(out, first, to)
        newlines = 0
        while kept - newlines > first and newlines < 3 and out[kept - newlines - 1] == _NEWLINE:
            newlines += 1
        mended |= kept != to or newlines == 3 or kept == first
        to = kept
        if newlines < 3 and kept > first:
            out[to] = _NEWLINE
            to += 1
    kept = _without_space(out, first, to)
    while kept > first and out[kept - 1] == _NEWLINE:
        kept -= 1
    return kept, mended or kept != to


@njit(cache=True)
def mend_space(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], needs: NDArray[np.uint8], out: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Copy all texts into `out` (as long as `data`), mended where only white space or line ends call for it.

    Returns the new offsets [N + 1], and of which texts [N] white space was changed.
    """
    ends = np.zeros(len(offsets), np.int64)
    changed = np.zeros(len(needs), np.bool_)
    for index in range(len(needs)):
        start, end, to = offsets[index], offsets[index + 1], ends[index]
        if needs[index] in (LINE_ENDS, WHITE_SPACE, LINE_ENDS | WHITE_SPACE):
            ends[index + 1], changed[index] = _mend(data, start, end, out, to)
        else:
            out[to : to + end - start] = data[start:end]
            ends[index + 1] = to + end - start
    return ends, changed

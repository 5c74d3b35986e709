"""Where in a batch personal data may stand: stretches of bytes worth a regular expression.

Two kinds of stretches: words that hold an @, three dots between digits, or colons between hexadecimal digits;
and runs of digits with single separators that are long enough for a telephone or card number. Clean text has
next to none, so it passes at the speed of this scan.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

WORD, NUMBER = 1, 2
MIN_DIGITS, MIN_DIGITS_AFTER_PLUS = 11, 8

_DELIMITER, _DIGIT, _HEX, _AT, _DOT, _COLON, _OTHER = range(7)
_PLUS, _MINUS, _SPACE, _OPEN, _CLOSE, _POINT = 43, 45, 32, 40, 41, 46


def byte_classes() -> NDArray[np.uint8]:
    """Byte -> its class. Everything that is not printable ASCII ends a word."""
    classes = np.full(256, _DELIMITER, np.uint8)
    classes[0x21:0x7F] = _OTHER
    classes[[ord(sign) for sign in "<>()[]{}\"',;|`"]] = _DELIMITER
    classes[[ord(sign) for sign in "abcdefABCDEF"]] = _HEX
    classes[ord("0") : ord("9") + 1] = _DIGIT
    classes[ord("@")], classes[ord(".")], classes[ord(":")] = _AT, _DOT, _COLON
    return classes


@njit(cache=True)
def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


@njit(cache=True)
def _number_end(data: NDArray[np.uint8], start: int, end: int) -> tuple[int, int]:
    """(end of the run of digits that begins at `start`, its digits); at most two separators in a row."""
    after_plus = data[start] == _PLUS
    at, last, digits, separators = start, start, 0, 0
    while at < end:
        byte = data[at]
        if _is_digit(byte):
            digits += 1
            separators = 0
            last = at + 1
        else:
            separates = byte == _SPACE or byte == _MINUS  # noqa: PLR1714  (a tuple is slower here)
            if after_plus and (byte == _OPEN or byte == _CLOSE or byte == _POINT):  # noqa: PLR1714
                separates = True
            separators += 1
            if separators > 2 or (not separates and at > start):
                break
        at += 1
    return last, digits


@njit(cache=True)
def find_candidates(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], classes: NDArray[np.uint8], found: NDArray[np.int64]
) -> int:
    """Fill found [room, 4] with (text, start, end, WORD or NUMBER), start and end in `data`.

    Returns how many there are; where that is more than there is room for, call again with more.
    """
    count = 0
    for text in range(len(offsets) - 1):
        start, end = offsets[text], offsets[text + 1]
        word, at_signs, dots, colons, digits = start, 0, 0, 0, 0
        number_end = start
        for at in range(start, end + 1):
            kind = classes[data[at]] if at < end else np.uint8(_DELIMITER)
            if kind == _DELIMITER:
                is_address = dots >= 3 and digits >= 4
                if at_signs > 0 or is_address or (colons >= 2 and digits > 0):
                    if count < len(found):
                        found[count, 0], found[count, 1] = text, word
                        found[count, 2], found[count, 3] = at, WORD
                    count += 1
                word, at_signs, dots, colons, digits = at + 1, 0, 0, 0, 0
            elif kind == _DIGIT:
                digits += 1
                if at >= number_end:
                    first = at - 1 if at > start and data[at - 1] == _PLUS else at
                    number_end, length = _number_end(data, first, end)
                    if length >= MIN_DIGITS or (first < at and length >= MIN_DIGITS_AFTER_PLUS):
                        if count < len(found):
                            found[count, 0], found[count, 1] = text, first
                            # One byte more: a Chinese ID number may end in X.
                            found[count, 2], found[count, 3] = min(number_end + 1, end), NUMBER
                        count += 1
            elif kind == _AT:
                at_signs += 1
            elif kind == _DOT:
                dots += 1
            elif kind == _COLON:
                colons += 1
    return count

"""Where in a batch personal data may stand: stretches of bytes worth a regular expression.

Two kinds of stretches: words that hold an @, three dots between digits, or colons between hexadecimal digits;
and runs of digits with single separators that are long enough for a telephone or card number. Clean text has
next to none, so it passes at the speed of this scan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.runtime.compiled import njit

WORD, NUMBER = 1, 2
MIN_DIGITS, MIN_DIGITS_AFTER_PLUS = 11, 8

_AT, _DOT, _COLON, _DIGIT, _DELIMITER = 1, 2, 4, 8, 16
_PLUS, _MINUS, _SPACE, _OPEN, _CLOSE, _POINT = 43, 45, 32, 40, 41, 46


def byte_classes() -> NDArray[np.uint8]:
    """Byte -> its class, a bit; 0 for letters. Everything that is not printable ASCII ends a word."""
    classes = np.full(256, _DELIMITER, np.uint8)
    classes[0x21:0x7F] = 0
    classes[[ord(sign) for sign in "<>()[]{}\"',;|`"]] = _DELIMITER
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
            separates = byte in (_SPACE, _MINUS) or (after_plus and byte in (_OPEN, _CLOSE, _POINT))
            separators += 1
            if separators > 2 or (not separates and at > start):
                break
        at += 1
    return last, digits


@njit(cache=True)
def _may_be_address(data: NDArray[np.uint8], start: int, end: int, classes: NDArray[np.uint8]) -> bool:
    """Whether a word has the signs of an e-mail address, or enough of those of an IP address."""
    dots = colons = digits = 0
    for at in range(start, end):
        kind = classes[data[at]]
        if kind == _AT:
            return True
        dots += kind == _DOT
        colons += kind == _COLON
        digits += kind == _DIGIT
    return (dots >= 3 and digits >= 4) or (colons >= 2 and digits > 0)


@njit(cache=True)
def _note(found: NDArray[np.int64], count: int, text: int, start: int, end: int, what: int) -> int:
    if count < len(found):
        found[count, 0], found[count, 1], found[count, 2], found[count, 3] = text, start, end, what
    return count + 1


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
        word, number_end, seen = start, start, 0
        for at in range(start, end):
            kind = classes[data[at]]
            if kind == 0:  # most bytes are letters
                continue
            if kind == _DELIMITER:
                # Most words have none of the signs; only the others are looked at again.
                if seen & ~_DIGIT and _may_be_address(data, word, at, classes):
                    count = _note(found, count, text, word, at, WORD)
                word, seen = at + 1, 0
                continue
            seen |= kind
            if kind == _DIGIT and at >= number_end:
                first = at - 1 if at > start and data[at - 1] == _PLUS else at
                number_end, length = _number_end(data, first, end)
                if length >= MIN_DIGITS or (first < at and length >= MIN_DIGITS_AFTER_PLUS):
                    # One byte more: a Chinese ID number may end in X.
                    count = _note(found, count, text, first, min(number_end + 1, end), NUMBER)
        if seen & ~_DIGIT and _may_be_address(data, word, end, classes):
            count = _note(found, count, text, word, end, WORD)
    return count

"""Compiled loops over characters, lines and paragraphs.

A document is an array of code points, decoded once, with another of their kinds (the flags of
`characters.py`). Each loop adds to `row`, the counts of one document in the order of `columns.py`.
"""

from __future__ import annotations

import numpy as np

from stages.corpus_prep.measuring.characters import (
    BREAK,
    LETTER,
    PLAIN,
    SCRIPT_SHIFT,
    SCRIPTS,
    SPACE,
    TERMINAL,
)
from stages.corpus_prep.measuring.columns import INDEX, SHORT_LINE_CHARACTERS
from stages.corpus_prep.measuring.hash_kernels import find_or_add, hash_characters, mix, new_generation
from stages.runtime.compiled import njit

CHARACTERS, VISIBLE, LETTERS, SYMBOLS = (
    INDEX[n] for n in ("characters", "visible_characters", "letters", "symbols")
)
OTHER_SCRIPT, NUM_SCRIPTS = INDEX["han"] - 1, len(SCRIPTS)
REPLACEMENTS, HASHES, ELLIPSES = (INDEX[n] for n in ("replacement_characters", "hashes", "ellipses"))
NEWLINES, NONBLANK, LINES = INDEX["newlines"], INDEX["nonblank_lines"], INDEX["lines"]
DUPLICATE_LINES, DUPLICATE_CHARACTERS = INDEX["duplicate_lines"], INDEX["duplicate_line_characters"]
TERMINAL_LINES, SHORT_LINES = INDEX["terminal_lines"], INDEX["short_lines"]
DUPLICATE_NONBLANK = INDEX["duplicate_nonblank_characters"]
STRIPPED, DUPLICATE_STRIPPED = INDEX["stripped_characters"], INDEX["duplicate_stripped_characters"]
PARAGRAPHS, DUPLICATE_PARAGRAPHS = INDEX["paragraphs"], INDEX["duplicate_paragraphs"]
DUPLICATE_PARAGRAPH_CHARACTERS = INDEX["duplicate_paragraph_characters"]
BROKEN_LINES, BULLET_LINES, ELLIPSIS_LINES = (
    INDEX[n] for n in ("broken_lines", "bullet_lines", "ellipsis_lines")
)
_LINE_FEED, _RETURN, _DOT, _ELLIPSIS, _BULLET, _HYPHEN = 10, 13, 46, 0x2026, 0x2022, 45
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xD1B54A32D192ED03), np.uint64(0x8CB92BA72F3D8DD7)
_29, _31, _21, _ZERO, _BLANK = np.uint64(29), np.uint64(31), np.uint64(21), np.uint64(0), np.uint64(32)


@njit(cache=True)
def decode(data, start, end, flags, characters, kinds):
    """UTF-8 in data[start:end] to code points and their flags; how many."""
    number = 0
    while start < end:
        code = np.uint32(data[start])
        if code < 0x80:
            start += 1
        elif code < 0xE0:
            code = (code & 0x1F) << 6 | data[start + 1] & 0x3F
            start += 2
        elif code < 0xF0:
            code = (code & 0xF) << 12 | (data[start + 1] & 0x3F) << 6 | data[start + 2] & 0x3F
            start += 3
        else:
            code = (code & 7) << 18 | (data[start + 1] & 0x3F) << 12 | (data[start + 2] & 0x3F) << 6
            code |= data[start + 3] & 0x3F
            start += 4
        characters[number] = code
        kinds[number] = flags[code]
        number += 1
    return number


@njit(cache=True)
def count_characters(characters, kinds, number, row):
    """Letters, scripts and signs, each by itself."""
    spaces = letters = plain = hashes = feeds = replacements = signs = 0
    for place in range(number):  # sums without branches: the processor takes eight places at once
        kind, character = kinds[place], characters[place]
        spaces += kind & SPACE
        letters += (kind & LETTER) != 0
        plain += (kind & PLAIN) != 0
        hashes += character == 35
        feeds += character == _LINE_FEED
        replacements += character == 0xFFFD
        signs += character == _ELLIPSIS
    for script in range(1, NUM_SCRIPTS):
        found = 0
        for place in range(number):
            found += (kinds[place] >> SCRIPT_SHIFT) == script
        row[OTHER_SCRIPT + script] = found
    row[CHARACTERS], row[VISIBLE], row[LETTERS], row[SYMBOLS] = (
        number,
        number - spaces,
        letters,
        number - plain,
    )
    row[HASHES], row[NEWLINES], row[REPLACEMENTS] = hashes, feeds, replacements
    row[ELLIPSES] = signs + _count_dots(characters, number)


@njit(cache=True)
def _count_dots(characters, number):
    """Three dots in a row, not overlapping."""
    found, dots = 0, 0
    for place in range(number):
        if characters[place] != _DOT:
            dots = 0
        else:
            dots += 1
            if dots == 3:
                found, dots = found + 1, 0
    return found


@njit(cache=True)
def _absorb(state, group):
    state = (state ^ group) * _FIRST_FACTOR
    return state ^ (state >> _29)


@njit(cache=True)
def _absorb_other(state, group):
    state = (state + group) * _SECOND_FACTOR
    return state ^ (state >> _31)


@njit(cache=True)
def hash_folded(characters, kinds, number, folded, text_hash):
    """128 bits of the text without case, white space one blank: equal texts have equal hashes.

    Two chains of 64 bits. Each step takes three characters in and is a bijection, so that texts meet by
    chance only.
    """
    first, second, blank, size, group = np.uint64(1), np.uint64(2), False, 0, np.uint64(0)
    for place in range(number):
        if kinds[place] & SPACE:
            blank = size > 0
            continue
        if blank:
            group = group << _21 | _BLANK
            size += 1
            if size % 3 == 0:
                first, second, group = _absorb(first, group), _absorb_other(second, group), _ZERO
            blank = False
        group = group << _21 | np.uint64(folded[characters[place]])
        size += 1
        if size % 3 == 0:
            first, second, group = _absorb(first, group), _absorb_other(second, group), _ZERO
    text_hash[0] = mix(_absorb(first, group) ^ np.uint64(size))
    text_hash[1] = mix(_absorb_other(second, group) + np.uint64(size))


@njit(cache=True)
def strip(kinds, start, end):
    """The part between white space, as `str.strip` cuts it."""
    while start < end and kinds[start] & SPACE:
        start += 1
    while end > start and kinds[end - 1] & SPACE:
        end -= 1
    return start, end


@njit(cache=True)
def count_lines(characters, kinds, number, table, row):
    """Lines that end with a line feed: how many, how long, how they end, which came before.

    A first pass takes them as they are, a second without the white space around them.
    """
    slots, generation = table
    for stripped in (False, True):
        mask = new_generation(slots, generation, row[NEWLINES] + 1)
        start = 0
        for place in range(number + 1):
            if place < number and characters[place] != _LINE_FEED:
                continue
            first, last = strip(kinds, start, place)
            if stripped and first < last:
                _, seen = find_or_add(slots, generation, mask, hash_characters(characters, first, last))
                row[STRIPPED] += last - first
                row[DUPLICATE_STRIPPED] += (last - first) * seen
            elif place > start and not stripped:
                _, seen = find_or_add(slots, generation, mask, hash_characters(characters, start, place))
                size, filled = place - start, first < last
                row[LINES] += 1
                row[DUPLICATE_LINES] += seen
                row[DUPLICATE_CHARACTERS] += size * seen
                row[NONBLANK] += filled
                row[DUPLICATE_NONBLANK] += size * (seen & filled)
                row[SHORT_LINES] += filled & (size <= SHORT_LINE_CHARACTERS)
                row[TERMINAL_LINES] += filled & ((kinds[place - 1] & TERMINAL) != 0)
            start = place + 1
    # Splitting at line feeds leaves an empty piece at either end, and the second is a duplicate of the first.
    outer = 0
    if number:
        outer = np.int64(characters[0] == _LINE_FEED) + np.int64(characters[number - 1] == _LINE_FEED)
    row[LINES] += outer
    row[DUPLICATE_LINES] += outer == 2


@njit(cache=True)
def count_paragraphs(characters, kinds, number, table, row):
    """Paragraphs stand between two or more line feeds; a text of white space is one, and empty."""
    slots, generation = table
    place, end = strip(kinds, 0, number)
    mask = new_generation(slots, generation, row[NEWLINES] // 2 + 1)
    start = place
    while place <= end:
        while place < end and characters[place] != _LINE_FEED:
            place += 1
        feeds = 0
        while place + feeds < end and characters[place + feeds] == _LINE_FEED:
            feeds += 1
        if feeds >= 2 or place == end:
            _, seen = find_or_add(slots, generation, mask, hash_characters(characters, start, place))
            row[PARAGRAPHS] += 1
            row[DUPLICATE_PARAGRAPHS] += seen
            row[DUPLICATE_PARAGRAPH_CHARACTERS] += (place - start) * seen
            start = place + feeds
        place += max(feeds, 1)


@njit(cache=True)
def next_line(characters, kinds, start, number):
    """(end of the line, start of the next), broken where `str.splitlines` breaks it."""
    end = start
    while end < number and not kinds[end] & BREAK:
        end += 1
    both = end + 1 < number and characters[end] == _RETURN and characters[end + 1] == _LINE_FEED
    return end, end + 1 + both


@njit(cache=True)
def ends_with_ellipsis(characters, start, end):
    """Whether the last of characters[start:end] are three dots or the one sign for them."""
    if end > start and characters[end - 1] == _ELLIPSIS:
        return True
    if end - start < 3 or characters[end - 1] != _DOT:
        return False
    return characters[end - 2] == _DOT and characters[end - 3] == _DOT


@njit(cache=True)
def count_listed(characters, start, end, row):
    """Whether a line, without the white space around it, begins with a bullet or ends with an ellipsis."""
    row[BROKEN_LINES] += 1
    if start < end:
        row[BULLET_LINES] += (characters[start] == _BULLET) | (characters[start] == _HYPHEN)
        row[ELLIPSIS_LINES] += ends_with_ellipsis(characters, start, end)

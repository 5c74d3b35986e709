"""Compiled loops for the lines of C4 (Raffel et al. 2020, arXiv:1910.10683), in datatrove's order of questions.

Per line of any break, without the white space around it: a word of over 1,000 characters drops it; citations such
as [12] are cut; it may have to end with terminal punctuation; fewer than three words (counted before the cut) drop
it; `lorem ipsum` drops the document; `javascript` drops the line; { drops the document; phrases of policies drop
the line. Words stand between white space here, whatever splitter the other rules use.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stages.corpus_prep.measuring.characters import DIGIT, SPACE, TERMINAL, WORD
from stages.corpus_prep.measuring.columns import INDEX
from stages.corpus_prep.measuring.line_kernels import ends_with_ellipsis, next_line, strip

MAX_WORD_CHARACTERS = 1000
MIN_WORDS = 3
KEPT, LONG_WORD, FEW_WORDS, JAVASCRIPT, POLICY, LOREM, CURLY = range(7)
"""What becomes of a line; the last two drop the document."""
CITATIONS = ("[edit]", "[citation needed]")
_POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
PHRASES = ("lorem ipsum", "javascript", *_POLICIES, *CITATIONS)
_LOREM, _JAVASCRIPT, _FIRST_POLICY, _FIRST_CITATION = 0, 1, 2, 2 + len(_POLICIES)
PHRASE_CHARACTERS = np.array([ord(c) for phrase in PHRASES for c in phrase], np.uint32)
PHRASE_ENDS = np.cumsum([0, *map(len, PHRASES)])
_FIRST = np.zeros(128, np.uint8)
_FIRST[[ord(phrase[0]) for phrase in PHRASES[:_FIRST_CITATION]]] = 1
_ANY = INDEX["c4_lines"]
_PUNCTUATED = INDEX["c4_terminal_lines"]
_LINES, _SENTENCES, _LOREM_LINES, _CURLY_LINES = range(4)  # after either of the two above
_OPEN, _CLOSE, _BRACE, _KELVIN = 91, 93, 123, 0x212A
_AFTER_SENTENCE = np.array([ord(c) for c in "\"')]}”’»"], np.uint32)
_LINE_END = np.array([ord(c) for c in ".?!\"'"], np.uint32)


@njit(cache=True)
def _lower(character):
    """`str.lower` as far as the phrases need it; one sign outside ASCII has an ASCII lower case."""
    if 65 <= character <= 90:
        return character + np.uint32(32)
    return np.uint32(107) if character == _KELVIN else character


@njit(cache=True)
def _stands_at(characters, place, end, phrase, exact):
    start, stop = PHRASE_ENDS[phrase], PHRASE_ENDS[phrase + 1]
    if place + stop - start > end:
        return False
    for offset in range(stop - start):
        character = characters[place + offset]
        if (character if exact else _lower(character)) != PHRASE_CHARACTERS[start + offset]:
            return False
    return True


@njit(cache=True)
def _citation_end(characters, place, end, flags):
    """Where the citation that begins at `place` ends, or `place` if there is none: [12], [], [edit] ..."""
    if characters[place] != _OPEN:
        return place
    after = place + 1
    while after < end and flags[characters[after]] & DIGIT:
        after += 1
    if after < end and characters[after] == _CLOSE:
        return after + 1
    for phrase in range(_FIRST_CITATION, len(PHRASE_ENDS) - 1):
        if _stands_at(characters, place, end, phrase, True):
            return place + PHRASE_ENDS[phrase + 1] - PHRASE_ENDS[phrase]
    return place


@njit(cache=True)
def _cut_citations(characters, start, end, flags, edited):
    size, place = 0, start
    while place < end:
        after = _citation_end(characters, place, end, flags)
        if after == place:
            edited[size] = characters[place]
            size += 1
            after = place + 1
        place = after
    return size


@njit(cache=True)
def _count_words(characters, start, end, flags):
    """(words between white space, characters of the longest)."""
    words, longest, length = 0, 0, 0
    for place in range(start, end):
        length = 0 if flags[characters[place]] & SPACE else length + 1
        words += length == 1
        longest = max(longest, length)
    return words, longest


@njit(cache=True)
def _judge_phrases(edited, size):
    """LOREM, JAVASCRIPT, CURLY, POLICY or KEPT: the first in this order that the line holds."""
    lorem = script = brace = policy = False
    for place in range(size):
        character = _lower(edited[place])
        brace |= character == _BRACE
        if character >= 128 or not _FIRST[character]:
            continue
        for phrase in range(_FIRST_CITATION):
            if _stands_at(edited, place, size, phrase, False):
                lorem |= phrase == _LOREM
                script |= phrase == _JAVASCRIPT
                policy |= phrase >= _FIRST_POLICY
    if lorem:
        return LOREM
    if script:
        return JAVASCRIPT
    if brace:
        return CURLY
    return POLICY if policy else KEPT


@njit(cache=True)
def _holds(values, character):
    for value in values:
        if character == value:
            return True
    return False


@njit(cache=True)
def edit_line(characters, start, end, flags, edited):
    """(what becomes of the stripped line, whether it has terminal punctuation, characters of it in `edited`)."""
    words, longest = _count_words(characters, start, end, flags)
    if longest > MAX_WORD_CHARACTERS:
        return LONG_WORD, False, 0
    if words < MIN_WORDS:
        return FEW_WORDS, False, 0
    size = _cut_citations(characters, start, end, flags, edited)
    punctuated = size > 0 and _holds(_LINE_END, edited[size - 1])
    if punctuated and size >= 3 and edited[size - 1] == 46:
        punctuated = not ends_with_ellipsis(edited, 0, size)
    return _judge_phrases(edited, size), punctuated, size


@njit(cache=True)
def count_sentences(characters, size, flags):
    """Sentences of a line: runs with a word that end at a sentence end or with the line.

    An ASCII . ? ! ends one before white space, a quote, a bracket or the end of the line; a full-width one always.
    """
    sentences, begun = 0, False
    for place in range(size):
        character = characters[place]
        flag = flags[character]
        if flag & WORD:
            begun = True
        elif flag & TERMINAL and begun:
            final = place + 1 == size or character >= 128
            if final or flags[characters[place + 1]] & SPACE or _holds(_AFTER_SENTENCE, characters[place + 1]):
                sentences, begun = sentences + 1, False
    return sentences + begun


@njit(cache=True)
def count_c4(characters, number, flags, edited, row):
    """Lines and sentences that C4 keeps, with and without the rule on terminal punctuation."""
    start = 0
    while start < number:
        end, following = next_line(characters, start, number, flags)
        first, last = strip(characters, start, end, flags)
        status, punctuated, size = edit_line(characters, first, last, flags, edited)
        sentences = count_sentences(edited, size, flags) if status == KEPT else 0
        for base in (_ANY, _PUNCTUATED):
            if base == _ANY or punctuated:
                row[base + _LINES] += status == KEPT
                row[base + _SENTENCES] += sentences
                row[base + _LOREM_LINES] += status == LOREM
                row[base + _CURLY_LINES] += status == CURLY
        start = following


@njit(cache=True)
def write_c4_lines(characters, number, flags, punctuation, out):
    """Write the kept lines to `out`, each followed by a line feed; (characters written, lines dropped)."""
    start, written, dropped = 0, 0, 0
    while start < number:
        end, following = next_line(characters, start, number, flags)
        first, last = strip(characters, start, end, flags)
        status, punctuated, size = edit_line(characters, first, last, flags, out[written:])
        if status == KEPT and (punctuated or not punctuation):
            out[written + size] = 10
            written += size + 1
        else:
            dropped += 1
        start = following
    return written, dropped

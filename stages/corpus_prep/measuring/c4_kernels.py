"""Compiled loops for the lines of C4 (Raffel et al. 2020, arXiv:1910.10683), in datatrove's order of
questions.

Per line of any break, without the white space around it: a word of over 1,000 characters drops it;
citations such as [12] are cut; it may have to end with terminal punctuation; fewer than three words
(counted before the cut) drop it; `lorem ipsum` drops the document; `javascript` drops the line; { drops the
document; phrases of policies drop the line. Words stand between white space here, whatever splitter the
other rules use.
"""

from __future__ import annotations

import numpy as np

from stages.corpus_prep.measuring.characters import DIGIT, SPACE, TERMINAL, WORD
from stages.corpus_prep.measuring.columns import INDEX
from stages.corpus_prep.measuring.line_kernels import count_listed, ends_with_ellipsis, next_line, strip
from stages.runtime.compiled import njit

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
# Which phrases may begin with two characters, by the low five bits of each.
_PAIRS = np.zeros(1024, np.uint16)
for _number, _phrase in enumerate(PHRASES[:_FIRST_CITATION]):
    _PAIRS[(ord(_phrase[0]) & 31) << 5 | ord(_phrase[1]) & 31] |= 1 << _number
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
    return edited[:size]


@njit(cache=True)
def _count_words(characters, kinds, start, end):
    """(words between white space, characters of the longest, whether there is a bracket)."""
    words, longest, length, bracket = 0, 0, 0, False
    for place in range(start, end):
        bracket |= characters[place] == _OPEN
        length += 1
        if kinds[place] & SPACE:
            words += length > 1
            longest = max(longest, length - 1)
            length = 0
    return words + (length > 0), max(longest, length), bracket


@njit(cache=True)
def _judge_phrases(line):
    """LOREM, JAVASCRIPT, CURLY, POLICY or KEPT: the first in this order that the line holds."""
    found, brace, before = np.uint16(0), False, np.uint32(0)
    for place in range(len(line)):
        character = line[place]
        brace |= character == _BRACE
        candidates = _PAIRS[(before & 31) << 5 | character & 31]
        before = character
        if candidates:
            for phrase in range(_FIRST_CITATION):
                if candidates >> phrase & 1 and _stands_at(line, place - 1, len(line), phrase, False):
                    found |= 1 << phrase
    if found & 1 << _LOREM:
        return LOREM
    if found & 1 << _JAVASCRIPT:
        return JAVASCRIPT
    if brace:
        return CURLY
    return POLICY if found else KEPT


@njit(cache=True)
def _holds(values, character):
    for value in values:  # noqa: SIM110 - numba compiles no generator expression
        if character == value:
            return True
    return False


@njit(cache=True)
def edit_line(text, start, end, flags, edited):
    """(what becomes of the stripped line, whether it has terminal punctuation, the line without citations).

    The line is a view of the text, or of `edited` if something was cut.
    """
    characters, kinds = text
    words, longest, bracket = _count_words(characters, kinds, start, end)
    line = characters[start:end]
    if longest > MAX_WORD_CHARACTERS:
        return LONG_WORD, False, line
    if words < MIN_WORDS:
        return FEW_WORDS, False, line
    if bracket:
        line = _cut_citations(characters, start, end, flags, edited)
    size = len(line)
    punctuated = size > 0 and _holds(_LINE_END, line[size - 1])
    punctuated = punctuated and not ends_with_ellipsis(line, 0, size)
    return _judge_phrases(line), punctuated, line


@njit(cache=True)
def count_sentences(line, flags):
    """Sentences of a line: runs with a word that end at a sentence end or with the line.

    An ASCII . ? ! ends one before white space, a quote, a bracket or the end of the line; a full-width one
    always.
    """
    sentences, begun, size = 0, False, len(line)
    for place in range(size):
        character = line[place]
        flag = flags[character]
        if flag & WORD:
            begun = True
        elif flag & TERMINAL and begun:
            final = place + 1 == size or character >= 128
            if final or flags[line[place + 1]] & SPACE or _holds(_AFTER_SENTENCE, line[place + 1]):
                sentences, begun = sentences + 1, False
    return sentences + begun


@njit(cache=True)
def count_broken_lines(characters, kinds, number, flags, edited, row):
    """Listed lines; and the lines and sentences that C4 keeps, with and without its rule on terminal
    punctuation."""
    start, text = 0, (characters, kinds)
    while start < number:
        end, following = next_line(characters, kinds, start, number)
        first, last = strip(kinds, start, end)
        count_listed(characters, first, last, row)
        status, punctuated, line = edit_line(text, first, last, flags, edited)
        sentences = count_sentences(line, flags) if status == KEPT else 0
        for base in (_ANY, _PUNCTUATED):
            if base == _ANY or punctuated:
                row[base + _LINES] += status == KEPT
                row[base + _SENTENCES] += sentences
                row[base + _LOREM_LINES] += status == LOREM
                row[base + _CURLY_LINES] += status == CURLY
        start = following


@njit(cache=True)
def write_c4_lines(text, number, flags, punctuation, edited, out):
    """Write the kept lines to `out`, each followed by a line feed; (characters written, lines dropped)."""
    start, written, dropped = 0, 0, 0
    while start < number:
        end, following = next_line(text[0], text[1], start, number)
        first, last = strip(text[1], start, end)
        status, punctuated, line = edit_line(text, first, last, flags, edited)
        if status == KEPT and (punctuated or not punctuation):
            out[written : written + len(line)] = line
            written += len(line) + 1
            out[written - 1] = 10
        else:
            dropped += 1
        start = following
    return written, dropped

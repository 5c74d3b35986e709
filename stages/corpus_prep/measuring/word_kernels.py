"""Compiled loops over words: where they are, what they are like, which runs of them repeat.

A word is a pair of places in the array of code points, from the own splitter or from a caller's; everything
here is counted on such pairs, so both go through the same code.
"""

from __future__ import annotations

import numpy as np

from stages.corpus_prep.measuring.characters import DENSE, LETTER, MARK, PUNCTUATION, WORD
from stages.corpus_prep.measuring.columns import (
    CHINESE_STOP_WORDS,
    DUPLICATE_SIZES,
    GLUED_WORD_CHARACTERS,
    GOPHER_STOP_WORDS,
    INDEX,
    NGRAM_WORDS,
    TOP_SIZES,
)
from stages.corpus_prep.measuring.hash_kernels import PRIME, find_or_add, mix, new_generation
from stages.runtime.compiled import njit

WORDS, WORD_CHARACTERS = INDEX["words"], INDEX["word_characters"]
PLAIN_WORDS, PLAIN_CHARACTERS = INDEX["plain_words"], INDEX["plain_word_characters"]
LETTER_WORDS, GLUED = INDEX["letter_words"], INDEX["glued_word_characters"]
STOP_WORDS = INDEX["stop_words_en"]
REPEATED, NEXT_TO_TOP = INDEX["repeated_8_grams"], INDEX["top_2_gram_characters"] - TOP_SIZES[0]
NEXT_TO_DUPLICATE = INDEX["duplicate_5_gram_characters"] - DUPLICATE_SIZES[0]
FIRST_TOP, LAST_TOP, FIRST_DUPLICATE = TOP_SIZES[0], TOP_SIZES[-1], DUPLICATE_SIZES[0]
LAST_SIZE = DUPLICATE_SIZES[-1]
MAX_STOP_CHARACTERS = 4
NO_PLACE = np.uint64(0xFF)
_RUN_FACTOR = np.uint64(0xC2B2AE3D27D4EB4F)
_1 = np.uint64(1)


def stop_word_table():
    """uint64 [256, 2]: hash of a word, and its bit (English below 32) in a table probed from the hash's low
    bits."""
    table = np.zeros((256, 2), np.uint64)
    numbered = [*enumerate(GOPHER_STOP_WORDS), *enumerate(CHINESE_STOP_WORDS, start=32)]
    for bit, word in numbered:
        value = 0
        for character in word:
            value = (value * int(PRIME) + ord(character) + 1) % 2**64
        slot = int(mix(np.uint64(value))) % 256
        while table[slot, 0]:
            slot = (slot + 1) % 256
        table[slot] = value, bit
    return table


@njit(cache=True)
def split_words(kinds, number, starts, ends):
    """The own splitter: runs of letters, digits and combining marks; a Han or kana character by itself."""
    words, begun = 0, False
    for place in range(number):
        flag = kinds[place]
        if begun and (flag & DENSE or not flag & (WORD | MARK)):
            ends[words] = place
            words, begun = words + 1, False
        if flag & DENSE:
            starts[words], ends[words] = place, place + 1
            words += 1
        elif flag & WORD and not begun:
            starts[words] = place
            begun = True
    if begun:
        ends[words] = number
    return words + begun


@njit(cache=True)
def count_words(characters, kinds, words, num_words, stops, row):
    """What words are made of; fills in their hashes and PRIME ** length on the way."""
    seen = np.uint64(0)
    for word in range(num_words):
        start, end = words.starts[word], words.ends[word]
        value, power, every, anything = np.uint64(0), _1, np.uint32(PUNCTUATION), np.uint32(0)
        for place in range(start, end):
            value = value * PRIME + np.uint64(characters[place]) + _1
            power *= PRIME
            every &= kinds[place]
            anything |= kinds[place]
        plain, letter = every == 0, (anything & LETTER) != 0
        words.hashes[word], words.powers[word] = value, power
        size = end - start
        row[WORD_CHARACTERS] += size
        row[PLAIN_WORDS] += plain
        row[PLAIN_CHARACTERS] += size * plain
        row[LETTER_WORDS] += letter
        row[GLUED] += size * (size > GLUED_WORD_CHARACTERS)
        if size <= MAX_STOP_CHARACTERS:
            seen |= _stop_bit(value, stops)
    row[WORDS] = num_words
    for bit in range(64):
        row[STOP_WORDS + bit // 32] += (seen >> np.uint64(bit)) & _1 == _1


@njit(cache=True)
def _stop_bit(value, stops):
    slot = mix(value) & np.uint64(255)
    while stops[slot, 0]:
        if stops[slot, 0] == value:
            return _1 << stops[slot, 1]
        slot = (slot + _1) & np.uint64(255)
    return np.uint64(0)


@njit(cache=True)
def count_repetitions(words, num_words, glue, table, row):
    """Runs of 2 to 10 words that repeat.

    Runs are compared by their words. With `glue`, runs of five words and more are compared by the text of
    their words without anything between, as datatrove does ("ab c" is "a bc"); that matters only where a
    splitter cuts the same text in two ways.

    A run of n words can only repeat where its first n - 1 words do. So few places are left to look at after
    the 4-grams, and the long runs cost next to nothing in a text that does not repeat itself.
    """
    prefixes, lengths, places = words.prefixes, words.lengths, words.places
    prefixes[0], lengths[0] = 0, 0
    for word in range(num_words):
        prefixes[word + 1] = prefixes[word] * _RUN_FACTOR + words.hashes[word]
        lengths[word + 1] = lengths[word] + words.ends[word] - words.starts[word]
        places[word] = word
    left = num_words
    for size in range(2, min(LAST_SIZE, num_words) + 1):
        number = num_words - size + 1
        while left and places[left - 1] >= number:
            left -= 1
        if glue:
            _glue_next_word(words, number, size)
        if size <= LAST_TOP:
            row[NEXT_TO_TOP + size], left = _most_frequent(words, left, size, table)
        elif glue:
            row[NEXT_TO_DUPLICATE + size] = _glued_duplicates(words, number, size, table)
        else:
            row[NEXT_TO_DUPLICATE + size] = _duplicates(words, left, size, table)
        if size == NGRAM_WORDS:
            row[REPEATED] = _repeated(words, left, size, table)


@njit(cache=True)
def _factor(size):
    power = _1
    for _ in range(size):
        power *= _RUN_FACTOR
    return power


@njit(cache=True)
def _most_frequent(words, left, size, table):
    """(characters of all places of the most frequent run, of equals the first, blanks between words
    included; how many places are left in `words.places`: those whose run occurs twice)."""
    slots, generation = table
    mask = new_generation(slots, generation, left)
    best, most, factor, prefixes = 0, 1, _factor(size), words.prefixes
    for number in range(left):
        start = words.places[number]
        slot, seen = find_or_add(slots, generation, mask, prefixes[start + size] - prefixes[start] * factor)
        words.slots[number] = slot
        if not seen:
            words.counts[slot], words.firsts[slot] = 0, start
        words.counts[slot] += 1
        count, first = words.counts[slot], words.firsts[slot]
        if count > most or (count == most and first < best):
            best, most = first, count
    kept = 0
    for number in range(left):
        words.places[kept] = words.places[number]
        kept += words.counts[words.slots[number]] > 1
    return (words.lengths[best + size] - words.lengths[best] + size - 1) * most, kept


@njit(cache=True)
def _duplicates(words, left, size, table):
    """Characters of runs that stood before; after one the search goes on behind it."""
    slots, generation = table
    mask = new_generation(slots, generation, left)
    repeated, following, factor, prefixes = 0, 0, _factor(size), words.prefixes
    for number in range(left):
        start = words.places[number]
        if start >= following:
            value = prefixes[start + size] - prefixes[start] * factor
            if find_or_add(slots, generation, mask, value)[1]:
                repeated += words.lengths[start + size] - words.lengths[start]
                following = start + size
    return repeated


@njit(cache=True)
def _repeated(words, left, size, table):
    """Runs that stood before, overlapping ones too."""
    slots, generation = table
    mask = new_generation(slots, generation, left)
    repeated, factor, prefixes = 0, _factor(size), words.prefixes
    for number in range(left):
        start = words.places[number]
        repeated += find_or_add(slots, generation, mask, prefixes[start + size] - prefixes[start] * factor)[1]
    return repeated


@njit(cache=True)
def _glue_next_word(words, number, size):
    for start in range(number):
        before = words.hashes[start] if size == 2 else words.glued[start]
        added = start + size - 1
        words.glued[start] = before * words.powers[added] + words.hashes[added]


@njit(cache=True)
def _glued_duplicates(words, number, size, table):
    """As `_duplicates`, of the text of runs."""
    slots, generation = table
    mask = new_generation(slots, generation, number)
    repeated, start = 0, 0
    while start < number:
        seen = find_or_add(slots, generation, mask, words.glued[start])[1]
        repeated += (words.lengths[start + size] - words.lengths[start]) * seen
        start += size if seen else 1
    return repeated

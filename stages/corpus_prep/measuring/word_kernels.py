"""Compiled loops over words: where they are, what they are like, which runs of them repeat.

A word is a pair of places in the array of code points, from the own splitter or from a caller's; everything here
is counted on such pairs, so both go through the same code.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from stages.corpus_prep.measuring.characters import DENSE, LETTER, MARK, PUNCTUATION, WORD
from stages.corpus_prep.measuring.columns import (
    DUPLICATE_SIZES,
    GLUED_WORD_CHARACTERS,
    INDEX,
    NGRAM_WORDS,
    TOP_SIZES,
)
from stages.corpus_prep.measuring.hash_kernels import PRIME, find_or_add, mix, new_generation

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
GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
#: FineWeb2's for Mandarin in Han script (configs/cmn_Hani.yml at d0defb2).
CHINESE_STOP_WORDS = tuple("的年在月是和日了於·為有被人中为他與後也而由")


def stop_word_table():
    """uint64 [256, 2]: hash of a word, and its bit (English below 32) in a table probed from the hash's low bits."""
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
def split_words(characters, number, flags, starts, ends):
    """The own splitter: runs of letters, digits and combining marks; a Han or kana character by itself."""
    words, begun = 0, False
    for place in range(number):
        flag = flags[characters[place]]
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
def count_words(characters, flags, words, num_words, stops, row):
    """What words are made of; fills in their hashes and PRIME ** length on the way."""
    seen = np.uint64(0)
    for word in range(num_words):
        start, end = words.starts[word], words.ends[word]
        value, power, plain, letter = np.uint64(0), _1, False, False
        for place in range(start, end):
            character = characters[place]
            value = value * PRIME + np.uint64(character) + _1
            power *= PRIME
            plain |= (flags[character] & PUNCTUATION) == 0
            letter |= (flags[character] & LETTER) != 0
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
def count_repetitions(words, num_words, table, row):
    """Runs of 2 to 10 words that repeat.

    A run of n words is a run of n - 1 and one word more, so its hash takes one multiplication. `joined` tells runs
    apart by their words, `glued` by the text of the words without anything between (which is how datatrove
    compares runs of five words and more).
    """
    joined, glued, lengths = words.joined, words.glued, words.lengths
    for word in range(num_words):
        joined[word] = glued[word] = words.hashes[word]
        lengths[word] = words.ends[word] - words.starts[word]
    for size in range(2, LAST_SIZE + 1):
        for start in range(num_words - size + 1):
            added = start + size - 1
            glued[start] = glued[start] * words.powers[added] + words.hashes[added]
            lengths[start] += words.ends[added] - words.starts[added]
            if size <= NGRAM_WORDS:
                joined[start] = joined[start] * _RUN_FACTOR + words.hashes[added]
        if num_words < size:
            break
        if FIRST_TOP <= size <= LAST_TOP:
            row[NEXT_TO_TOP + size] = _most_frequent(joined, lengths, num_words, size, words, table)
        if size >= FIRST_DUPLICATE:
            row[NEXT_TO_DUPLICATE + size] = _duplicates(glued, lengths, num_words, size, table)
        if size == NGRAM_WORDS:
            row[REPEATED] = _repeated(joined, num_words - size + 1, table)


@njit(cache=True)
def _most_frequent(runs, lengths, num_words, size, words, table):
    """Characters, blanks between words included, of all places of the most frequent run; of equals the first."""
    slots, generation = table
    number = num_words - size + 1
    mask = new_generation(slots, generation, number)
    best, most = 0, 0
    for start in range(number):
        slot, seen = find_or_add(slots, generation, mask, runs[start])
        if not seen:
            words.counts[slot], words.firsts[slot] = 0, start
        words.counts[slot] += 1
        count, first = words.counts[slot], words.firsts[slot]
        if count > most or (count == most and first < best):
            best, most = first, count
    return (lengths[best] + size - 1) * most


@njit(cache=True)
def _duplicates(runs, lengths, num_words, size, table):
    """Characters of runs that stood before; after one the search goes on behind it."""
    slots, generation = table
    mask = new_generation(slots, generation, num_words - size + 1)
    repeated, start = 0, 0
    while start < num_words - size + 1:
        _, seen = find_or_add(slots, generation, mask, runs[start])
        if seen:
            repeated += lengths[start]
        start += size if seen else 1
    return repeated


@njit(cache=True)
def _repeated(runs, number, table):
    slots, generation = table
    mask = new_generation(slots, generation, number)
    repeated = 0
    for start in range(number):
        _, seen = find_or_add(slots, generation, mask, runs[start])
        repeated += seen
    return repeated

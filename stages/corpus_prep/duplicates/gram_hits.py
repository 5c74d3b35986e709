"""Which n-grams of an index stand in which texts: from hashes of words to hits.

Most texts have none, so nearly all of the time goes into reading words. The hash of the last n words is
rolled on with two multiplications per word, and looked for in a Bloom filter that is small enough for the
cache: 12 to 24 bits per n-gram, three of them set, all in one 64-bit word, so that a look costs one access
(Putze, Sanders and Singler 2007); about 2 % of strange n-grams pass. Only what passes is looked up in the
table of hashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.duplicates.words import Words, finished
from stages.runtime.compiled import njit

MIN_BITS_PER_GRAM = 12

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SIZE_SALT = np.uint64(0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True)
class GramTable:
    """Hashes of n-grams of `size` words, each once.

    grams: uint64 [grams], sorted. slots: int32 [2^k], a hash table of places in `grams`, -1 where empty.
    bloom: uint64 [2^j].
    """

    size: int
    grams: NDArray[np.uint64]
    slots: NDArray[np.int32]
    bloom: NDArray[np.uint64]

    @classmethod
    def of(cls, size: int, grams: NDArray[np.uint64]) -> GramTable:
        """From sorted distinct hashes."""
        num_slots = 1 << max(4, (len(grams) * 2).bit_length())
        num_bits = 1 << max(12, (len(grams) * MIN_BITS_PER_GRAM).bit_length())
        return cls(size, grams, *_fill(grams, num_slots, num_bits // 64))


@dataclass(frozen=True)
class GramHits:
    """Where n-grams of a table stand, in the order of the texts.

    text, first_word, gram: int64 [hits]; the word's number in its text, the place in `GramTable.grams`.
    """

    text: NDArray[np.int64]
    first_word: NDArray[np.int64]
    gram: NDArray[np.int64]


def gram_hashes(words: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """uint64 [words - size + 1] hashes of the n-grams of `size` words; empty if there are too few words."""
    return rolled_hashes(words, size)


def places_of(hashes: NDArray[np.uint64], table: GramTable) -> NDArray[np.int64]:
    """int64 [hashes]: the place of each in `table.grams`, -1 where it is not there."""
    return _places(hashes, table.grams, table.slots, table.bloom)


def find_grams(words: Words, table: GramTable) -> GramHits:
    """Every n-gram of the table in the texts."""
    room = 1024
    while True:
        hits = np.empty((room, 3), np.int64)
        count = _find(words.hashes, words.offsets, table.size, table.grams, table.slots, table.bloom, hits)
        if count <= room:
            return GramHits(hits[:count, 0], hits[:count, 1], hits[:count, 2])
        room = count


@njit(cache=True)
def _salted(state, size):
    return finished(state + np.uint64(size) * _SIZE_SALT)


@njit(cache=True)
def rolled_hashes(words, size):
    """`gram_hashes` for compiled loops."""
    found = np.empty(max(0, len(words) - size + 1), np.uint64)
    top, state = np.uint64(1), np.uint64(0)
    for _ in range(size):
        top *= _FACTOR
    for place in range(len(words)):
        state = state * _FACTOR + words[place]
        if place >= size:
            state -= words[place - size] * top
        if place >= size - 1:
            found[place - size + 1] = _salted(state, size)
    return found


@njit(cache=True)
def _places(hashes, grams, slots, bloom):
    found = np.empty(len(hashes), np.int64)
    for index in range(len(hashes)):
        found[index] = _place(hashes[index], grams, slots, bloom)
    return found


@njit(cache=True)
def _bits(gram):
    """The three bits of a hash in its word of the filter."""
    one = np.uint64(1)
    low, middle = gram >> np.uint64(40), gram >> np.uint64(46)
    last = gram >> np.uint64(52)
    mask = np.uint64(63)
    return (one << (low & mask)) | (one << (middle & mask)) | (one << (last & mask))


@njit(cache=True)
def _fill(grams, num_slots, num_filter_words):
    slots = np.full(num_slots, -1, np.int32)
    bloom = np.zeros(num_filter_words, np.uint64)
    for place in range(len(grams)):
        slot = grams[place] & np.uint64(num_slots - 1)
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & np.uint64(num_slots - 1)
        slots[slot] = place
        bloom[grams[place] & np.uint64(num_filter_words - 1)] |= _bits(grams[place])
    return slots, bloom


@njit(cache=True)
def _place(gram, grams, slots, bloom):
    """Place of a hash in `grams`, or -1."""
    bits = _bits(gram)
    if bloom[gram & np.uint64(len(bloom) - 1)] & bits != bits:
        return -1
    slot = gram & np.uint64(len(slots) - 1)
    while slots[slot] >= 0 and grams[slots[slot]] != gram:
        slot = (slot + np.uint64(1)) & np.uint64(len(slots) - 1)
    return slots[slot]


@njit(cache=True)
def _find(words, offsets, size, grams, slots, bloom, hits):
    """Fill `hits` [room, 3] with (text, first word, gram); returns how many there are, which may be more than
    fit."""
    count = 0
    for text in range(len(offsets) - 1):
        hashes = rolled_hashes(words[offsets[text] : offsets[text + 1]], size)
        for first in range(len(hashes)):
            found = _place(hashes[first], grams, slots, bloom)
            if found >= 0:
                if count < len(hits):
                    hits[count, 0], hits[count, 1], hits[count, 2] = text, first, found
                count += 1
    return count

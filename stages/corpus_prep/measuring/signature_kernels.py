"""Compiled loops for MinHash signatures (Broder 1997): words of simplified text, their 5-grams, 112 minima.

A shingle (5 words) is hashed to 32 well mixed bits x. The j-th permutation is a_j x + b_j modulo 2**32 with
an odd a_j, and the j-th hash is the least value over all shingles. The share of equal hashes in two
signatures estimates the Jaccard similarity of the two sets of shingles, with a standard error of sqrt(J (1
- J) / 112).
"""

from __future__ import annotations

import numpy as np

from stages.corpus_prep.measuring.characters import DECIMAL, DENSE, DIGIT, MARK, WORD
from stages.corpus_prep.measuring.hash_kernels import PRIME, mix
from stages.runtime.compiled import njit

NUM_HASHES = 112
SHINGLE_WORDS = 5
NO_WORDS = np.uint32(0xFFFFFFFF)
"""All hashes of a text without words."""
_FACTOR = np.uint64(0x9FB21C651E98DF25)
_ZERO, _1, _32 = np.uint64(48), np.uint64(1), np.uint64(32)


def permutations():
    """uint32 [2, 112]: odd factors, and addends; drawn by splitmix64 from 1, the same on every machine."""
    drawn, state = [], 1
    for _ in range(2 * NUM_HASHES):
        state = (state + int(PRIME)) % 2**64
        drawn.append(int(mix(np.uint64(state))) >> 32)
    table = np.array(drawn, np.uint32).reshape(2, NUM_HASHES)
    table[0] |= 1
    return table


@njit(cache=True)
def simplified_words(characters, kinds, number, simplified, keep_numbers, hashes):
    """Hashes of the words of the simplified text, in order; how many.

    Simplified as datatrove does before MinHash: lower case, no accents, each number one 0, the rest as
    spaces.
    """
    words, begun, in_number, in_fraction = 0, False, False, False
    value = np.uint64(0)
    for place in range(number):
        flag = kinds[place]
        if flag & DIGIT and not keep_numbers:
            if not in_number:
                value = value * PRIME + _ZERO + _1
            begun = in_number = True
            continue
        separator = in_number and flag & DECIMAL and not in_fraction and place + 1 < number
        if separator and kinds[place + 1] & DIGIT:
            in_fraction = True
            continue
        in_number = in_fraction = False
        if begun and (flag & DENSE or not flag & (WORD | MARK)):
            hashes[words] = mix(value)
            words, begun, value = words + 1, False, np.uint64(0)
        code = np.uint64(simplified[characters[place]])
        if flag & DENSE:
            hashes[words] = mix(code + _1)
            words += 1
        elif code and (flag & WORD or (begun and flag & MARK)):
            value = value * PRIME + code + _1
            begun = True
    if begun:
        hashes[words] = mix(value)
    return words + begun


@njit(cache=True)
def sign(hashes, num_words, permutation, signature):
    """Fill in the signature of a text with these words; a text of fewer than five words is one shingle."""
    signature[:] = NO_WORDS
    if num_words == 0:
        return
    size = min(num_words, SHINGLE_WORDS)
    factors, addends = permutation[0], permutation[1]
    for start in range(num_words - size + 1):
        value = np.uint64(0)
        for word in range(start, start + size):
            value = value * _FACTOR + hashes[word]
        shingle = np.uint32(mix(value) >> _32)
        for number in range(NUM_HASHES):
            permuted = np.uint32(factors[number] * shingle + addends[number])
            signature[number] = min(signature[number], permuted)

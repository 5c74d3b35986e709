"""Hashes and the hash table that the compiled loops share.

**The table.** One array of 64-bit slots serves every document and every n: a slot holds 44 bits of a hash
and the 20-bit number of the generation that wrote it. Starting anew is adding one to the generation; what
older ones left counts as empty, so nothing is ever cleared. Only as many slots are used as the document
needs (a power of two), so a short document's table stays in the processor's nearest memory. That is three
times as fast as one big table.

Two different hashes meet as one with a chance of 2**-44 per comparison.
"""

from __future__ import annotations

import numpy as np

from stages.runtime.compiled import njit

_GENERATION_BITS = np.uint64((1 << 20) - 1)
_LAST_GENERATION = (1 << 20) - 1
PRIME = np.uint64(0x9E3779B97F4A7C15)  # an odd number without pattern: 2**64 by the golden ratio
_MIX_FIRST, _MIX_SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_SQUARE, _CUBE, _FOURTH = (np.uint64(pow(int(PRIME), power, 2**64)) for power in (2, 3, 4))
_ONES = np.uint64(
    sum(pow(int(PRIME), power, 2**64) for power in range(4)) % 2**64
)  # 1 is added to each character
_33, _32, _1 = np.uint64(33), np.uint64(32), np.uint64(1)


@njit(cache=True)
def mix(value):
    """Every bit of the result depends on every bit of `value` (the finaliser of MurmurHash3, Appleby
    2011)."""
    value = (value ^ (value >> _33)) * _MIX_FIRST
    value = (value ^ (value >> _33)) * _MIX_SECOND
    return value ^ (value >> _33)


@njit(cache=True)
def hash_characters(characters, start, end):
    """Polynomial in PRIME; four characters at a time, because each step waits for the one before."""
    value = np.uint64(0)
    while start + 4 <= end:
        first = np.uint64(characters[start]) * _CUBE + np.uint64(characters[start + 1]) * _SQUARE
        second = np.uint64(characters[start + 2]) * PRIME + np.uint64(characters[start + 3])
        value = value * _FOURTH + (first + second + _ONES)
        start += 4
    for place in range(start, end):
        value = value * PRIME + np.uint64(characters[place]) + _1
    return value


@njit(cache=True)
def new_generation(slots, generation, num_keys):
    """Empty the table; the mask of its size for so many keys. At most half of the slots get full."""
    generation[0] += 1
    if generation[0] == _LAST_GENERATION:
        slots[:] = 0
        generation[0] = 1
    size = 16
    while size < 2 * num_keys:
        size *= 2
    return np.uint64(size - 1)


@njit(cache=True)
def find_or_add(slots, generation, mask, value):
    """(slot of the hash, whether it was there)."""
    mixed = value * _MIX_FIRST
    mixed ^= mixed >> _32
    tag = (mixed & ~_GENERATION_BITS) | np.uint64(generation[0])
    slot = mixed & mask
    while True:
        found = slots[slot]
        if found == tag:
            return slot, True
        if (found ^ tag) & _GENERATION_BITS:
            slots[slot] = tag
            return slot, False
        slot = (slot + _1) & mask

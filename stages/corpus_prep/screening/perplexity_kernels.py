"""A hash table of n-gram counts, and the probability of a text by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.screening.repair_kernels import decode
from stages.runtime.compiled import njit

FIXED_POINT = 1 << 16
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def extend(history: np.uint64, point: int) -> np.uint64:
    """Hash of an n-gram: that of what comes before its last character, and the character."""
    value = (history + np.uint64(point) + np.uint64(1)) * _PRIME
    value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return value ^ (value >> np.uint64(32))


@njit(cache=True)
def ngram_hashes(points: NDArray[np.int64], order: int) -> NDArray[np.uint64]:
    """hashes [order + 1, N]: row n has the n-gram that ends at each place; row 0 is 0."""
    hashes = np.zeros((order + 1, len(points)), np.uint64)
    for size in range(1, order + 1):
        for place in range(len(points)):
            before = hashes[size - 1, place - 1] if place > 0 else np.uint64(0)
            hashes[size, place] = extend(before, points[place])
    return hashes


@njit(cache=True)
def fill_table(keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
    """Put keys into `slots` [a power of two], open addressing; a slot holds the index of its key or -1."""
    mask = len(slots) - 1
    for index in range(len(keys)):
        slot = np.int64(keys[index] & np.uint64(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = index


@njit(cache=True)
def look_up(key: np.uint64, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> int:
    """The index of a key, or -1."""
    mask = len(slots) - 1
    slot = np.int64(key & np.uint64(mask))
    while slots[slot] >= 0:
        if keys[slots[slot]] == key:
            return slots[slot]
        slot = (slot + 1) & mask
    return -1


@njit(cache=True)
def probability(
    history: NDArray[np.uint64],
    point: int,
    grams: tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]],
    contexts: tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    discounts: NDArray[np.float64],
    uniform: float,
) -> float:
    """Interpolated Kneser-Ney of one character; history[n]: hash of the last n characters before it."""
    keys, slots, counts = grams
    context_keys, context_slots, totals, followers = contexts
    chance = uniform
    for size in range(1, len(discounts)):
        salt = np.uint64(size)  # the same characters under two orders are two entries
        context = look_up(history[size - 1] ^ salt, context_keys, context_slots)
        if context < 0:
            return chance
        gram = look_up(extend(history[size - 1], point) ^ salt, keys, slots)
        count = counts[gram] if gram >= 0 else 0
        discounted = max(count - discounts[size], 0.0) / totals[context]
        chance = discounted + discounts[size] * followers[context] / totals[context] * chance
    return chance


@njit(cache=True)
def bits_of_windows(
    data: NDArray[np.uint8],
    spans: NDArray[np.int64],
    grams: tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]],
    contexts: tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    discounts: NDArray[np.float64],
    uniform: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(bits [N] in steps of 1/FIXED_POINT, characters [N]) of the windows [N, 3, 2] of each text."""
    bits = np.zeros(len(spans), np.int64)
    characters = np.zeros(len(spans), np.int64)
    history = np.zeros(len(discounts), np.uint64)
    for text in range(len(spans)):
        for window in range(3):
            at, end = spans[text, window, 0], spans[text, window, 1]
            history[:] = 0
            known = 0
            while at < end:
                point, size = np.int64(data[at]), 1
                if point >= 0x80:
                    point, size = decode(data, at, end)
                chance = probability(history, point, grams, contexts, discounts[: known + 2], uniform)
                bits[text] += np.int64(np.round(-np.log2(chance) * FIXED_POINT))
                characters[text] += 1
                for length in range(len(history) - 1, 0, -1):
                    history[length] = extend(history[length - 1], point)
                known = min(known + 1, len(history) - 2)
                at += size
    return bits, characters

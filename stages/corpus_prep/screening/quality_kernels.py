"""Hashed words and pairs of words: what the quality classifier learns and reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.corpus_prep.screening.repair_kernels import decode
from stages.runtime.compiled import njit

Bytes, Ints, Floats = NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]
Weights = NDArray[np.int32]

LETTER, IDEOGRAPH, BREAK = 1, 2, 0
TABLE_SIZE = 0x32000
SIGMOID_STEPS, SIGMOID_LIMIT = 4096, 16.0
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def _mix(value: np.uint64) -> np.uint64:
    """The finaliser of splitmix64: every bit of the input changes half of the output."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def hash_features(data: Bytes, start: int, end: int, kinds: Bytes, mask: int, out: Ints) -> int:
    """Write the features of one text into `out`, and return how many; it stops where `out` is full.

    A word is a run of letters and digits in small letters (ASCII) or one ideograph; each gives itself and its
    pair with the word before. mask: number of features - 1, a power of two less one.
    """
    count, at = 0, start
    word, before = np.uint64(0), np.uint64(0)
    while at <= end:
        point, size = np.int64(32), 1
        if at < end:
            point = np.int64(data[at])
            if point >= 0x80:
                point, size = decode(data, at, end)
            elif 65 <= point <= 90:
                point += 32
        kind = kinds[point] if point < len(kinds) else np.uint8(BREAK)
        if kind != LETTER and word != 0:
            count, before = _give(word, before, mask, out, count)
            word = np.uint64(0)
        if kind == LETTER:
            word = (word + np.uint64(point) + np.uint64(1)) * _PRIME
        elif kind == IDEOGRAPH:
            count, before = _give((np.uint64(point) + np.uint64(1)) * _PRIME, before, mask, out, count)
        at += size
    return count


@njit(cache=True)
def _give(word: np.uint64, before: np.uint64, mask: int, out: Ints, count: int) -> tuple[int, np.uint64]:
    if count + 2 <= len(out):
        out[count] = np.int64(_mix(word) & np.uint64(mask))
        out[count + 1] = np.int64(_mix(before * np.uint64(31) + word + np.uint64(7)) & np.uint64(mask))
        count += 2
    return count, word


@njit(cache=True)
def train_epoch(
    features: Ints, ends: Ints, labels: Floats, order: Ints, rates: Floats, sigmoid: Floats, weights: Floats
) -> None:
    """One pass of stochastic gradient descent on the logistic loss; changes `weights` [features + 1].

    A text is the sum of its features over the root of their number. Only + - * / and the square root are
    used, which IEEE 754 rounds the same everywhere, and a table in place of exp: the weights are the same on
    every machine. rates [texts]: learning rate times the weight of the text's class.
    """
    bias = len(weights) - 1
    for text in order:
        start, end = ends[text], ends[text + 1]
        if end == start:
            continue
        scale = 1.0 / np.sqrt(np.float64(end - start))
        score = weights[bias]
        for place in range(start, end):
            score += weights[features[place]] * scale
        place = np.int64((score + SIGMOID_LIMIT) * (SIGMOID_STEPS / (2 * SIGMOID_LIMIT)))
        chance = sigmoid[min(max(place, 0), SIGMOID_STEPS)]
        step = rates[text] * (labels[text] - chance)
        weights[bias] += step
        for place in range(start, end):
            weights[features[place]] += step * scale


@njit(cache=True)
def sum_weights(data: Bytes, offsets: Ints, kinds: Bytes, weights: Weights, room: int) -> tuple[Ints, Ints]:
    """(sums [N] of the fixed-point weights of each text's features, how many features [N])."""
    sums = np.zeros(len(offsets) - 1, np.int64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    features = np.zeros(room, np.int64)
    for text in range(len(sums)):
        count = hash_features(data, offsets[text], offsets[text + 1], kinds, len(weights) - 2, features)
        counts[text] = count
        for place in range(count):
            sums[text] += weights[features[place]]
    return sums, counts

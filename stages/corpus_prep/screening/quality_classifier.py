"""How much a text is like good text and unlike bad text, both of which the user gives: a linear classifier.

Hashed words and pairs of words with logistic regression, which is what fastText's supervised mode comes to
with one layer (Joulin et al. 2016, arXiv 1607.01759) and what DCLM chooses its text by (arXiv 2406.11794).
The score is a measure like any other: kept with the document, and judged by a threshold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.screening.quality_kernels import (
    BREAK,
    IDEOGRAPH,
    LETTER,
    SIGMOID_LIMIT,
    SIGMOID_STEPS,
    TABLE_SIZE,
    hash_features,
    sum_weights,
    train_epoch,
)
from stages.corpus_prep.screening.text_buffers import text_buffers
from stages.runtime.errors import UserError

NUM_FEATURES = 1 << 18
FEATURES_PER_TEXT = 4096
"""A text is judged by about its first 2,000 words."""
MAX_FEATURES_PER_CLASS = 20_000_000
"""Good and bad text that is learned from, each: 160 MB of feature numbers."""
EPOCHS, LEARNING_RATE, SEED = 5, 0.5, 0
MIN_TEXTS = 8
FIXED_POINT = 1 << 16
_DIGITS = 4


@dataclass(frozen=True)
class QualityClassifier:
    """Weights [NUM_FEATURES + 1] in steps of 1/FIXED_POINT, the last one the bias."""

    weights: NDArray[np.int32]

    def score(self, texts: pa.LargeStringArray) -> pa.FloatArray:
        """Probability [N] that a text is of the good kind; 0.5 for texts without words and an even bias."""
        data, offsets = text_buffers(texts)
        sums, counts = sum_weights(data, offsets, word_kinds(), self.weights, FEATURES_PER_TEXT)
        scaled = sums / np.sqrt(np.maximum(counts, 1)) + self.weights[-1]
        chance = 1.0 / (1.0 + np.exp(-np.clip(scaled / FIXED_POINT, -30, 30)))
        return pa.array(np.round(chance, _DIGITS).astype(np.float32))


@cache
def word_kinds() -> NDArray[np.uint8]:
    """Code point -> LETTER (of a word that white space ends), IDEOGRAPH (a word of its own) or BREAK."""
    kinds = np.full(TABLE_SIZE, BREAK, np.uint8)
    for point in range(TABLE_SIZE):
        if chr(point).isalnum():
            kinds[point] = LETTER
    for first, last in ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x31FFF)):
        kinds[first : last + 1] = IDEOGRAPH
    return kinds


def train_classifier(
    good: Iterable[pa.LargeStringArray], bad: Iterable[pa.LargeStringArray], epochs: int = EPOCHS
) -> QualityClassifier:
    """Learn from batches of good and bad text; of more than MAX_FEATURES_PER_CLASS the rest is not read.

    Both kinds count the same, however much there is of each. Raises UserError with too few texts.
    """
    kinds = [_features(batches) for batches in (good, bad)]
    numbers = [len(ends) - 1 for _, ends in kinds]
    if min(numbers) < MIN_TEXTS:
        raise UserError(
            f"a quality classifier needs {MIN_TEXTS} good and {MIN_TEXTS} bad texts;"
            f" there are {numbers[0]} and {numbers[1]}",
            hint="add to corpus_prep.good_text and corpus_prep.bad_text, or leave both empty",
        )
    features = np.concatenate([found for found, _ in kinds])
    ends = np.concatenate([kinds[0][1], kinds[1][1][1:] + kinds[0][1][-1]])
    labels = np.repeat([1.0, 0.0], numbers)
    balance = np.repeat([sum(numbers) / (2.0 * number) for number in numbers], numbers)
    weights, random = np.zeros(NUM_FEATURES + 1), np.random.default_rng(SEED)
    for epoch in range(epochs):
        rates = balance * (LEARNING_RATE * (1.0 - epoch / epochs))
        train_epoch(features, ends, labels, random.permutation(len(labels)), rates, _sigmoid(), weights)
    return QualityClassifier(np.round(weights * FIXED_POINT).astype(np.int32))


@cache
def _sigmoid() -> NDArray[np.float64]:
    """Of -SIGMOID_LIMIT to SIGMOID_LIMIT; rounded, so that no library's exp is told from another's."""
    steps = np.linspace(-SIGMOID_LIMIT, SIGMOID_LIMIT, SIGMOID_STEPS + 1)
    return np.round(1.0 / (1.0 + np.exp(-steps)), 9)


def _features(batches: Iterable[pa.LargeStringArray]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(features of all texts one after the other, ends [texts + 1])."""
    out = np.zeros(FEATURES_PER_TEXT, np.int64)
    found: list[NDArray[np.int64]] = []
    ends = [0]
    for texts in batches:
        data, offsets = text_buffers(texts)
        for start, end in pairwise(offsets):
            count = hash_features(data, start, end, word_kinds(), NUM_FEATURES - 1, out)
            found.append(out[:count].copy())
            ends.append(ends[-1] + count)
            if ends[-1] > MAX_FEATURES_PER_CLASS:
                return np.concatenate(found), np.array(ends)
    return np.concatenate(found or [out[:0]]), np.array(ends)

"""How surprising a text is to somebody who has read the user's own good text: a character n-gram model.

Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999), one discount an order, over characters:
it needs no words and serves Chinese and English alike. CCNet (arXiv 1911.00359) chooses
web text by the perplexity of such a model. Low is usual, high is odd; the threshold is the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.corpus_prep.screening.perplexity_kernels import (
    FIXED_POINT,
    bits_of_windows,
    fill_table,
    ngram_hashes,
)
from stages.corpus_prep.screening.script_kernels import window_spans
from stages.corpus_prep.screening.text_buffers import text_buffers
from stages.runtime.errors import UserError

ORDER = 5
WINDOW_BYTES = 500
"""Read at the beginning, the middle and the end of each text: the look-ups wait for memory."""
MAX_TRAINING_CHARACTERS = 1_000_000
"""Keeps the tables of Chinese verse, where little repeats, below 200 MB; later text is not read."""
MIN_TRAINING_CHARACTERS = 10_000
BOUNDARY = 0
"""Stands between texts: no n-gram reaches over it."""
_DIGITS = 2

Uints, Ints = NDArray[np.uint64], NDArray[np.int64]


@dataclass(frozen=True)
class CharacterModel:
    """Counts in hash tables. grams: keys, slots, counts; contexts: keys, slots, totals, followers."""

    grams: tuple[Uints, Ints, Ints]
    contexts: tuple[Uints, Ints, Ints, Ints]
    discounts: NDArray[np.float64]
    uniform: float

    def perplexity(self, texts: pa.LargeStringArray) -> pa.FloatArray:
        """Per character [N], over three windows; null for empty texts."""
        data, offsets = text_buffers(texts)
        parts = (self.grams, self.contexts, self.discounts, self.uniform)
        spans = window_spans(data, offsets, WINDOW_BYTES)
        bits, characters = bits_of_windows(data, spans, *parts)
        per_character = bits / np.maximum(characters, 1) / FIXED_POINT
        return pa.array(np.round(np.exp2(per_character), _DIGITS).astype(np.float32), mask=characters == 0)


def train_character_model(batches: Iterable[pa.LargeStringArray], order: int = ORDER) -> CharacterModel:
    """Count the n-grams of good text, the first MAX_TRAINING_CHARACTERS. Raises UserError."""
    points = _points(batches)
    num_characters = int((points != BOUNDARY).sum())
    if num_characters < MIN_TRAINING_CHARACTERS:
        raise UserError(
            f"a perplexity needs {MIN_TRAINING_CHARACTERS:,} characters of good text;"
            f" there are {num_characters:,}",
            hint="add to corpus_prep.good_text",
        )
    return count_ngrams(points, order)


def count_ngrams(points: Ints, order: int) -> CharacterModel:
    """The model of some code points with BOUNDARY between texts."""
    hashes = ngram_hashes(points, order)
    reach = _places_since_boundary(points)
    gram_keys, gram_counts, context_keys, totals, followers = [], [], [], [], []
    discounts = np.zeros(order + 1)
    for size in range(1, order + 1):
        grams, contexts, counts = _counted(hashes, reach, size, order)
        ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
        discounts[size] = ones / (ones + 2 * twos) if ones else 0.5
        unique, inverse = np.unique(contexts, return_inverse=True)
        salt = np.uint64(size)
        gram_keys.append(grams ^ salt)
        gram_counts.append(counts)
        context_keys.append(unique ^ salt)
        totals.append(np.bincount(inverse, counts, len(unique)).astype(np.int64))
        followers.append(np.bincount(inverse, minlength=len(unique)).astype(np.int64))
    keys, of_contexts = np.concatenate(gram_keys), np.concatenate(context_keys)
    uniform = 1.0 / (len(np.unique(points[points != BOUNDARY])) + 1)  # one for all that was never seen
    return CharacterModel(
        (keys, _slots(keys), np.concatenate(gram_counts)),
        (of_contexts, _slots(of_contexts), np.concatenate(totals), np.concatenate(followers)),
        discounts,
        uniform,
    )


def _counted(hashes: Uints, reach: Ints, size: int, order: int) -> tuple[Uints, Uints, Ints]:
    """(n-grams, their contexts, counts) of one order.

    Below the highest order an n-gram counts once for each character that comes before it (Kneser-Ney).
    """
    where = np.flatnonzero(reach >= size)
    if size < order:
        longer = np.flatnonzero(reach >= size + 1)
        _, kept = np.unique(hashes[size + 1, longer], return_index=True)
        at_start = np.flatnonzero(reach == size)  # nothing comes before them: each text counts once
        where = np.concatenate([longer[kept], at_start])
    grams, first, counts = np.unique(hashes[size, where], return_index=True, return_counts=True)
    places = where[first]
    contexts = hashes[size - 1, places - 1] if size > 1 else np.zeros(len(places), np.uint64)
    return grams, contexts, counts.astype(np.int64)


def _places_since_boundary(points: Ints) -> Ints:
    """How long the longest n-gram is that ends at each place; 0 at a boundary."""
    places = np.arange(len(points))
    last = np.maximum.accumulate(np.where(points == BOUNDARY, places, -1))
    return places - last


def _points(batches: Iterable[pa.LargeStringArray]) -> Ints:
    """Code points of the texts with a BOUNDARY before each."""
    pieces, total = [np.zeros(1, np.int64)], 0
    for texts in batches:
        for text in texts.to_pylist():
            taken = (text or "").replace("\x00", "")[: MAX_TRAINING_CHARACTERS - total]
            pieces += [np.frombuffer(taken.encode("utf-32-le"), np.uint32).astype(np.int64), pieces[0]]
            total += len(taken)
            if total >= MAX_TRAINING_CHARACTERS:
                return np.concatenate(pieces)
    return np.concatenate(pieces)


def _slots(keys: Uints) -> Ints:
    slots = np.full(1 << (2 * len(keys)).bit_length(), -1, np.int64)
    fill_table(keys, slots)
    return slots

"""Bands of MinHash signatures: documents that agree in all rows of a band are candidates (Broder 1997; LSH as
in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3).

Many short bands find nearly every pair that is similar enough, and many that are not: that is why every pair
is verified afterwards. FineWeb's 14 bands of 8 rows without verification miss a quarter of the pairs at 0.75.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from stages.runtime.compiled import njit

NUM_HASHES = 112
NO_WORDS = np.uint32(0xFFFFFFFF)
"""Every MinHash of a document that has no words."""

SHOWN_SIMILARITIES = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

_BAND_FACTOR, _ROW_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """1 - (1 - s^rows)^bands: how likely two documents of that Jaccard similarity share a band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def s_curve(
    bands: int, rows: int, threshold: float, similarities: tuple[float, ...] = SHOWN_SIMILARITIES
) -> list[tuple[float, float, float]]:
    """(similarity, P(candidate), P(merged)) for the chosen bands, for a table or a chart.

    A candidate is merged if the similarity that is estimated from its bands * rows hashes reaches the
    threshold; the estimate is binomial, and taken as independent of the band that was shared. Without exact
    verification, which only makes the second curve steeper.
    """
    count = bands * rows
    least = int(np.ceil(threshold * count - 1e-9))
    curve = []
    for s in similarities:
        reached = sum(comb(count, k) * s**k * (1 - s) ** (count - k) for k in range(least, count + 1))
        candidate = candidate_probability(s, bands, rows)
        curve.append((s, candidate, candidate * min(1.0, reached)))
    return curve


def band_hashes(signatures: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """uint64 [documents, bands] of signatures uint32 [documents, >= bands * rows].

    The band's number is part of its hash, so that equal rows in different bands stay strangers.

    Raises:
        ValueError: the signatures are shorter than bands * rows.
    """
    if bands * rows > signatures.shape[1]:
        raise ValueError(
            f"{bands} bands of {rows} rows need {bands * rows} hashes, there are {signatures.shape[1]}"
        )
    return _band_hashes(np.ascontiguousarray(signatures), bands, rows)


@njit(cache=True)
def _band_hashes(signatures, bands, rows):
    found = np.empty((len(signatures), bands), np.uint64)
    for document in range(len(signatures)):
        for band in range(bands):
            state = np.uint64(band + 1) * _BAND_FACTOR
            for row in range(band * rows, (band + 1) * rows):
                state = (state ^ np.uint64(signatures[document, row])) * _ROW_FACTOR
                state ^= state >> np.uint64(29)
            state *= _BAND_FACTOR
            found[document, band] = state ^ (state >> np.uint64(32))
    return found


@njit(cache=True)
def equal_hashes(left, right):
    """uint8 [pairs]: how many hashes of left [pairs, hashes] and right agree."""
    counts = np.empty(len(left), np.uint8)
    for pair in range(len(left)):
        total = 0
        for column in range(left.shape[1]):
            total += left[pair, column] == right[pair, column]
        counts[pair] = total
    return counts

"""How sure a figure is: confidence intervals, and whether two models can be told apart on the same items.

Everything is seeded and closed-form or vectorised, so the same scores give the same intervals, byte for byte.

Shapes: I items (documents or questions), R resamples.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
_DRAWS_PER_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return self.low <= value <= self.high


class PairedResult(NamedTuple):
    """One model's accuracy minus another's on the same questions.

    p_value: of McNemar's exact test; below 0.05 the difference is hardly luck.
    """

    difference: float
    interval: Interval
    p_value: float


def share_with_interval(share: float, interval: Interval, number: int) -> str:
    """`0.815 (0.744 to 0.870, n = 146)`."""
    return f"{share:.3f} ({interval.low:.3f} to {interval.high:.3f}, n = {number})"


def wilson_interval(num_right: int, num_items: int, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a fraction (Wilson 1927, JASA 22:209).

    Unlike the textbook's p +- z s it stays within 0 and 1 and is honest at 0 and at 1.

    Raises:
        ValueError: no items, or more right ones than items.
    """
    if num_items < 1 or not 0 <= num_right <= num_items:
        raise ValueError(f"{num_right} right of {num_items} items; expected 0 <= right <= items, items >= 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction, shrink = num_right / num_items, 1 + z * z / num_items
    centre = (fraction + z * z / (2 * num_items)) / shrink
    spread = fraction * (1 - fraction) / num_items + z * z / (4 * num_items**2)
    half = z / shrink * math.sqrt(spread)
    # At the ends the formula gives exactly 0 or 1, its rounding may not.
    low = 0.0 if num_right == 0 else centre - half
    return Interval(low, 1.0 if num_right == num_items else centre + half)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of sum(numerators) / sum(denominators) when items are drawn anew (Efron 1979).

    Bits per byte is such a ratio: bits over bytes of documents. For two models on the same documents, pass
    the differences as numerators: the bootstrap is then paired.

    Raises:
        ValueError: nothing to draw from, lengths that differ, or denominators that are not positive.
    """
    over_I = np.asarray(numerators, dtype=np.float64)
    under_I = np.asarray(denominators, dtype=np.float64)
    if over_I.ndim != 1 or over_I.shape != under_I.shape or not len(over_I):
        raise ValueError(
            f"{over_I.shape} numerators, {under_I.shape} denominators; expected one each per item"
        )
    if (under_I <= 0).any():
        raise ValueError(f"a denominator is {under_I.min()}; expected all above 0")
    ratios_R = _resampled_ratios(over_I, under_I, seed, num_resamples)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(ratios_R, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _resampled_ratios(
    over_I: NDArray[np.float64], under_I: NDArray[np.float64], seed: int, num_resamples: int
) -> NDArray[np.float64]:
    """In chunks, so that many resamples of many items stay within a few dozen megabytes."""
    generator = np.random.default_rng(seed)
    num_items = len(over_I)
    chunk = max(1, _DRAWS_PER_CHUNK // num_items)
    ratios = []
    for start in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - start)
        drawn_RxI = generator.integers(num_items, size=(size, num_items))
        ratios.append(over_I[drawn_RxI].sum(axis=1) / under_I[drawn_RxI].sum(axis=1))
    return np.concatenate(ratios)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value that two models are equally good, from the items that only one of them got right.

    McNemar 1947, Psychometrika 12:153, with the exact binomial tail: items that both got right or both got
    wrong say nothing about which is better.

    Raises:
        ValueError: a negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"{only_first} and {only_second} items; expected counts of 0 or more")
    num_discordant, fewer = only_first + only_second, min(only_first, only_second)
    if num_discordant == 0:
        return 1.0
    # Integers until the last division: the terms outgrow a float at about a thousand discordant items.
    tail = sum(math.comb(num_discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**num_discordant)


def compare_paired(first_right: ArrayLike, second_right: ArrayLike, *, seed: int = 0) -> PairedResult:
    """Accuracy of the first model minus that of the second, item by item.

    Args:
        first_right, second_right: per item whether the model was right, in the same order.

    Raises:
        ValueError: no items, or lengths that differ.
    """
    first_I, second_I = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if first_I.shape != second_I.shape or not len(first_I):
        raise ValueError(f"{first_I.shape} and {second_I.shape} answers; expected the same items, 1 or more")
    gains_I = first_I.astype(np.float64) - second_I
    interval = bootstrap_ratio(gains_I, np.ones(len(gains_I)), seed=seed)
    p_value = mcnemar_exact(int((gains_I > 0).sum()), int((gains_I < 0).sum()))
    return PairedResult(float(gains_I.mean()), interval, p_value)

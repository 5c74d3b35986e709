"""How well a ranking did, and how sure we are of it.

There is one right document per question, so its rank says it all. Rank 1 is the best; documents are ranked by
their best chunk.

Shapes: Q questions, N chunks, M documents.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


def document_ranks(
    scores_QxN: np.ndarray, document_starts_M: np.ndarray, targets_Q: np.ndarray
) -> np.ndarray:
    """Rank of each question's document: ranks_Q, from 1.

    The chunks of a document stand side by side; `document_starts_M` says where each document begins,
    `targets_Q` which of them is the right one. Ties count against us: a ranking that knows nothing puts the
    right one last.
    """
    best_QxM = np.maximum.reduceat(scores_QxN, document_starts_M, axis=1)
    target_Qx1 = np.take_along_axis(best_QxM, targets_Q[:, None], axis=1)
    return (best_QxM >= target_Qx1).sum(axis=1)


def ndcg_at(ranks_Q: np.ndarray, k: int = 10) -> np.ndarray:
    """nDCG@k per question (Jarvelin and Kekalainen 2002): 1 / log2(1 + rank), and 0 beyond rank k."""
    return np.where(ranks_Q <= k, 1 / np.log2(1 + ranks_Q), 0.0)


def recall_at(ranks_Q: np.ndarray, k: int = 10) -> np.ndarray:
    """1.0 per question whose document is among the first k, else 0.0."""
    return (ranks_Q <= k).astype(np.float64)


class Estimate(NamedTuple):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    num_questions: int


def mean_of_shares(values_Q: np.ndarray) -> Estimate:
    """Mean of values between 0 and 1 with Wilson's interval (1927).

    Among all values in 0..1 with a given mean, zeros and ones spread widest; so the interval of a proportion
    holds for nDCG, too, a little wider than need be. It stays honest for a handful of questions, where a
    bootstrap of three equal values would claim certainty. No questions: the mean is nan, the interval 0..1.
    """
    n = len(values_Q)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    if values_Q.min() < 0 or values_Q.max() > 1:
        raise ValueError(f"values from {values_Q.min()} to {values_Q.max()}; expected 0 to 1")
    z, mean = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), float(values_Q.mean())
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half), n)


class Gain(NamedTuple):
    """How much one ranking is better than another on the same questions, with a 95 % confidence interval."""

    mean: float
    low: float
    high: float
    standard_error: float


def paired_gain(new_Q: np.ndarray, old_Q: np.ndarray) -> Gain:
    """Mean of `new - old` question by question, with a normal interval.

    One full win and one full loss are added to the spread (in the manner of Agresti and Min 2005): two
    questions that happen to agree are no proof. No questions: no gain, and an interval of -1..1.
    """
    gains_Q = np.asarray(new_Q, dtype=np.float64) - old_Q
    n = len(gains_Q)
    if n == 0:
        return Gain(0.0, -1.0, 1.0, 1.0)
    mean = float(gains_Q.mean())
    variance = float(((gains_Q - mean) ** 2).sum() + 2) / (n + 2)
    error = math.sqrt(variance / n)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return Gain(mean, max(-1.0, mean - half), min(1.0, mean + half), error)

"""Join two rankings of the same chunks: a weighted sum of scores, each stretched to 0..1 for its query.

A convex combination of min-max normalised scores beats reciprocal rank fusion as soon as a few questions
are there to choose the weight with (Bruch et al. 2022, arXiv:2210.11934). Unweighted rank fusion is not
just weaker: with one bad leg it took a ranking from nDCG@10 .981 to .547. A weight that may be 0 or 1 can
always leave the bad leg out.

Shapes: Q questions, N chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from stages.whitebox.retrieval_metrics import Gain, paired_gain

BM25_ALONE, DENSE_ALONE = 0.0, 1.0
WEIGHTS = tuple(step / 20 for step in range(21))
"""Candidate weights of the dense leg; both legs alone are among them."""
SURE = NormalDist().inv_cdf(0.95)
"""Standard errors that a gain must exceed to be no luck: 1.645."""


def min_max(scores_QxN: np.ndarray) -> np.ndarray:
    """Stretch each row to 0..1; a row without differences, which ranks nothing, becomes 0."""
    low = scores_QxN.min(axis=-1, keepdims=True)
    span = scores_QxN.max(axis=-1, keepdims=True) - low
    return (scores_QxN - low) / np.where(span > 0, span, np.float32(1))


def fuse(dense_QxN: np.ndarray, bm25_QxN: np.ndarray, dense_weight: float) -> np.ndarray:
    """dense_weight * dense + (1 - dense_weight) * bm25, both normalised; also for single rows [N]."""
    return dense_weight * min_max(dense_QxN) + (1 - dense_weight) * min_max(bm25_QxN)


@dataclass(frozen=True)
class FusionChoice:
    """The weight that ships, and why."""

    dense_weight: float
    best_leg_weight: float
    """0 or 1: the better leg alone, on the same questions."""
    best_mix_weight: float
    """What would ship without the margin."""
    gain: Gain
    """nDCG of the best mix minus nDCG of the better leg, question by question."""

    @property
    def reason(self) -> str:
        """One sentence for the log and the report."""
        leg = "the vectors" if self.best_leg_weight == DENSE_ALONE else "BM25"
        measured = f"{self.gain.mean:+.3f} nDCG@10 on dev (standard error {self.gain.standard_error:.3f})"
        if self.dense_weight == self.best_leg_weight:
            return f"no mix is clearly better than {leg} alone: the best one gained {measured}"
        return f"the mix gained {measured} over {leg} alone"


def choose_weight(ndcg_of_weight: Mapping[float, np.ndarray]) -> FusionChoice:
    """Choose the dense weight from each candidate's nDCG per dev question; 0 and 1 must be among them.

    The best mix ships if its gain over the better leg is sure (95 %, one-sided, question by question);
    otherwise the simpler thing ships, that leg alone. So on dev the shipped ranking is never below its best
    leg, and the luck of having tried 21 weights on a handful of questions does not ship. On a tie BM25 wins
    over the vectors.

    Raises:
        ValueError: a leg alone is not among the candidates.
    """
    if not {BM25_ALONE, DENSE_ALONE} <= ndcg_of_weight.keys():
        raise ValueError(f"the weights {sorted(ndcg_of_weight)} must include 0 and 1, each leg alone")
    means = {weight: float(np.mean(ndcg)) if len(ndcg) else 0.0 for weight, ndcg in ndcg_of_weight.items()}
    leg = DENSE_ALONE if means[DENSE_ALONE] > means[BM25_ALONE] else BM25_ALONE
    best = max(means, key=lambda weight: (means[weight], -abs(weight - leg)))
    gain = paired_gain(ndcg_of_weight[best], ndcg_of_weight[leg])
    return FusionChoice(best if gain.mean > SURE * gain.standard_error else leg, leg, best, gain)

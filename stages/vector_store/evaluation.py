"""Measure the two legs and their mixes on held-out questions, and choose the weight that ships.

All questions are asked at once against one index of all chunks, in which each question's own sentence is
cut out of its document. A document's rank is that of its best chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.vector_store.corpus import Corpus
from stages.vector_store.indexing import Legs
from stages.vector_store.questions import Question
from stages.whitebox.fusion import BM25_ALONE, DENSE_ALONE, WEIGHTS, FusionChoice, choose_weight, min_max
from stages.whitebox.retrieval_metrics import (
    Estimate,
    Gain,
    document_ranks,
    mean_of_shares,
    ndcg_at,
    paired_gain,
    recall_at,
)

QUESTIONS_AT_ONCE = 64
ALL = "all"


@dataclass(frozen=True)
class LegResult:
    """One row of the quality table."""

    name: str
    kind: str
    """Of the questions: described, named, or all."""
    dense_weight: float
    ndcg_at_10: Estimate
    recall_at_10: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What was chosen on dev and what came out on test."""

    choice: FusionChoice
    dev_ndcg_of_weight: dict[float, float]
    test: list[LegResult]
    """bm25, dense, fused; first on all questions, then on those of each kind."""
    gain_over_best_leg: Gain
    """Fused minus the better leg of test, nDCG@10, on test."""


def evaluate(
    corpus: Corpus, questions: Sequence[Question], legs: Legs, on_question: Callable[[int], None]
) -> Evaluation:
    """Rank every question's document under every weight; choose on dev, report on test."""
    ranks = _ranks_of_weights(corpus, questions, legs, on_question)
    is_dev_Q = np.array([question.split == "dev" for question in questions], dtype=bool)
    dev = {weight: ndcg_at(ranks_Q[is_dev_Q]) for weight, ranks_Q in ranks.items()}
    choice = choose_weight(dev)
    test = {weight: ranks_Q[~is_dev_Q] for weight, ranks_Q in ranks.items()}
    kinds_Q = np.array([question.kind for question in questions if question.split != "dev"])
    shipped = (("bm25", BM25_ALONE), ("dense", DENSE_ALONE), ("fused", choice.dense_weight))
    results = [
        _leg_result(name, kind, weight, test[weight][(kinds_Q == kind) | (kind == ALL)])
        for kind in (ALL, *sorted(set(kinds_Q.tolist())))
        for name, weight in shipped
    ]
    best_leg = max(results[:2], key=lambda leg: leg.ndcg_at_10.mean)
    gain = paired_gain(ndcg_at(test[choice.dense_weight]), ndcg_at(test[best_leg.dense_weight]))
    dev_means = {weight: mean_of_shares(ndcg).mean for weight, ndcg in dev.items()}
    return Evaluation(choice, dev_means, results, gain)


def _leg_result(name: str, kind: str, weight: float, ranks_Q: np.ndarray) -> LegResult:
    return LegResult(name, kind, weight, mean_of_shares(ndcg_at(ranks_Q)), mean_of_shares(recall_at(ranks_Q)))


def _ranks_of_weights(
    corpus: Corpus, questions: Sequence[Question], legs: Legs, on_question: Callable[[int], None]
) -> Mapping[float, np.ndarray]:
    """weight -> ranks_Q. In blocks, because all scores of all questions would not fit into memory."""
    starts_M = corpus.document_starts()
    place = {corpus.chunks[row].document: number for number, row in enumerate(starts_M.tolist())}
    targets_Q = np.array([place[question.document] for question in questions], dtype=np.int64)
    blocks: dict[float, list[np.ndarray]] = {weight: [np.empty(0, np.int64)] for weight in WEIGHTS}
    for first in range(0, len(questions), QUESTIONS_AT_ONCE):
        texts = [question.text for question in questions[first : first + QUESTIONS_AT_ONCE]]
        dense_QxN = min_max(legs.embed(texts) @ legs.vectors_NxD.T)
        bm25_QxN = min_max(np.stack([legs.bm25.scores(text) for text in texts]))
        for weight in WEIGHTS:
            mixed_QxN = weight * dense_QxN + (1 - weight) * bm25_QxN
            targets = targets_Q[first : first + QUESTIONS_AT_ONCE]
            blocks[weight].append(document_ranks(mixed_QxN, starts_M, targets))
        on_question(first + len(texts))
    return {weight: np.concatenate(parts) for weight, parts in blocks.items()}

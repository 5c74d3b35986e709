"""Ranks against sorting, metrics by hand, intervals against their known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.whitebox.intervals import wilson_interval
from stages.whitebox.retrieval_metrics import (
    document_ranks,
    mean_of_shares,
    ndcg_at,
    paired_gain,
    recall_at,
)


def test_ranks_are_those_of_sorted_documents() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((30, 50)).astype(np.float32)
    starts = np.array([0, 1, 5, 6, 20, 33, 34])
    targets = rng.integers(len(starts), size=30)
    ranks = document_ranks(scores, starts, targets)
    for row, target, rank in zip(scores, targets, ranks, strict=True):
        best = [part.max() for part in np.split(row, starts[1:])]
        assert sorted(best, reverse=True).index(best[target]) + 1 == rank


def test_ties_count_against_us() -> None:
    scores = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]])
    ranks = document_ranks(scores, np.arange(4), np.array([0, 1]))
    assert ranks.tolist() == [4, 3]


def test_ndcg_and_recall() -> None:
    ranks = np.array([1, 2, 3, 10, 11])
    expected = [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0]
    np.testing.assert_allclose(ndcg_at(ranks), expected)
    assert recall_at(ranks).tolist() == [1, 1, 1, 1, 0]
    assert recall_at(ranks, k=2).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (3, 5), (70, 100)])
def test_interval_of_zeros_and_ones_is_wilsons(right: int, total: int) -> None:
    values = np.array([1.0] * right + [0.0] * (total - right))
    estimate = mean_of_shares(values)
    low, high = wilson_interval(right, total)
    assert estimate.mean == pytest.approx(right / total)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.num_questions == total


def test_few_questions_claim_little() -> None:
    assert mean_of_shares(np.array([1.0, 1.0])).low < 0.5
    assert mean_of_shares(np.array([])).low == 0 and mean_of_shares(np.array([])).high == 1
    assert math.isnan(mean_of_shares(np.array([])).mean)


def test_the_interval_holds_for_ndcg() -> None:
    """Draw question sets from a known population: at least 95 of 100 intervals must hold its mean."""
    rng = np.random.default_rng(1)
    population = ndcg_at(rng.geometric(0.3, size=5000))
    held = [mean_of_shares(rng.choice(population, size=60)) for _ in range(300)]
    assert np.mean([e.low <= population.mean() <= e.high for e in held]) >= 0.95


def test_values_outside_zero_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        mean_of_shares(np.array([0.5, 1.5]))


def test_paired_gain_sees_through_common_noise() -> None:
    rng = np.random.default_rng(2)
    old = rng.random(400)
    gain = paired_gain(old + 0.05 + rng.normal(0, 0.05, 400), old)
    assert gain.mean == pytest.approx(0.05, abs=0.01)
    assert 0 < gain.low < 0.05 < gain.high
    assert gain.standard_error == pytest.approx((gain.high - gain.low) / 2 / 1.96, rel=1e-3)


def test_two_wins_are_no_proof() -> None:
    gain = paired_gain(np.array([1.0, 1.0]), np.array([0.5, 0.5]))
    assert gain.low < 0 < gain.mean
    assert paired_gain(np.array([]), np.array([]))[:3] == (0.0, -1.0, 1.0)

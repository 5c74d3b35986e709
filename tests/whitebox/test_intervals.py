"""Intervals against SciPy, against published values, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stages.whitebox.intervals import (
    bootstrap_ratio,
    compare_paired,
    mcnemar_exact,
    wilson_interval,
)


@pytest.mark.parametrize(("num_right", "num_items"), [(0, 10), (10, 10), (1, 3), (81, 263), (999, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(num_right: int, num_items: int, confidence: float) -> None:
    reference = stats.binomtest(num_right, num_items).proportion_ci(confidence, method="wilson")
    ours = wilson_interval(num_right, num_items, confidence)
    assert ours == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_gives_the_published_example() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263.
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("num_right", "num_items"), [(1, 0), (4, 3), (-1, 3)])
def test_wilson_refuses_impossible_counts(num_right: int, num_items: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= right <= items"):
        wilson_interval(num_right, num_items)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (1, 9), (12, 2), (0, 5), (700, 800)])
def test_mcnemar_is_the_two_sided_binomial_test(first: int, second: int) -> None:
    reference = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(reference, rel=1e-9)


def test_bootstrap_of_a_mean_matches_scipy() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=200)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    ours = bootstrap_ratio(values, np.ones(200), seed=1, num_resamples=4000)
    assert ours == pytest.approx((reference.low, reference.high), abs=0.02)


def test_bootstrap_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    num_covered = 0
    for seed in range(200):
        sizes = generator.uniform(50, 500, size=80)
        bits = 2.0 * sizes + generator.normal(0, 0.3, size=80) * sizes
        num_covered += bootstrap_ratio(bits, sizes, seed=seed, num_resamples=300).contains(2.0)
    assert 0.88 <= num_covered / 200 <= 0.99


def test_bootstrap_is_the_same_every_time_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1.0, 30.0)
    whole = bootstrap_ratio(values, values + 1, seed=7)
    assert bootstrap_ratio(values, values + 1, seed=7) == whole
    assert bootstrap_ratio(values, values + 1, seed=8) != whole
    monkeypatch.setattr("stages.whitebox.intervals._DRAWS_PER_CHUNK", 29 * 50)
    assert bootstrap_ratio(values, values + 1, seed=7) == whole


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [([], [], "expected one each"), ([1.0], [1.0, 2.0], "expected one each"), ([1.0], [0.0], "above 0")],
)
def test_bootstrap_refuses(numerators: list[float], denominators: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio(numerators, denominators)


def test_paired_comparison_sees_what_two_separate_intervals_do_not() -> None:
    first = np.array([True] * 60 + [False] * 40)
    second = first.copy()
    second[:10] = False  # the same questions, ten of them lost
    result = compare_paired(first, second)
    assert result.difference == pytest.approx(0.10)
    assert result.interval.low > 0
    assert result.p_value == pytest.approx(2 / 2**10)
    # Unpaired, 60 and 50 of 100 overlap widely.
    assert wilson_interval(60, 100).low < wilson_interval(50, 100).high


def test_paired_comparison_of_equal_models() -> None:
    right = [True, False, True]
    assert compare_paired(right, right) == (0.0, (0.0, 0.0), 1.0)
    with pytest.raises(ValueError, match="same items"):
        compare_paired([True], [True, False])

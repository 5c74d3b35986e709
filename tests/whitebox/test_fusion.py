"""Fusion: its ends are the legs, and the chosen weight never ships below the better leg of dev."""

from __future__ import annotations

import numpy as np
import pytest

from stages.whitebox.fusion import WEIGHTS, choose_weight, fuse, min_max

BM25, DENSE = 0.0, 1.0


def test_min_max_stretches_each_row() -> None:
    rows = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]], dtype=np.float32)
    assert min_max(rows).tolist() == [[0, 1, 0.5], [0, 0, 0]]
    assert min_max(rows).dtype == np.float32


def test_the_ends_are_the_legs() -> None:
    rng = np.random.default_rng(0)
    dense, bm25 = rng.normal(size=(4, 20)), rng.gamma(2, size=(4, 20))
    assert (fuse(dense, bm25, DENSE).argsort() == dense.argsort()).all()
    assert (fuse(dense, bm25, BM25).argsort() == bm25.argsort()).all()
    np.testing.assert_allclose(fuse(dense, bm25, 0.3)[2], fuse(dense[2], bm25[2], 0.3))


def test_a_mix_takes_from_both() -> None:
    dense, bm25 = np.array([1.0, 0.9, 0.0]), np.array([0.0, 9.0, 10.0])
    assert fuse(dense, bm25, 0.5).argmax() == 1


def test_a_clear_gain_ships() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200) * 0.5
    candidates = {0.0: base, 0.5: base + 0.1, 1.0: base + 0.02}
    choice = choose_weight(candidates)
    assert (choice.dense_weight, choice.best_leg_weight) == (0.5, 1.0)
    assert "gained +0.080" in choice.reason and "over the vectors alone" in choice.reason


def test_a_lucky_mix_does_not_ship() -> None:
    leg = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.5])
    candidates = {0.0: leg, 0.7: np.array([1.0, 0.4, 1.0, 0.0, 1.0, 0.5]), 1.0: leg * 0.5}
    choice = choose_weight(candidates)
    assert (choice.dense_weight, choice.best_mix_weight) == (0.0, 0.7)
    assert "no mix is clearly better than BM25 alone" in choice.reason


def test_on_a_tie_bm25_ships() -> None:
    same = np.array([1.0, 0.5])
    assert choose_weight(dict.fromkeys(WEIGHTS, same)).dense_weight == BM25
    assert choose_weight({weight: np.array([]) for weight in WEIGHTS}).dense_weight == BM25


@pytest.mark.parametrize("seed", range(20))
def test_never_below_the_better_leg_on_dev(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 40))
    candidates = {weight: rng.random(size) for weight in WEIGHTS}
    shipped = candidates[choose_weight(candidates).dense_weight].mean()
    assert shipped >= max(candidates[BM25].mean(), candidates[DENSE].mean())


def test_both_legs_must_be_candidates() -> None:
    assert {BM25, DENSE} <= set(WEIGHTS)
    with pytest.raises(ValueError, match="must include 0 and 1"):
        choose_weight({0.0: np.array([1.0]), 0.5: np.array([1.0])})

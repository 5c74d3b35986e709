"""Choosing by hash: the same in any order, even over the sources, and exactly what sorting would give."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus_prep.sampling import (
    Mixture,
    Smallest,
    balanced,
    fair_shares,
    hashed_id,
    in_fraction,
    split_of,
)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=6), st.integers(0, 3000))
def test_fair_shares_use_the_limit_and_favour_nobody(sizes: dict[str, int], limit: int) -> None:
    shares = fair_shares(sizes, limit)
    assert shares.keys() == sizes.keys()
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    assert sum(shares.values()) <= limit
    assert sum(shares.values()) >= min(limit, sum(sizes.values())) - len(sizes)
    cut = [share for name, share in shares.items() if share < sizes[name]]
    if cut:
        assert max(shares.values()) - min(cut) <= 1


def test_fair_shares_follow_weights() -> None:
    assert fair_shares({"a": 100, "b": 100, "c": 5}, 85, {"a": 3}) == {"a": 60, "b": 20, "c": 5}


def test_smallest_keeps_what_sorting_would_keep_in_any_order() -> None:
    keys = [hashed_id(str(i % 70)) for i in range(100)]
    expected = sorted(set(keys))[:10]
    for seed in range(3):
        random.Random(seed).shuffle(keys)
        sample: Smallest[str] = Smallest(10)
        for key in keys:
            sample.add(key, f"record {key}")
        assert [key for key, _ in sample.items()] == expected
        assert sample.num_added == 100
    empty: Smallest[int] = Smallest(0)
    empty.add("aa", 1)
    assert len(empty) == 0


def test_balanced_takes_from_every_source() -> None:
    samples = {name: Smallest[int](100) for name in "abc"}
    for index in range(60):
        samples["a"].add(hashed_id("a", str(index)), index)
        samples["b"].add(hashed_id("a", str(index)), index)  # the same records again
    samples["c"].add(hashed_id("c"), 0)
    taken = list(balanced(samples, 21))
    assert [source for source, _, _ in taken].count("a") == 10
    assert [source for source, _, _ in taken].count("c") == 1
    assert len({key for _, key, _ in taken}) == len(taken)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_fractions_hold_and_do_not_depend_on_each_other(fraction: float) -> None:
    keys = [str(i) for i in range(4000)]
    chosen = {key for key in keys if in_fraction(key, "one", fraction)}
    assert abs(len(chosen) / 4000 - fraction) < 0.03
    other = {key for key in keys if in_fraction(key, "two", fraction)}
    assert abs(len(chosen & other) / 4000 - fraction**2) < 0.03
    assert {key for key in keys if split_of(key, fraction) == "validation"} == {
        key for key in keys if in_fraction(key, "split", fraction)
    }


def test_entries_share_first_and_their_files_then() -> None:
    mixture = Mixture({"a": "0", "b": "0", "c": "1", "d": "2"}, {"0": 1.0, "1": 3.0}, {"2": 50})
    shares = mixture.shares({"a": 1000, "b": 100, "c": 1000, "d": 1000, "harvested": 30}, 880)
    # d is capped, `harvested` small and an entry of its own; of the 800 left a and b get one part, c three.
    assert shares == {"a": 100, "b": 100, "c": 600, "d": 50, "harvested": 30}
    assert Mixture().shares({"a": 10, "b": 30}, 20) == {"a": 10, "b": 10}

"""Which documents make entries, against plain loops over titles."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep import titles
from stages.corpus_prep.titles import NO_TITLE, choose_entries, title_hashes


def test_equal_titles_have_equal_hashes_and_others_do_not() -> None:
    names = ["", "a", "A", "灯塔", "灯塔 ", "a" * 200, "", None, "a"]
    for array in (pa.array(names), pa.array(["x", *names])[1:]):
        hashes = title_hashes(array)
        assert [value == NO_TITLE for value in hashes] == [not name for name in names]
        assert hashes[1] == hashes[8]
        assert len(set(hashes.tolist())) == len({name or "" for name in names})


def test_hashes_are_the_same_everywhere() -> None:
    value = 0xCBF29CE484222325
    for byte in "灯".encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % 2**64
    assert title_hashes(pa.array(["灯"])).tolist() == [value ^ value >> 33]


@pytest.mark.parametrize(
    ("limit", "per_source"), [(10**6, 10**6), (90, 10**6), (10**6, 20), (90, 20), (3, 9)]
)
def test_the_choice_is_that_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, limit: int, per_source: int
) -> None:
    monkeypatch.setattr(titles, "MAX_ENTRIES", limit)
    monkeypatch.setattr(titles, "MAX_ENTRIES_PER_SOURCE", per_source)
    rng = random.Random(limit + per_source)
    named = [rng.choice(["", f"t{rng.randrange(600)}"]) for _ in range(1000)]
    sources = [rng.choice([0, 1, 1, 1, 2, 2, 3]) for _ in named]
    kept = [rng.random() < 0.8 for _ in named]
    hashes = title_hashes(pa.array(named))
    seen = Counter(name for name, stays in zip(named, kept, strict=True) if stays and name)
    candidates = [n for n, name in enumerate(named) if kept[n] and name and seen[name] == 1]
    # Raise what each source may have, one by one, as long as all together stay below the limit.
    by_source = {s: [n for n in candidates if sources[n] == s] for s in set(sources)}
    sizes = {s: min(len(own), per_source) for s, own in by_source.items()}
    each = 0
    while each < max(sizes.values()) and sum(min(n, each + 1) for n in sizes.values()) <= limit:
        each += 1
    expected = {
        n for s, own in by_source.items() for n in sorted(own, key=lambda n: hashes[n])[: min(each, sizes[s])]
    }
    found = set(np.flatnonzero(choose_entries(hashes, np.array(kept), np.array(sources))).tolist())
    assert len(found) <= limit
    if each:  # the last places, fewer than there are sources, may go to some of them or stay free
        assert expected <= found and len(found) - len(expected) < len(sizes)
    else:
        assert found == set(
            sorted(
                (min(own, key=lambda n: hashes[n]) for own in by_source.values()), key=lambda n: hashes[n]
            )[:limit]
        )


def test_nothing_is_chosen_of_nothing() -> None:
    none = np.empty(0, np.uint64)
    assert choose_entries(none, np.empty(0, bool), np.empty(0, np.int32)).tolist() == []
    assert (
        choose_entries(np.zeros(3, np.uint64), np.ones(3, bool), np.zeros(3, np.int32)).tolist()
        == [False] * 3
    )

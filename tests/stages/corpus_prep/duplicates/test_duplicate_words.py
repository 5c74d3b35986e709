"""Words of a batch: against a regular expression, and what counts as the same word."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep.duplicates.words import split_words

ODD = "The Çat's naïve_1 价格：３元，ab\u200bc e\u0301t 东京タワー 𝔸𠀀 x\ufeff İstanbul Straße ﬁn 12.5 हिन्दी"


def _hashes(text: str) -> list[int]:
    return split_words(pa.array([text], pa.large_string())).hashes.tolist()


def test_words_and_places_are_those_of_a_regular_expression(split_plainly) -> None:
    rng = random.Random(0)
    alphabet = ["a", "B", "é", "7", "_", " ", "\n", "-", "中", "文", "。", "я", "😀", "𠀀"[:1]]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 40))) for _ in range(300)]
    found = split_words(pa.array(texts, pa.large_string()))
    hashes: dict[str, int] = {}
    for number, text in enumerate(texts):
        # The reference knows only the first plane's Han characters as words of their own.
        expected = split_plainly(text.replace("𠀀", "丁"))
        own = slice(found.offsets[number], found.offsets[number + 1])
        data = text.encode()
        places = list(zip(found.begins[own].tolist(), found.ends[own].tolist(), strict=True))
        assert [data[b:e].decode().casefold().replace("𠀀", "丁") for b, e in places] == expected
        for (b, e), value in zip(places, found.hashes[own].tolist(), strict=True):
            assert hashes.setdefault(data[b:e].decode().casefold(), value) == value
    assert len(set(hashes.values())) == len({key.replace("é", "e") for key in hashes})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Hello, World!", "hello   WORLD"),
        ("ＡＢＣ　１２３", "abc 123"),
        ("naïve café", "nai\u0308ve cafe"),
        ("soft\u00adened zero\u200bwidth", "softened zerowidth"),
        ("“quoted” words…", "'quoted' -- words"),
        ("湖边，有一间木屋。", "湖边有一 间 木 屋"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
def test_what_a_reader_takes_for_equal_is_equal(left: str, right: str) -> None:
    assert _hashes(left) == _hashes(right) != []


@pytest.mark.parametrize(("left", "right"), [("ab c", "a bc"), ("12", "1 2"), ("dog", "god"), ("1.5", "15")])
def test_what_differs_differs(left: str, right: str) -> None:
    assert _hashes(left) != _hashes(right)


def test_nulls_slices_and_chunks() -> None:
    array = pa.array(["left out", "one two", None, "", ODD, "three"])
    whole = split_words(array[1:])
    assert np.diff(whole.offsets).tolist()[:3] == [2, 0, 0]
    chunked = split_words(pa.chunked_array([array[1:3], array[3:]]))
    assert (
        chunked.hashes.tolist()
        == whole.hashes.tolist()
        == [h for text in ("one two", ODD, "three") for h in _hashes(text)]
    )
    assert split_words(pa.array([], pa.large_string())).offsets.tolist() == [0]

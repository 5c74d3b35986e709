"""Words of simplified text are datatrove's, and signatures estimate the Jaccard similarity as theory says."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from datatrove.utils.text import simplify_text

from stages.corpus_prep.measuring.measures import measure, word_hashes

TEXTS = (
    "The ÉCOLE, at 12:30, had 3.14159 pupils and 1,000 more; v2.5x 1.2.3 (abc123def)!",
    "湖边 有一间木头小屋，2024年10月。カタカナ and 한국어 words\u3000here",
    "Straße İstanbul naïve ﬁne ÀÉ e\u0301te\u0301 ١٢٣ १२.५ ５６％ don't snake_case — “quoted”…",
    "1.5.2 1..5 .5 5. 1,5 a1.5b 1 . 5",
)


def _texts(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def _simple_words(text: str) -> list[str]:
    """Runs of letters and digits of datatrove's simplified text, Han and kana one by one."""
    dense = "\u3040-\u30ff\u3400-\u9fff"
    return re.findall(f"[{dense}]|[^\\W_{dense}]+", simplify_text(text))


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_equal_where_those_of_datatroves_simplified_text_are(text: str) -> None:
    words = _simple_words(text)
    again = unicodedata.normalize("NFC", " ".join(words))  # hangul syllables, which datatrove takes apart
    offsets, hashes = word_hashes(_texts([text, again]))
    first, second = (hashes[offsets[i] : offsets[i + 1]].tolist() for i in range(2))
    assert first == second  # simplifying twice changes nothing
    assert len(first) == len(words)
    assert [first.index(value) for value in first] == [words.index(word) for word in words]


def test_numbers_can_be_kept() -> None:
    texts = _texts(["3 apples", "4 apples", "3.5 apples"])
    assert np.diff(word_hashes(texts)[0]).tolist() == [2, 2, 2]
    offsets, hashes = word_hashes(texts, keep_numbers=True)
    assert np.diff(offsets).tolist() == [2, 2, 3]
    assert hashes[0] != hashes[2] and hashes[1] == hashes[3] and hashes[0] == hashes[4]


def _edited(words: list[str], share: float, rng: random.Random) -> str:
    return " ".join(f"new{rng.randrange(10**6)}x" if rng.random() < share else word for word in words)


def _shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_the_estimate_has_the_error_that_theory_gives() -> None:
    rng = random.Random(11)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(rng.choices(alphabet, k=rng.randrange(2, 9))) for _ in range(3000)]
    pairs = []
    for _ in range(400):
        words = rng.choices(vocabulary, k=rng.randrange(100, 400))
        pairs.append((" ".join(words), _edited(words, rng.uniform(0, 0.12), rng)))
    signatures = measure(_texts([text for pair in pairs for text in pair])).column("signature")
    hashes = signatures.flatten().to_numpy().reshape(-1, 2, 112)
    estimate = (hashes[:, 0] == hashes[:, 1]).mean(axis=1)
    sets = [tuple(_shingles(_simple_words(text)) for text in pair) for pair in pairs]
    exact = np.array([len(a & b) / len(a | b) for a, b in sets])
    expected = np.sqrt((exact * (1 - exact) / 112).mean())
    rmse, bias = np.sqrt(((estimate - exact) ** 2).mean()), (estimate - exact).mean()
    assert 0.2 < exact.min() < exact.max() == 1
    assert 0.85 * expected < rmse < 1.15 * expected
    assert abs(bias) < 4 * expected / np.sqrt(400)


def test_hashes_of_a_signature_are_as_good_as_independent() -> None:
    """Of two disjoint halves the first has the lesser hash half of the time, at each of the 112 places."""
    rng = random.Random(3)
    texts = [" ".join(str(rng.choices("abcdefgh", k=6)) for _ in range(60)) for _ in range(800)]
    hashes = measure(_texts(texts)).column("signature").flatten().to_numpy().reshape(-1, 112)
    wins = (hashes[::2] < hashes[1::2]).astype(float)
    assert abs(wins.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(400)
    correlations = np.corrcoef(wins.T)[np.triu_indices(112, 1)]
    assert abs(correlations).max() < 6 / np.sqrt(400)
    assert abs(correlations.mean()) < 0.01


def test_short_texts() -> None:
    signatures = (
        measure(_texts(["", "。!", "one two", "One, TWO!", "two one"])).column("signature").to_pylist()
    )
    assert signatures[0] == signatures[1] == [2**32 - 1] * 112
    assert signatures[2] == signatures[3] != signatures[4]

"""Perplexity against counts in plain dictionaries; the classifier against what it was taught."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep.screening.perplexity import count_ngrams, train_character_model
from stages.corpus_prep.screening.quality_classifier import train_classifier
from stages.runtime.errors import UserError

ORDER = 3
GOOD_WORDS = (
    "the",
    "river",
    "runs",
    "past",
    "old",
    "mill",
    "and",
    "turns",
    "its",
    "wheel",
    "while",
    "miller",
)
BAD_WORDS = ("click", "here", "buy", "now", "cheap", "best", "offer", "deal", "free", "ship", "order", "win")


def _texts(words: tuple[str, ...], number: int, seed: int, length: int = 40) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(words, k=length)) for _ in range(number)]


def _array(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


class _PlainKneserNey:
    """Strings in dictionaries, straight from the formulas."""

    def __init__(self, texts: list[str]) -> None:
        grams = [
            Counter(text[i - size + 1 : i + 1] for text in texts for i in range(size - 1, len(text)))
            for size in range(1, ORDER + 1)
        ]
        starts = Counter(text[:size] for text in texts for size in range(1, min(ORDER, len(text) + 1)))
        self.counts: dict[str, int] = dict(grams[-1])
        for size in range(1, ORDER):
            lower: Counter[str] = Counter(gram[1:] for gram in grams[size])
            lower.update({gram: n for gram, n in starts.items() if len(gram) == size})
            self.counts |= lower
        self.discounts = {}
        for size in range(1, ORDER + 1):
            found = Counter(n for gram, n in self.counts.items() if len(gram) == size)
            self.discounts[size] = found[1] / (found[1] + 2 * found[2]) if found[1] else 0.5
        self.by_context: dict[str, list[int]] = defaultdict(list)
        self.contexts: dict[tuple[int, str], list[int]] = defaultdict(list)
        for gram, count in self.counts.items():
            self.contexts[len(gram), gram[:-1]].append(count)
        self.alphabet = sorted(set("".join(texts)))

    def chance(self, history: str, character: str) -> float:
        chance = 1 / (len(self.alphabet) + 1)
        for size in range(1, min(ORDER, len(history) + 1) + 1):
            context = history[len(history) - size + 1 :]
            followers = self.contexts.get((size, context))
            if not followers:
                break
            count = self.counts.get(context + character, 0)
            discounted = max(count - self.discounts[size], 0) / sum(followers)
            chance = discounted + self.discounts[size] * len(followers) / sum(followers) * chance
        return chance

    def perplexity(self, text: str) -> float:
        bits = sum(-math.log2(self.chance(text[:i], text[i])) for i in range(len(text)))
        return 2 ** (bits / len(text))


def test_perplexity_is_that_of_plain_counts() -> None:
    texts = ["abracadabra", "中文文中中文字", "banana bandana", "a", "cabbage"]
    plain = _PlainKneserNey(texts)
    points = np.array([0, *(p for text in texts for p in [*map(ord, text), 0])], np.int64)
    model = count_ngrams(points, ORDER)
    asked = ["abra", "中文", "xyz", "banana", "b", "bcbcbc 字"]
    found = model.perplexity(_array(asked)).to_pylist()
    assert found == pytest.approx([plain.perplexity(text) for text in asked], abs=0.006)
    for history in ("", "a", "ab", "文中", "zz"):
        assert sum(plain.chance(history, c) for c in [*plain.alphabet, "\u2603"]) == pytest.approx(1)


def test_good_text_surprises_less() -> None:
    model = train_character_model([_array(_texts(GOOD_WORDS, 100, 1))])
    good, bad, empty = model.perplexity(
        _array([*_texts(GOOD_WORDS, 1, 2), *_texts(BAD_WORDS, 1, 2), ""])
    ).to_pylist()
    assert good < 5 < bad
    assert empty is None


def test_the_same_counts_in_any_batches() -> None:
    texts = _texts(GOOD_WORDS, 100, 1)
    one = train_character_model([_array(texts)]).perplexity(_array(texts))
    assert one.equals(train_character_model([_array(texts[:7]), _array(texts[7:])]).perplexity(_array(texts)))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UserError, match="needs 10,000 characters of good text; there are 5"):
        train_character_model([_array(["short"])])
    with pytest.raises(UserError, match="there are 1 and 20"):
        train_classifier([_array(["x"])], [_array(_texts(BAD_WORDS, 20, 1))])


def test_the_classifier_tells_unseen_texts_apart() -> None:
    shared = ("and", "the", "of", "to") * 3
    good, bad = GOOD_WORDS + shared, BAD_WORDS + shared
    model = train_classifier([_array(_texts(good, 60, 1))], [_array(_texts(bad, 300, 2))])
    assert min(model.score(_array(_texts(good, 50, 3))).to_pylist()) > 0.8
    assert max(model.score(_array(_texts(bad, 50, 4))).to_pylist()) < 0.2
    between = model.score(_array(["", "and the of to"])).to_pylist()
    assert all(0.05 < score < 0.95 for score in between)


def test_chinese_is_read_by_characters() -> None:
    good = [f"第{n}天，河水流过旧磨坊，轮子转动。" for n in range(30)]
    bad = [f"点击{n}立即购买，超低价格，免费送货！" for n in range(30)]
    model = train_classifier([_array(good)], [_array(bad)])
    assert model.score(_array(["磨坊旁边的河水"])).to_pylist()[0] > 0.5
    assert model.score(_array(["免费购买"])).to_pylist()[0] < 0.5


def test_training_twice_gives_the_same_weights() -> None:
    batches = [_array(_texts(GOOD_WORDS, 30, 1))], [_array(_texts(BAD_WORDS, 30, 2))]
    assert np.array_equal(train_classifier(*batches).weights, train_classifier(*batches).weights)

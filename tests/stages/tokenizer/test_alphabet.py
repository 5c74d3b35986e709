"""The alphabet: counts against a plain counter, coverage by script."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from stages.tokenizer import alphabet
from stages.tokenizer.alphabet import Coverage, count_characters, rare_characters, script_of


def test_characters_are_counted_as_a_counter_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alphabet, "BATCH_CHARACTERS", 500)
    draw = random.Random(1)
    texts = ["".join(draw.choices("ab 灯塔🚢\n\0\udc80", k=draw.randint(0, 30))) for _ in range(300)]
    texts += ["only ascii " * 30] * 7
    assert count_characters(texts) == Counter("".join(texts))


@pytest.mark.parametrize(
    ("script", "characters"),
    [
        ("Latin", "aé"),
        ("Han", "灯〇\U0002a6d6"),
        ("Katakana", "ア"),
        ("Hiragana", "あ"),
        ("Cyrillic", "ж"),
        ("Arabic", "ح"),
        ("Hangul", "한"),
        ("Common", "1，🚢\n"),
    ],
)
def test_scripts_are_those_of_unicode(script: str, characters: str) -> None:
    regex = pytest.importorskip("regex")
    for character in characters:
        assert script_of(character) == script
        assert regex.fullmatch(rf"\p{{{script}}}", character)


def test_coverage_is_by_script_where_it_is_told() -> None:
    counts = Counter({"灯": 90, "塔": 9, "船": 1, "é": 1, "ж": 1, "a": 1000})
    assert rare_characters(counts, 99, Coverage(1.0)) == frozenset()
    assert rare_characters(counts, 99, Coverage(1.0, {"Han": 0.9})) == {"塔", "船"}
    assert rare_characters(counts, 99, Coverage(1.0, {"Han": 0.99})) == {"船"}
    assert rare_characters(counts, 3, Coverage(1.0)) == {"船", "é", "ж"}
    assert "船" not in rare_characters(counts, 99, Coverage(0.5, {"Han": 1.0}))

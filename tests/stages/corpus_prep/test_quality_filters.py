"""Filters drop what they are for, by name and with a detail, and leave ordinary texts of three languages."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from stages.corpus_prep.languages import detect_language
from stages.corpus_prep.quality_filters import FILTERS, hashed_ngrams, judge, word_list

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
FRENCH = (
    "Ce matin nous avons pris le petit train qui va vers les montagnes, et le soir nous avons dormi sous les "
    "arbres au bord du lac."
)
ENGLISH = "The keeper of the lighthouse climbs the stairs every evening and lights the lamp. "


def _fixture_texts(name: str) -> list[str]:
    path = FIXTURES / name
    if name.endswith(".csv"):
        with path.open(encoding="utf-8", newline="") as file:
            return [row["text"] for row in csv.DictReader(file)]
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "language"),
    [("corpus_english.jsonl", "en"), ("corpus_chinese.csv", "zh"), ("corpus_arabic.jsonl", "ar")],
)
def test_ordinary_texts_are_kept_and_their_language_is_known(name: str, language: str) -> None:
    texts = _fixture_texts(name)
    assert len(texts) == 20
    assert {detect_language(text) for text in texts} == {language}
    assert [judge(text, language) for text in texts] == [(True, "", "")] * 20


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("これは日本語の文章です。漢字とかなを使います。", "ja"),
        ("한국어로 쓴 문장입니다.", "ko"),
        ("Это предложение написано по-русски.", "ru"),
        (FRENCH, "other"),
        ("x = {a[i]: f(b_c) for i in r}; y = [k(z_1), (w_2)]; " * 5, "code"),
        ("12 34 56 -- 78", "other"),
        ("Short words", "en"),
        ("PEP 8 说明了代码风格，例如命名和缩进的规则。", "zh"),
    ],
)  # fmt: skip
def test_languages(text: str, language: str) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("Too short.", "en", "too_short"),
        ("太短了。", "zh", "too_short"),
        ("1234 5678 9012 " * 10, "other", "no_letters"),
        ("a|b|c||d|||e ### $$$ ~~~ f === g ^^^ &&& h <<< >>> ijk lmn opq " * 3, "en", "symbol_ratio"),
        ("abcdefghijklmnopqrstuvwxyz" * 30, "en", "long_words"),
        (ENGLISH * 3 + "Zm9vYmFyYmF6" * 60, "en", "long_words"),
        ("\n".join(["Home page", "Contact us", "Read more about it"] * 12), "en", "duplicate_lines"),
        ("buy this very good and very cheap lamp now because it is " * 40, "en", "repeated_ngrams"),
        (ENGLISH + "\ufffd" * 10, "en", "broken_characters"),
    ],
)
def test_each_filter(text: str, language: str, reason: str) -> None:
    keep, found, detail = judge(text, language)
    assert (keep, found) == (False, reason)
    assert detail


def test_every_filter_has_a_case_above() -> None:
    mark = next(m for m in test_each_filter.pytestmark if m.name == "parametrize")
    assert {case[2] for case in mark.args[1]} == {check.__name__ for check in FILTERS}


def test_words() -> None:
    assert word_list("One-two 湖边 snake_case Äpfel مرحبا 3") == [
        "One", "two", "湖", "边", "snake", "case", "Äpfel", "مرحبا", "3",
    ]  # fmt: skip


def test_hashed_ngrams_are_equal_exactly_where_the_words_are() -> None:
    rng = random.Random(5)
    words = [rng.choice("abc") for _ in range(300)]
    hashes = hashed_ngrams(words, 4)
    grams = [tuple(words[i : i + 4]) for i in range(297)]
    assert len(hashes) == 297
    assert len(set(hashes.tolist())) == len(set(grams))
    assert all((hashes[i] == hashes[j]) == (grams[i] == grams[j]) for i in range(40) for j in range(297))
    assert len(hashed_ngrams(["a"], 4)) == 0

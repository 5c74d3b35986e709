"""Overlaps with questions: against a plain search for word sequences, and the three rules one by one."""

from __future__ import annotations

import random

import pytest

from stages.corpus_prep.decontamination import LONG_RUN_WORDS, MIN_OVERLAP, MIN_WORDS, ContaminationIndex
from stages.corpus_prep.quality_filters import word_list

QUESTION = (
    "Which of these four stones is the heaviest one when all of them are dropped into the same deep well"
)


def _plainly_contaminated(item: str, text: str) -> bool:
    """The rule, word for word, without hashes."""
    words, document = word_list(item.lower()), word_list(text.lower())
    if len(words) < MIN_WORDS:
        return False
    size = min(8, len(words))
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    inside = [tuple(document[i : i + size]) for i in range(len(document) - size + 1)]
    hits = [gram in set(grams) for gram in inside]
    longest = run = 0
    for hit in hits:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    distinct = {gram for gram in inside if gram in set(grams)}
    return (longest > 1 and longest + 7 >= LONG_RUN_WORDS) or len(distinct) / len(grams) >= MIN_OVERLAP


def test_find_agrees_with_a_plain_search() -> None:
    rng = random.Random(4)
    vocabulary = [f"w{i}" for i in range(30)]
    items = [(f"q{i}", " ".join(rng.choices(vocabulary, k=rng.randint(4, 30)))) for i in range(25)]
    index = ContaminationIndex(items)
    agreed = 0
    for _ in range(300):
        words = rng.choices([*vocabulary, "other"], k=60)
        source = word_list(rng.choice(items)[1])
        begin, length = rng.randrange(len(source)), rng.randint(1, len(source))
        words[20 : 20 + length] = source[begin : begin + length]
        text = " ".join(words)
        expected = [name for name, item in items if _plainly_contaminated(item, text)]
        assert [overlap.item for overlap in index.find_all(text)] == expected
        agreed += bool(expected)
    assert 50 < agreed < 250


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (f"Before. {QUESTION}? After.", "run of 20 words"),
        (f"Before. {QUESTION.upper()}!", "run of 20 words"),
        (" ".join(QUESTION.split()[:13]), "run of 13 words"),
        (" ".join(QUESTION.split()[:12]), ""),
        ("A text about stones and a deep well.", ""),
        ("", ""),
    ],
)
def test_long_questions(text: str, detail: str) -> None:
    found = ContaminationIndex([("q", QUESTION)]).find(text)
    assert (found.detail if found else "") == detail


def test_short_questions_need_all_of_their_words() -> None:
    index = ContaminationIndex([("short", "Count the stones of one well"), ("tiny", "What is it")])
    assert index.find("We count the stones of one well today.") is not None
    assert index.find("We count the stones of a well today.") is None
    assert index.find("What is it") is None


def test_chinese_counts_characters() -> None:
    index = ContaminationIndex([("zh", "湖边有一间木头小屋，屋顶上长满了青苔。")])
    assert index.find("他说：湖边有一间木头小屋，屋顶上长满了青苔。真美！") is not None
    assert index.find("湖边有一间小屋。") is None


def test_an_empty_index_finds_nothing() -> None:
    assert ContaminationIndex([]).find(QUESTION) is None

"""Overlaps with questions: against a plain search for word sequences, and the three rules one by one."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from stages.corpus_prep.decontamination import (
    LONG_RUN_WORDS,
    MIN_OVERLAP,
    MIN_WORDS,
    ContaminationIndex,
    LeakRules,
)
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
    return (longest > 1 and longest + 7 >= LONG_RUN_WORDS) or len(distinct) / len(set(grams)) >= MIN_OVERLAP


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


CHINESE = (
    "小明有十二个苹果，他先给了小红三个，又从树上摘了五个，最后把剩下的平均分给两个弟弟，每个弟弟得到几个？"
)
RIGHT = "Each of the two brothers gets seven apples and none are left over at the end of it"


def _disguises(text: str) -> dict[str, str]:
    """The text as copies of it look."""
    return {
        "as it is": text,
        "upper case": text.upper(),
        "no punctuation": "".join(c if c.isalnum() else " " for c in text),
        "other punctuation": text.replace(" ", " -- ").replace("，", "； "),
        "line breaks": "\r\n".join(text.split()) if " " in text else "\n".join(text),
        "invisible characters": "\u200b".join(text),
        "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
        "markup": f"# *{text}*\\n".replace(" the ", " **the** "),
    }


@pytest.mark.parametrize("question", [QUESTION, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("disguise", _disguises(""))
def test_every_planted_leak_is_found(question: str, disguise: str) -> None:
    rng = random.Random(1)
    items = [(f"other {i}", " ".join(f"w{rng.randrange(500)}" for _ in range(40))) for i in range(50)]
    index = ContaminationIndex([*items, ("q", f"{question} {RIGHT}"), ("q", question)])
    planted = (
        f"{question} {RIGHT}",
        question,
        question[len(question) // 4 :],
    )  # full item, question, most of it
    for leak in planted:
        filler = " ".join(f"f{rng.randrange(500)}" for _ in range(100))
        text = f"{filler}. {_disguises(leak)[disguise]} {filler}"
        assert {overlap.item for overlap in index.find_all(text)} == {"q"}


def test_a_batch_tells_document_item_run_and_share() -> None:
    half = " ".join(QUESTION.split()[:10])
    index = ContaminationIndex([("zh", CHINESE), ("q", QUESTION), ("short", "Count the stones of one well")])
    texts = [
        "clean",
        f"{QUESTION} and {CHINESE}",
        None,
        half,
        "count the stones of one well, count the stones",
    ]
    leaks = index.find_batch(pa.array(["cut off", *texts], pa.large_string())[1:])
    found = list(zip(leaks.document.tolist(), leaks.item.tolist(), leaks.longest_run.tolist(), strict=True))
    num_characters = sum(c.isalnum() for c in CHINESE)
    assert found == [(1, 0, num_characters), (1, 1, 20), (4, 2, 6)]
    assert leaks.share.tolist() == [1.0, 1.0, 1.0]
    assert [overlap.detail for overlap in index.overlaps(leaks)][2] == "100% of its 8-grams"


def test_a_batch_finds_what_single_texts_do() -> None:
    rng = random.Random(2)
    items = [(f"q{i}", " ".join(rng.choices("abc", k=rng.randint(6, 16)))) for i in range(40)]
    texts = [" ".join(rng.choices("abc", k=rng.randint(0, 400))) for _ in range(60)]
    index = ContaminationIndex(items)
    leaks = index.find_batch(pa.array(texts, pa.large_string()))
    overlaps = index.overlaps(leaks)
    for number, text in enumerate(texts):
        assert [overlaps[k] for k in np.flatnonzero(leaks.document == number)] == index.find_all(text)
    assert 10 < len(overlaps) < 60 * 40


def test_the_length_of_a_chinese_run_is_its_own_setting() -> None:
    text = f"他说：{CHINESE[:19]}。"
    assert ContaminationIndex([("zh", CHINESE)]).find(text) is not None
    assert ContaminationIndex([("zh", CHINESE)], LeakRules(long_run_characters=20)).find(text) is None
    assert ContaminationIndex([("q", QUESTION)], LeakRules(long_run_characters=20)).find(
        " ".join(QUESTION.split()[:13])
    )


def test_lone_surrogates_are_no_obstacle() -> None:
    index = ContaminationIndex([("q", f"\ud800 {QUESTION}")])
    assert index.find(f"before \udfff {QUESTION}") is not None

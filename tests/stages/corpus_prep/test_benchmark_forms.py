"""Questions of the known benchmarks, each in the form in which it is published."""
# ruff: noqa: E501 (one table row per line)

from __future__ import annotations

from typing import Any

import pytest

from stages.corpus_prep.benchmark_forms import (
    Question,
    looks_like_benchmark,
    questions_of,
    unknown_question_form,
)

FRUIT = Question("Which is a fruit?", ("stone", "pear", "nail", "rope"), 1)
CHOICES = ["stone", "pear", "nail", "rope"]
LABELLED = {"text": CHOICES, "label": ["A", "B", "C", "D"]}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which is a fruit?", "choices": CHOICES, "answer": 1},
        {"question": "Which is a fruit?", "choices": CHOICES, "answer": "B"},
        {"question": "Which is a fruit?", "choices": CHOICES, "answer": "pear"},
        {"query": "Question: Which is a fruit?\nAnswer:", "choices": CHOICES, "gold": 1},
        {"query": "Q: Which is a fruit?\nA:", "choices": CHOICES, "gold": [1]},
        {"question": "Which is a fruit?", "choices": LABELLED, "answerKey": "B"},
        {"question_stem": "Which is a fruit?", "choices": LABELLED, "answerKey": "B"},
        {"question": "Which is a fruit?", "choices": {**LABELLED, "label": list("1234")}, "answerKey": "2"},
        {"question": "Which is a fruit?", "A": "stone", "B": "pear", "C": "nail", "D": "rope", "answer": "B"},
        {"Question": "Which is a fruit?", "A": "stone", "B": "pear", "C": "nail", "D": "rope", "Answer": "B"},
        {"question": "Which is a fruit?", "options": [f"({x}){c}" for x, c in zip("ABCD", CHOICES, strict=True)], "label": "B"},
        {"ctx": "Which is a fruit?", "endings": CHOICES, "label": "1"},
        {"document": [], "questions": [{"question": "Which is a fruit?", "choice": CHOICES, "answer": "pear"}]},
        {"content": "Which is a fruit?", "candidates": CHOICES, "answer": 1},
    ],
)  # fmt: skip
def test_four_choices(row: dict[str, Any]) -> None:
    found = questions_of(row)
    assert found is not None
    assert list(found) == [FRUIT]
    assert looks_like_benchmark(row) or "questions" in row or "candidates" in row


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"goal": "Warm up", "sol1": "run", "sol2": "sleep", "label": 0}, Question("Warm up", ("run", "sleep"), 0)),
        ({"context": "Ann fell.", "question": "Next?", "answerA": "up", "answerB": "cry", "answerC": "fly", "label": "2"}, Question("Ann fell.\nNext?", ("up", "cry", "fly"), 1)),
        ({"sentence": "The _ is hot.", "option1": "sun", "option2": "moon", "answer": "1"}, Question("The _ is hot.", ("sun", "moon"), 0)),
        ({"question": "is it so", "passage": "It is.", "answer": True}, Question("It is.\nis it so", ("no", "yes"), 1)),
        ({"premise": "It rained.", "question": "effect", "choice1": "wet", "choice2": "dry", "label": 0}, Question("It rained.\nWhat happened as a result?", ("wet", "dry"), 0)),
    ],
)  # fmt: skip
def test_other_forms(row: dict[str, Any], question: Question) -> None:
    assert list(questions_of(row) or ()) == [question]


@pytest.mark.parametrize(
    "row",
    [
        {
            "question": "Which acid?",
            "distractor1": "b",
            "distractor2": "c",
            "distractor3": "d",
            "correct_answer": "a",
        },
        {"Question": "Why?", "Best Answer": "a", "Best Incorrect Answer": "b"},
        {"sentence_good": "a", "sentence_bad": "b"},
    ],
)
def test_right_answers_apart_from_wrong_ones_get_a_fixed_place(row: dict[str, Any]) -> None:
    (first,), (second,) = list(questions_of(row) or ()), list(questions_of(dict(row)) or ())
    assert first == second
    assert first.choices[first.answer_index] == "a"


def test_places_are_spread() -> None:
    rows = [
        {"question": f"Question {i}?", "distractor1": "b", "distractor2": "c", "correct_answer": "a"}
        for i in range(90)
    ]
    places = [question.answer_index for row in rows for question in questions_of(row) or ()]
    assert all(places.count(place) > 15 for place in range(3))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q?", "choices": ["a", "a"], "answer": 0},
        {"question": "Q?", "choices": ["a", ""], "answer": 0},
        {"question": "", "choices": ["a", "b"], "answer": 0},
        {"question": "Q?", "choices": ["a", "b"], "answer": 5},
        {"question": "Q?", "options": None, "label": "A"},
        {"ctx": "Then he", "endings": None, "label": 0},
        {"ctx": "Then he", "endings": "rows", "label": 0},
        {"question": "Q?", "choices": "abc", "answer": 0},
        {"question": "Q?", "choices": {"text": "ab", "label": ["A", "B"]}, "answerKey": "A"},
        {"question": "Q?", "choices": ["a", "b"], "answerKey": "A"},
        {"query": "Q?", "choices": "ab", "gold": 0},
        {"query": "Q?", "choices": ["a", "b"], "gold": [0, 1]},
        {"query": None, "choices": ["a", "b"], "gold": 0},
        {"question": "Q?", "passage": "P.", "answer": None},
        {"content": "It is #idiom#.", "candidates": "ab", "answer": 0},
        {"document": "D.", "questions": ["Why?"]},
    ],
)
def test_unusable_rows_give_no_question(row: dict[str, Any]) -> None:
    assert list(questions_of(row) or ()) == []


def test_unknown_forms_are_none_and_their_error_lists_the_fields() -> None:
    row = {"context": "604+432=", "continuation": "1036"}
    assert questions_of(row) is None
    error = unknown_question_form("x.parquet", row)
    assert "context, continuation" in error.message
    assert "answerKey" in error.hint

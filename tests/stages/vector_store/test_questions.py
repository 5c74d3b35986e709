"""Prose, names and held-out questions."""

from __future__ import annotations

import pytest

from stages.vector_store.corpus import Document
from stages.vector_store.prose import sentence_spans, summary_span, without_name
from stages.vector_store.questions import hold_out, part_of_name
from stages.whitebox.bm25 import split_terms

REST = "The wick soaks up the oil and the flame stands above it, so trim the wick every evening."


def summary(text: str) -> str | None:
    span = summary_span(text)
    return None if span is None else text[span[0] : span[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lamp burns oil for light. More.", "The lamp burns oil for light."),
        ("# lamp.light\n\n```python\nlight(oil)\n```\n\nBurn oil until the\nmorning comes. Then stop.",
         "Burn oil until the\nmorning comes."),
        ("Lamp\n====\n\nA lamp gives a steady light.", "A lamp gives a steady light."),
        ("PEP: 9\nTitle: Lamps\n\nThis text is about lamps and oil.", "This text is about lamps and oil."),
        (">>> light()\n\n- a list of things to do\n\nA sentence at last is here.",
         "A sentence at last is here."),
        ("灯塔建在长长的石堤尽头。起雾。", "灯塔建在长长的石堤尽头。"),
        ("Too short.\n\nx = 1", None),
        ("    indented code is not prose at all", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_summary_is_the_first_prose_sentence(text: str, expected: str | None) -> None:
    assert summary(text) == expected


def test_sentences_go_over_line_ends_but_not_over_paragraphs() -> None:
    text = "One sentence\nin two lines. Two.\n\nThree\n\n四。五"
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "One sentence\nin two lines.", "Two.", "Three", "四。", "五",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "title", "expected"),
    [
        ("os.open opens a file, see os.open_code.", "os.open", "opens a file, see os.open_code."),
        ("Ada Lovelace wrote the first program.", "Ada Lovelace", "wrote the first program."),
        ("灯塔建在石堤尽头。", "灯塔", "建在石堤尽头。"),
        ("Opens a file.", "", "Opens a file."),
    ],
)
def test_the_name_is_left_out(sentence: str, title: str, expected: str) -> None:
    assert without_name(sentence, title) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("email.message.get_payload", "get payload"),
        ("ZipFile", "zip file"),
        ("The Art of War", "of War"),
        ("监控化学品管理条例", "化学品管理条例"),
        ("", ""),
        ("___", ""),
    ],
)
def test_part_of_a_name(title: str, expected: str) -> None:
    assert part_of_name(title) == expected


def documents(count: int, validation: int) -> list[Document]:
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return [
        Document(
            f"d{n}",
            f"lamps.lamp_{n}",
            "validation" if n < validation else "train",
            f"This is lamp {numbers[n // 10]} and {numbers[n % 10]} of the house. {REST}",
        )
        for n in range(count)
    ]


def test_questions_come_from_the_validation_split_first() -> None:
    held_out = hold_out(documents(100, validation=30), num_questions=20)
    assert len(held_out.questions) == 20
    assert {question.document for question in held_out.questions} <= set(range(30))
    assert held_out.documents == frozenset(range(30))


def test_few_validation_documents_are_topped_up_to_a_quarter() -> None:
    held_out = hold_out(documents(100, validation=3), num_questions=60)
    assert len(held_out.questions) == len(held_out.documents) == 25
    assert {0, 1, 2} <= held_out.documents
    assert {question.document for question in held_out.questions} <= held_out.documents


def test_dev_and_test_and_both_kinds_alternate() -> None:
    questions = hold_out(documents(100, validation=40), num_questions=40).questions
    for split in ("dev", "test"):
        kinds = [question.kind for question in questions if question.split == split]
        assert kinds.count("named") == kinds.count("described") == 10


def test_a_question_names_its_hidden_sentence() -> None:
    rows = documents(40, validation=40)
    for question in hold_out(rows, 40).questions:
        document = rows[question.document]
        sentence = document.text[question.start : question.end]
        assert sentence.startswith("This is lamp") and sentence.endswith("house.")
        assert question.text == (f"lamp {question.document}: " * (question.kind == "named")) + sentence
        assert question.query_id("x") == f"x:{question.start}:{question.end}:{question.kind}"


def test_the_choice_does_not_depend_on_the_order_of_documents() -> None:
    rows = documents(60, validation=20)
    one = {rows[q.document].doc_id for q in hold_out(rows, 10).questions}
    other = {rows[::-1][q.document].doc_id for q in hold_out(rows[::-1], 10).questions}
    assert one == other


def test_ambiguous_and_empty_questions_are_not_asked() -> None:
    shared = Document("a", "x", "validation", f"Return the name of this very object. {REST}")
    again = Document("b", "y", "validation", f"Return the name of this very object! {REST} Again.")
    bare = Document("c", "z", "validation", "A sentence with nothing else behind it.")
    silent = Document("d", "w", "validation", "x = 1")
    held_out = hold_out([shared, again, bare, silent], 10)
    assert held_out.questions == []
    assert held_out.documents == frozenset(range(4))
    assert len(split_terms(bare.text)) < 12


def test_no_questions_wanted() -> None:
    assert hold_out(documents(20, validation=5), 0).questions == []

"""Pairs and questions that are made of the corpus: fair, balanced, and never with two right answers."""

from __future__ import annotations

from collections import Counter

import pytest

from stages.corpus_prep.benchmark_questions import Passage, continuation_questions, derive_questions
from stages.corpus_prep.derived_preferences import Answered, derive_pairs, pieces
from stages.corpus_prep.entries import Entry


def _entry(number: int, source: str = "a", kind: str = "function", sentence: str = "") -> Entry:
    title = f"{source}.name{number}"
    sentence = sentence or f"Do thing number {number} with the tools of {source}."
    signature = f"name{number}(x)" if kind == "function" else ""
    return Entry(f"{number:024x}", source, title, kind, "en", "validation", signature, sentence, "", "")


ENTRIES = [_entry(i, "ab"[i % 2]) for i in range(40)]


def test_questions_are_balanced_and_their_choices_differ() -> None:
    questions = derive_questions(ENTRIES, [], 40, seed=0)
    assert Counter(q.task for q in questions) == {"docs_describe": 20, "docs_name": 20}
    places = Counter(q.question.answer_index for q in questions)
    assert max(places.values()) - min(places.values()) <= 1
    by_id = {entry.doc_id: entry for entry in ENTRIES}
    for found in questions:
        right = found.question.choices[found.question.answer_index]
        assert len(set(found.question.choices)) == 4
        if found.task == "docs_name":
            assert right == by_id[found.doc_id].title
        else:
            assert right == by_id[found.doc_id].sentence
            assert by_id[found.doc_id].title in found.question.question
    assert derive_questions(ENTRIES, [], 40, seed=0) == questions


def test_wrong_choices_come_from_the_same_source() -> None:
    for found in derive_questions(ENTRIES, [], 40, seed=0):
        if found.task == "docs_name":
            assert len({choice.split(".")[0] for choice in found.question.choices}) == 1


def test_a_sentence_that_several_documents_share_is_no_answer() -> None:
    same = [_entry(i, sentence="Return the value of this thing here.") for i in range(100, 110)]
    questions = derive_questions([*ENTRIES, *same], [], 100, seed=0)
    assert not {q.doc_id for q in questions} & {entry.doc_id for entry in same}


def test_the_title_does_not_stand_in_the_right_answer() -> None:
    towns = [_entry(i, "wiki", "text", f"wiki.name{i} is a town of {i} thousand people.") for i in range(8)]
    for found in derive_questions(towns, [], 8, seed=0):
        assert found.task == "docs_describe"
        assert found.question.question.startswith("What is wiki.name")
        assert all(choice.startswith("It is a town") for choice in found.question.choices)


def test_too_few_held_out_documents_borrow_wrong_choices() -> None:
    assert derive_questions(ENTRIES[:2], [], 4, seed=0) == []
    borrowed = derive_questions(ENTRIES[:2], ENTRIES[2:12], 4, seed=0)
    assert {found.doc_id for found in borrowed} == {entry.doc_id for entry in ENTRIES[:2]}


def test_continuations_for_corpora_without_titles() -> None:
    passages = [Passage(f"{i:024x}", "a", "en", f"Opening {i}.", f"Following {i}.") for i in range(12)]
    questions = list(continuation_questions(passages, 8, seed=0))
    assert len(questions) == 8
    for found in questions:
        number = found.question.question.removeprefix("Opening ")
        assert found.question.choices[found.question.answer_index] == f"Following {number}"
    assert list(continuation_questions(passages[:3], 8, seed=0)) == []


def _answered(count: int) -> list[Answered]:
    return [
        Answered(str(i), "ab"[i % 2], f"This is the long right answer to question number {i}.")
        for i in range(count)
    ]


def test_pairs_of_four_kinds() -> None:
    answered = _answered(32)
    pairs = list(derive_pairs(answered, 64, seed=0))
    assert Counter(pair.kind for pair in pairs) == dict.fromkeys(
        ("wrong_answer", "truncated", "garbled", "repeating"), 16
    )
    answers = {item.answer: item for item in answered}
    for pair in pairs:
        assert pair.rejected != pair.of.answer
        if pair.kind == "wrong_answer":
            assert answers[pair.rejected].source == pair.of.source
        elif pair.kind == "truncated":
            assert pair.of.answer.startswith(pair.rejected)
            assert len(pair.rejected) < 0.75 * len(pair.of.answer)
        elif pair.kind == "repeating":
            assert _goes_in_circles(pair.rejected.split(), pair.of.answer.split())
        else:
            assert sorted(pair.rejected.split()) == sorted(pair.of.answer.split())
    assert list(derive_pairs(answered, 64, seed=0)) == pairs


def _goes_in_circles(words: list[str], answer: list[str]) -> bool:
    """Whether they begin as the answer does, are longer, and end with a few of its words twice at least."""
    same = next(i for i, (own, right) in enumerate(zip(words, [*answer, ""], strict=False)) if own != right)
    looped = any(words[-2 * span : -span] == words[-span:] for span in range(1, 5))
    return same > len(answer) // 2 and len(words) > 1.4 * len(answer) and looped


def test_short_answers_cannot_be_spoilt() -> None:
    assert list(derive_pairs([Answered("1", "a", "Yes.")], 5, seed=0)) == []


@pytest.mark.parametrize("text", ["one two three four five six", "湖边有一间木头小屋。", "a b"])
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert len(pieces(text)) > 1


def test_chinese_answers_are_broken_by_character() -> None:
    item = Answered("1", "a", "先把黄豆泡一个晚上，再磨成豆浆。")
    kinds = {pair.kind: pair.rejected for pair in derive_pairs([item], 4, seed=1)}
    assert sorted(kinds["garbled"]) == sorted(item.answer)
    assert item.answer.startswith(kinds["truncated"])
    assert " " not in kinds["repeating"]
    assert set(kinds["repeating"]) <= set(item.answer)

"""Multiple-choice questions in the forms of the known benchmarks, and in a plain one of the user's own.

Each form is told by its fields. Where a set gives the right answer apart from the wrong ones (SciQ), its
place among the choices comes from a hash of the question, so that no position is better than another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stages.corpus_prep.reading.messages import text_of
from stages.runtime.errors import UserError

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJ"

RECOGNISED = (
    "question choices answer (index, letter or text); question A B C D answer; query choices gold; "
    "question choices{text,label} answerKey; question options label; ctx endings label; "
    "goal sol1 sol2 label; question distractor1.. correct_answer; sentence option1 option2 answer; "
    "question passage answer (true/false)"
)


@dataclass(frozen=True)
class Question:
    """A question, at least two choices, and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer_index: int


Draft = tuple[str, list[Any], int | None]


def questions_of(row: Row) -> Iterator[Question] | None:
    """Questions of one row, or None where its fields are of no known form. Unusable rows give none."""
    for needed, convert in _FORMS:
        if all(name in row for name in needed):
            return iter(_converted(convert, row))
    return None


def _converted(convert: Callable[[Row], list[Draft]], row: Row) -> list[Question]:
    """All usable questions of a row; none where a field holds another kind of value than the form says."""
    try:
        return list(_usable(convert(row)))
    except (AttributeError, LookupError, TypeError, ValueError):
        return []


def unknown_question_form(where: str, row: Row) -> UserError:
    """The error for a row that `questions_of` does not know."""
    return UserError(
        f"{where} has fields of no known multiple-choice form: {', '.join(row)}",
        hint=f"recognised: {RECOGNISED}",
    )


def looks_like_benchmark(row: Row) -> bool:
    """Whether training data would swallow a benchmark: a question with its choices."""
    choices = {"choices", "options", "answerKey", "endings", "gold", "sol1", "distractor1"}
    return bool(choices & set(row)) or {"A", "B", "C", "D"} <= set(row)


def _usable(drafts: list[Draft]) -> Iterator[Question]:
    for question, choices, answer in drafts:
        texts = tuple(text_of(choice).strip() for choice in choices)
        sound = len(texts) >= 2 and all(texts) and len(set(texts)) == len(texts)
        if sound and question.strip() and isinstance(answer, int) and 0 <= answer < len(texts):
            yield Question(question.strip(), texts, answer)


def _index(answer: Any, labels: list[Any], choices: list[Any]) -> int | None:
    """Index of the right choice from a label ("B", "2"), from its text, or from an index."""
    if isinstance(answer, bool):
        return None
    if answer in labels:
        return labels.index(answer)
    if isinstance(answer, str) and answer.strip() in choices:
        return choices.index(answer.strip())
    if isinstance(answer, str) and answer.strip().upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.strip().upper())
    return int(answer) if str(answer).strip().isdigit() else None


def _place(key: str, right: str, wrong: list[str]) -> tuple[list[str], int]:
    """The right answer among the wrong ones, at a place that a hash of `key` chooses."""
    place = hashlib.sha256(key.encode()).digest()[0] % (len(wrong) + 1)
    return [*wrong[:place], right, *wrong[place:]], place


def _listed(value: Any) -> list[Any]:
    """The items of a list. Raises TypeError for anything else: a text would fall apart into letters."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return list(value)


def _with_context(context: Any, question: str) -> str:
    return f"{text_of(context).strip()}\n{question}" if text_of(context).strip() else question


def _query(row: Row) -> list[Draft]:
    question = re.sub(r"\A(?:Question|Q): |\n(?:Answer|A):\s*\Z", "", text_of(row["query"]))
    gold = row["gold"]
    answer = gold[0] if isinstance(gold, list) and len(gold) == 1 else gold
    return [(question, _listed(row["choices"]), answer)]


def _labelled(row: Row) -> list[Draft]:
    choices = row["choices"]
    question = text_of(row.get("question") or row.get("question_stem"))
    if isinstance(choices, Mapping):
        return [(question, _listed(choices["text"]), _index(row["answerKey"], _listed(choices["label"]), []))]
    labels = [choice.get("label") for choice in choices]
    return [(question, [choice.get("text") for choice in choices], _index(row["answerKey"], labels, []))]


def _lettered(row: Row) -> list[Draft]:
    letters = [letter for letter in LETTERS if text_of(row.get(letter))]
    answer = row.get("answer", row.get("Answer"))
    question = text_of(row.get("question", row.get("Question")))
    return [(question, [row[letter] for letter in letters], _index(answer, letters, []))]


def _plain(row: Row) -> list[Draft]:
    choices = [text_of(choice).strip() for choice in _listed(row["choices"])]
    return [
        (
            _with_context(row.get("context"), text_of(row["question"])),
            choices,
            _index(row["answer"], [], choices),
        )
    ]


def _options(row: Row) -> list[Draft]:
    options = [re.sub(r"\A\(?[A-J]\)[.\s]*", "", text_of(option)) for option in _listed(row["options"])]
    question = _with_context(row.get("passage"), text_of(row["question"]))
    return [(question, list(options), _index(row.get("label", row.get("answer")), [], options))]


def _endings(row: Row) -> list[Draft]:
    return [(text_of(row["ctx"]), _listed(row["endings"]), _index(row["label"], [], []))]


def _goal(row: Row) -> list[Draft]:
    return [(text_of(row["goal"]), [row["sol1"], row["sol2"]], _index(row["label"], [], []))]


def _social(row: Row) -> list[Draft]:
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    return [
        (
            _with_context(row["context"], text_of(row["question"])),
            choices,
            _index(row["label"], ["1", "2", "3"], []),
        )
    ]


def _distractors(row: Row) -> list[Draft]:
    question = text_of(row["question"])
    wrong = [
        text_of(row[name]) for name in sorted(row) if name.startswith("distractor") and text_of(row[name])
    ]
    choices, place = _place(question, text_of(row["correct_answer"]), wrong)
    return [(question, list(choices), place)]


def _sentence(row: Row) -> list[Draft]:
    return [
        (text_of(row["sentence"]), [row["option1"], row["option2"]], _index(row["answer"], ["1", "2"], []))
    ]


def _yes_no(row: Row) -> list[Draft]:
    verdicts = {"false": 0, "no": 0, "0": 0, "true": 1, "yes": 1, "1": 1}
    right = verdicts.get(str(row["answer"]).strip().lower())
    return [(_with_context(row["passage"], text_of(row["question"])), ["no", "yes"], right)]


def _cause_effect(row: Row) -> list[Draft]:
    ask = "What was the cause?" if row["question"] == "cause" else "What happened as a result?"
    return [
        (f"{text_of(row['premise'])}\n{ask}", [row["choice1"], row["choice2"]], _index(row["label"], [], []))
    ]


def _best_answers(row: Row) -> list[Draft]:
    question = text_of(row["Question"])
    choices, place = _place(question, text_of(row["Best Answer"]), [text_of(row["Best Incorrect Answer"])])
    return [(question, list(choices), place)]


def _minimal_pair(row: Row) -> list[Draft]:
    good, bad = text_of(row["sentence_good"]), text_of(row["sentence_bad"])
    choices, place = _place(good, good, [bad])
    return [("Which sentence is well formed?", list(choices), place)]


def _idiom(row: Row) -> list[Draft]:
    return [(text_of(row["content"]), _listed(row["candidates"]), _index(row["answer"], [], []))]


def _reading(row: Row) -> list[Draft]:
    """C3: one text with several questions."""
    drafts: list[Draft] = []
    for item in row["questions"] or []:
        choices = [text_of(choice).strip() for choice in _listed(item["choice"])]
        question = _with_context(row["document"], text_of(item["question"]))
        drafts.append((question, list(choices), _index(item["answer"], [], choices)))
    return drafts


#: Fields that a form needs, and its conversion; the first that fits counts.
_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row], list[Draft]]], ...] = (
    (("query", "choices", "gold"), _query),
    (("choices", "answerKey"), _labelled),
    (("question", "choices", "answer"), _plain),
    (("A", "B", "answer"), _lettered),
    (("A", "B", "Answer"), _lettered),
    (("question", "options"), _options),
    (("ctx", "endings", "label"), _endings),
    (("goal", "sol1", "sol2", "label"), _goal),
    (("context", "answerA", "answerB", "answerC", "label"), _social),
    (("question", "distractor1", "correct_answer"), _distractors),
    (("sentence", "option1", "option2", "answer"), _sentence),
    (("question", "passage", "answer"), _yes_no),
    (("premise", "choice1", "choice2", "label"), _cause_effect),
    (("Question", "Best Answer", "Best Incorrect Answer"), _best_answers),
    (("sentence_good", "sentence_bad"), _minimal_pair),
    (("candidates", "content", "answer"), _idiom),
    (("document", "questions"), _reading),
)

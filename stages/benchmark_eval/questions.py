"""The questions that all models get."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data_contracts.tables import read_rows
from stages.runtime.errors import UserError
from stages.whitebox.multiple_choice import Question


def draw_questions(folder: Path, max_questions: int, seed: int) -> tuple[list[Question], int]:
    """At most `max_questions` questions in the order of their ids, and how many there were to draw from.

    Which ones are drawn follows from a hash of seed and id alone: questions added to the benchmark later do
    not reshuffle the rest.

    Raises:
        UserError: a question has fewer than two choices, an empty one, or an answer that is none of them.
    """
    questions = [_question(row) for row in read_rows(folder)]
    drawn = sorted(questions, key=lambda question: _order(seed, question.question_id))[:max_questions]
    return sorted(drawn, key=lambda question: question.question_id), len(questions)


def _order(seed: int, question_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{question_id}".encode()).digest()


def _question(row: dict[str, object]) -> Question:
    question = Question(
        question_id=str(row["question_id"]),
        task=str(row["task"]),
        question=str(row["question"]),
        choices=tuple(row["choices"]),  # type: ignore[arg-type]
        answer_index=int(row["answer_index"]),  # type: ignore[call-overload]
    )
    num_choices = len(question.choices)
    if num_choices < 2 or not 0 <= question.answer_index < num_choices or not all(question.choices):
        raise UserError(
            f"question {question.question_id!r} has {num_choices} choices {list(question.choices)} and the "
            f"answer index {question.answer_index}",
            hint="give every question two or more choices that are not empty, and the index of one of them",
        )
    return question

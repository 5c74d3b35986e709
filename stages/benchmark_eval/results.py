"""From scores to rows: every figure with its interval, its baselines and a verdict in words.

A verdict never says more than the interval or the test does: "cannot tell apart" is a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.whitebox.document_scores import DocumentScores
from stages.whitebox.intervals import Interval, compare_paired, wilson_interval
from stages.whitebox.multiple_choice import (
    CHAT,
    LENGTHS,
    PLAIN,
    Question,
    Scores,
    best_constant,
    chance,
    predict,
)

Row = dict[str, Any]

ALL_TASKS = "all"
HELD_OUT = "held-out documents"
SIGNIFICANT = 0.05

COMPARISONS = (("sft", "base"), ("dpo", "sft"), ("int8", "dpo"), ("int4", "dpo"))
"""Each model with the one that it was made from."""

Answered = Mapping[tuple[str, str], Sequence[Scores]]
"""(model, protocol) -> the scores of all questions, in their order."""


@dataclass(frozen=True)
class Evaluation:
    """What all models scored."""

    questions: Sequence[Question]
    answered: Answered
    documents: Mapping[str, DocumentScores]
    window: str
    seed: int = 0
    _right: dict[tuple[str, str, str], NDArray[np.bool_]] = field(default_factory=dict)

    def right(self, model: str, protocol: str, metric: str) -> NDArray[np.bool_]:
        """Per question, whether the model's choice is the answer."""
        key = (model, protocol, metric)
        if key not in self._right:
            scores = self.answered[model, protocol]
            picks = [
                predict(s, q.choices, metric) == q.answer_index
                for s, q in zip(scores, self.questions, strict=True)
            ]
            self._right[key] = np.array(picks, dtype=bool)
        return self._right[key]

    def tasks(self) -> dict[str, list[int]]:
        """Indices of the questions of each task, and of all of them."""
        names = sorted({question.task for question in self.questions} - {ALL_TASKS})
        by_task = {name: [i for i, q in enumerate(self.questions) if q.task == name] for name in names}
        return by_task | {ALL_TASKS: list(range(len(self.questions)))}


def result_rows(evaluation: Evaluation) -> Iterator[Row]:
    """All rows of the results part, in a fixed order."""
    for model, scores in evaluation.documents.items():
        yield _bits_row(model, scores, evaluation)
    for first, second in COMPARISONS:
        if first in evaluation.documents and second in evaluation.documents:
            yield _bits_comparison(first, second, evaluation)
    if not evaluation.questions:
        return
    for model, protocol in evaluation.answered:
        for task, indices in evaluation.tasks().items():
            for metric in LENGTHS:
                yield _accuracy_row(model, protocol, task, indices, metric, evaluation)
    for metric in LENGTHS:
        for first, second, protocol in _comparable(evaluation.answered):
            yield _accuracy_comparison(first, second, protocol, metric, evaluation)


def prediction_rows(evaluation: Evaluation, metric: str) -> Iterator[Row]:
    """All rows of the predictions part: every choice's log-likelihood, and the choice taken by `metric`."""
    for (model, protocol), all_scores in evaluation.answered.items():
        for question, scores in zip(evaluation.questions, all_scores, strict=True):
            yield {
                "question_id": question.question_id,
                "task": question.task,
                "model": model,
                "protocol": protocol,
                "choice_log_likelihoods": [float(score) for score in scores],
                "answer_index": question.answer_index,
                "predicted_index": predict(scores, question.choices, metric),
            }


def accuracy_verdict(interval: Interval, by_chance: float, by_constant: float) -> str:
    """What an accuracy's interval says about guessing, and about always giving the same answer."""
    if interval.high < by_chance:
        return "below chance"
    if interval.low <= by_chance:
        return "not above chance"
    if interval.low <= by_constant:
        return "above chance, not above the best constant answer"
    return "above chance"


def comparison_verdict(first: str, second: str, difference: float, p_value: float) -> str:
    """Which of two models is better, or that the questions do not tell."""
    if p_value >= SIGNIFICANT:
        return f"cannot tell apart (p = {p_value:.2f})"
    better, other = (first, second) if difference > 0 else (second, first)
    return f"{better} better than {other} (p = {p_value:.3f})"


def _comparable(answered: Answered) -> Iterator[tuple[str, str, str]]:
    for first, second in COMPARISONS:
        for protocol in (PLAIN, CHAT):
            if (first, protocol) in answered and (second, protocol) in answered:
                yield first, second, protocol


def _accuracy_row(
    model: str, protocol: str, task: str, indices: Sequence[int], metric: str, evaluation: Evaluation
) -> Row:
    right = evaluation.right(model, protocol, metric)[indices]
    questions = [evaluation.questions[index] for index in indices]
    interval = wilson_interval(int(right.sum()), len(right))
    by_chance, by_constant = chance(questions), best_constant(questions)
    return {
        "model": model,
        "task": task,
        "protocol": protocol,
        "metric": metric,
        "value": float(right.mean()),
        "ci_low": interval.low,
        "ci_high": interval.high,
        "num_items": len(right),
        "chance": by_chance,
        "best_constant": by_constant,
        "verdict": accuracy_verdict(interval, by_chance, by_constant),
    }


def _accuracy_comparison(first: str, second: str, protocol: str, metric: str, evaluation: Evaluation) -> Row:
    result = compare_paired(
        evaluation.right(first, protocol, metric),
        evaluation.right(second, protocol, metric),
        seed=evaluation.seed,
    )
    return {
        "model": f"{first} - {second}",
        "task": ALL_TASKS,
        "protocol": protocol,
        "metric": f"{metric}_difference",
        "value": result.difference,
        "ci_low": result.interval.low,
        "ci_high": result.interval.high,
        "num_items": len(evaluation.questions),
        "verdict": comparison_verdict(first, second, result.difference, result.p_value),
    }


def _bits_row(model: str, scores: DocumentScores, evaluation: Evaluation) -> Row:
    interval = scores.interval(evaluation.seed)
    return {
        "model": model,
        "task": HELD_OUT,
        "protocol": evaluation.window,
        "metric": "bits_per_byte",
        "value": scores.bits_per_byte,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "num_items": len(scores.num_bytes_I),
        "verdict": "",
    }


def _bits_comparison(first: str, second: str, evaluation: Evaluation) -> Row:
    difference, interval = evaluation.documents[first].minus(evaluation.documents[second], evaluation.seed)
    if interval.contains(0.0):
        verdict = "cannot tell apart"
    else:
        better, other = (first, second) if difference < 0 else (second, first)
        verdict = f"{better} better than {other}"
    return {
        "model": f"{first} - {second}",
        "task": HELD_OUT,
        "protocol": evaluation.window,
        "metric": "bits_per_byte_difference",
        "value": difference,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "num_items": len(evaluation.documents[first].num_bytes_I),
        "verdict": verdict,
    }

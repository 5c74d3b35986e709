"""Rows and verdicts: every claim checked against counts that can be made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_contracts import BENCHMARK
from data_contracts.tables import write_part
from stages.benchmark_eval.questions import draw_questions
from stages.benchmark_eval.results import (
    Evaluation,
    accuracy_verdict,
    comparison_verdict,
    prediction_rows,
    result_rows,
)
from stages.runtime.errors import UserError
from stages.whitebox.document_scores import DocumentScores
from stages.whitebox.intervals import Interval, wilson_interval
from stages.whitebox.multiple_choice import CHAT, PLAIN, Question

CHOICES = ("one", "three", "seventeen", "four")


def questions(count: int) -> list[Question]:
    """Right answers are spread evenly; every fifth question is of another task."""
    return [
        Question(f"q{i:03d}", "other" if i % 5 == 0 else "main", f"How many? {i}", CHOICES, i % 4)
        for i in range(count)
    ]


def answers(items: Sequence[Question], is_right: Callable[[int], bool]) -> list[np.ndarray[Any, Any]]:
    """Scores that pick the answer where `is_right` says so, and the next choice elsewhere."""
    scores = []
    for index, item in enumerate(items):
        pick = item.answer_index if is_right(index) else (item.answer_index + 1) % 4
        score = np.full(4, -100.0)
        score[pick] = -1.0
        scores.append(score)
    return scores


@pytest.fixture
def evaluation() -> Evaluation:
    items = questions(100)
    answered = {
        ("base", PLAIN): answers(items, lambda i: i % 4 == 0),
        ("sft", PLAIN): answers(items, lambda i: i % 4 != 0),
        ("sft", CHAT): answers(items, lambda i: i < 70),
        ("dpo", CHAT): answers(items, lambda i: i < 71),
    }
    num_bytes = np.full(50, 100)
    bits = np.random.default_rng(0).normal(200, 20, size=50)
    documents = {
        "base": DocumentScores(bits * np.log(2), num_bytes),
        "sft": DocumentScores((bits + 5) * np.log(2), num_bytes),
        "dpo": DocumentScores((bits + 5 + np.resize([1, -1], 50)) * np.log(2), num_bytes),
    }
    return Evaluation(items, answered, documents, "windows of 64 tokens")


def row(evaluation: Evaluation, **wanted: str) -> dict[str, Any]:
    (found,) = [r for r in result_rows(evaluation) if all(r[name] == value for name, value in wanted.items())]
    return found


def test_an_accuracy_comes_with_interval_baselines_and_protocol(evaluation: Evaluation) -> None:
    found = row(evaluation, model="sft", protocol=PLAIN, task="all", metric="acc_norm")
    assert (found["value"], found["num_items"]) == (0.75, 100)
    assert (found["ci_low"], found["ci_high"]) == wilson_interval(75, 100)
    assert (found["chance"], found["best_constant"]) == (0.25, 0.25)
    assert found["verdict"] == "above chance"
    assert row(evaluation, model="base", task="all", metric="acc")["verdict"] == "not above chance"


def test_tasks_are_reported_apart_and_together(evaluation: Evaluation) -> None:
    accuracies = [r for r in result_rows(evaluation) if r["model"] == "base" and r["metric"] == "acc"]
    found = {r["task"]: r["num_items"] for r in accuracies}
    assert found == {"main": 80, "other": 20, "all": 100}


def test_models_are_compared_within_a_protocol_on_the_same_questions(evaluation: Evaluation) -> None:
    gained = row(evaluation, model="sft - base", metric="acc_difference")
    assert gained["protocol"] == PLAIN and gained["value"] == pytest.approx(0.5)
    assert gained["verdict"].startswith("sft better than base (p = 0.000")
    lucky = row(evaluation, model="dpo - sft", metric="acc_difference")
    assert lucky["protocol"] == CHAT and lucky["value"] == pytest.approx(0.01)
    assert lucky["ci_low"] <= 0.01 <= lucky["ci_high"]
    assert lucky["verdict"] == "cannot tell apart (p = 1.00)"


def test_bits_per_byte_is_compared_document_by_document(evaluation: Evaluation) -> None:
    assert row(evaluation, model="base", metric="bits_per_byte")["value"] == pytest.approx(2.0, abs=0.1)
    worse = row(evaluation, model="sft - base", metric="bits_per_byte_difference")
    assert worse["value"] == pytest.approx(0.05) and worse["verdict"] == "base better than sft"
    equal = row(evaluation, model="dpo - sft", metric="bits_per_byte_difference")
    assert equal["ci_low"] < 0 < equal["ci_high"] and equal["verdict"] == "cannot tell apart"
    assert equal["protocol"] == "windows of 64 tokens"


def test_predictions_hold_every_choice(evaluation: Evaluation) -> None:
    rows = list(prediction_rows(evaluation, "acc"))
    assert len(rows) == 4 * 100
    first = rows[0]
    assert (first["model"], first["protocol"], first["question_id"]) == ("base", PLAIN, "q000")
    assert first["choice_log_likelihoods"] == [-1.0, -100.0, -100.0, -100.0]
    assert (first["answer_index"], first["predicted_index"]) == (0, 0)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.1, 0.2), "below chance"),
        (Interval(0.2, 0.3), "not above chance"),
        (Interval(0.25, 0.5), "not above chance"),
        (Interval(0.26, 0.5), "above chance, not above the best constant answer"),
        (Interval(0.31, 0.5), "above chance"),
    ],
)
def test_verdicts_say_no_more_than_the_interval(interval: Interval, verdict: str) -> None:
    assert accuracy_verdict(interval, 0.25, 0.30) == verdict


def test_comparisons_name_the_better_one() -> None:
    assert comparison_verdict("a", "b", -0.2, 0.01) == "b better than a (p = 0.010)"
    assert comparison_verdict("a", "b", 0.2, 0.05) == "cannot tell apart (p = 0.05)"


def benchmark_part(folder: Path, items: Sequence[Question]) -> Path:
    rows = [{**vars(item), "choices": list(item.choices), "source": "test"} for item in items]
    write_part(folder, BENCHMARK, rows)
    return folder


def test_the_draw_depends_on_seed_and_ids_only(tmp_path: Path) -> None:
    items = questions(60)
    drawn, available = draw_questions(benchmark_part(tmp_path / "a", items), 20, seed=1)
    assert available == 60 and len(drawn) == 20
    assert [q.question_id for q in drawn] == sorted(q.question_id for q in drawn)
    assert draw_questions(benchmark_part(tmp_path / "b", items[::-1]), 20, seed=1)[0] == drawn
    assert draw_questions(tmp_path / "a", 20, seed=2)[0] != drawn
    # A question that is taken out of the benchmark costs at most its own place.
    fewer = [item for item in items if item.question_id != drawn[0].question_id]
    kept = draw_questions(benchmark_part(tmp_path / "c", fewer), 20, seed=1)[0]
    assert set(drawn[1:]) < set(kept)


@pytest.mark.parametrize(
    ("choices", "answer"), [(("only",), 0), (("a", "b"), 2), (("a", "b"), -1), (("a", ""), 0)]
)
def test_a_question_that_cannot_be_answered_is_named(
    choices: tuple[str, ...], answer: int, tmp_path: Path
) -> None:
    bad = Question("q-bad", "main", "?", choices, answer)
    with pytest.raises(UserError, match="question 'q-bad' has") as failure:
        draw_questions(benchmark_part(tmp_path, [bad]), 5, seed=0)
    assert "two or more choices" in failure.value.hint

"""Tasks: right by the calculator, disjoint where they must be, the same for the same seed."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from data_contracts import AGENT_SCENARIOS
from data_contracts.tables import write_part
from stages.dpo.arithmetic_tasks import Task, TrainingTasks, draw_task, held_out_tasks, scenario_expressions
from stages.whitebox.arithmetic_requests import CALCULATOR, THEN_CALCULATE


def drawn(tasks: TrainingTasks, number: int, count: int) -> list[Task]:
    return list(itertools.islice(tasks.draw(number), count))


def test_answers_are_what_python_says() -> None:
    rng = random.Random(1)
    for _ in range(300):
        task = draw_task(rng, "seen", 0.5, frozenset())
        value = eval(task.expressions[-1])  # the test's own arithmetic, nothing from outside
        assert abs(float(task.answer) - value) <= 1e-5 * abs(value) + 1e-9
        assert task.expressions[0] in task.prompt
        if len(task.expressions) == 2:
            first = eval(task.expressions[0])
            assert task.expressions[1].startswith(str(int(first)))


def test_no_expression_is_in_training_and_held_out() -> None:
    reserved = frozenset({"2+3", "7*8", "5-4"})
    held_out = held_out_tasks(300, seed=3, multi_step_fraction=0.3, reserved=reserved)
    used = {expression for task in held_out for expression in task.expressions}
    assert sum(len(task.expressions) for task in held_out) == len(used)  # nor twice among them
    assert not used & reserved
    training = [
        t for number in range(20) for t in drawn(TrainingTasks(3, 0.3, 0.5, used | reserved), number, 50)
    ]
    assert not (used | reserved) & {expression for task in training for expression in task.expressions}
    assert not {task.prompt for task in training} & {task.prompt for task in held_out}
    assert 0.2 < sum(len(task.expressions) == 2 for task in training) / len(training) < 0.4


def test_half_of_the_held_out_tasks_are_phrased_as_none_in_training() -> None:
    held_out = held_out_tasks(100, 0, 0.2, frozenset())
    assert [task.phrasing for task in held_out] == ["seen", "unseen"] * 50
    assert {task.phrasing for task in drawn(TrainingTasks(0, 0.2, 0.5, frozenset()), 0, 50)} == {
        "seen",
        "rewarded",
    }
    for family in (CALCULATOR, THEN_CALCULATE):
        assert not set(family.unseen) & {*family.seen, *family.rewarded}


def test_a_draw_follows_from_seed_and_number() -> None:
    tasks = TrainingTasks(5, 0.2, 0.5, frozenset())
    assert drawn(tasks, 4, 9) == drawn(TrainingTasks(5, 0.2, 0.5, frozenset()), 4, 9)
    assert drawn(tasks, 4, 9) != drawn(tasks, 5, 9) != drawn(TrainingTasks(6, 0.2, 0.5, frozenset()), 5, 9)


def test_what_scenarios_calculate(tmp_path: Path) -> None:
    calls = [
        {"name": "lookup", "arguments": {"symbol": "re.sub"}},
        {"name": "calculator", "arguments": {"expression": "6*7"}},
    ]
    row = {
        "scenario_id": "1",
        "family": "multi_step",
        "phrasing": "seen",
        "prompt": "?",
        "expected_calls": json.dumps(calls),
        "expected_answer": "42",
    }
    write_part(tmp_path, AGENT_SCENARIOS, [row, {**row, "scenario_id": "2", "expected_calls": "[]"}])
    assert scenario_expressions(tmp_path) == {"6*7"}

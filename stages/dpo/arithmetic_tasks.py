"""Calculations whose answers a program can judge, in the phrasings of the training conversations.

Held-out tasks are drawn first, and training tasks use none of their expressions; neither uses one of the
agent's scenarios, which test the finished model. Half of the held-out tasks are phrased as no training ever
phrases them; training tasks are phrased as conversations are, or in ways of their own: a reward needs no
model answer, so it can teach what nobody wrote down.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from data_contracts.tables import read_rows
from stages.whitebox.arithmetic_requests import (
    CALCULATOR,
    CHANGES,
    PREFIXES,
    THEN_CALCULATE,
    Phrasings,
    random_expression,
)
from stages.whitebox.tool_results import calculate

SHORT_NUMBER = re.compile(r"-?\d{1,6}")


@dataclass(frozen=True)
class Task:
    """A request, the calculations that serve it in their order, and the number that answers it."""

    prompt: str
    expressions: tuple[str, ...]
    answer: str
    phrasing: str
    """ "seen" as in conversations, "rewarded" as in training tasks alone, or "unseen" in all training."""


def held_out_tasks(
    count: int, seed: int, multi_step_fraction: float, reserved: AbstractSet[str]
) -> list[Task]:
    """`count` different tasks, every second with an unseen phrasing; none uses what is `reserved`."""
    rng = random.Random(f"{seed}/held out")
    used = set(reserved)
    tasks = []
    for number in range(count):
        task = draw_task(rng, ("seen", "unseen")[number % 2], multi_step_fraction, used)
        used.update(task.expressions)
        tasks.append(task)
    return tasks


@dataclass(frozen=True)
class TrainingTasks:
    """Tasks without end; which ones a draw gives follows from the seed and its number alone."""

    seed: int
    multi_step_fraction: float
    own_phrasings_fraction: float
    reserved: AbstractSet[str]

    def draw(self, number: int) -> Iterator[Task]:
        """The tasks of the draw `number`, one after the other."""
        rng = random.Random(f"{self.seed}/training/{number}")
        while True:
            phrasing = "rewarded" if rng.random() < self.own_phrasings_fraction else "seen"
            yield draw_task(rng, phrasing, self.multi_step_fraction, self.reserved)


def draw_task(
    rng: random.Random, phrasing: str, multi_step_fraction: float, reserved: AbstractSet[str]
) -> Task:
    """A calculation, or one and then another on its result."""
    while True:
        is_multi_step = rng.random() < multi_step_fraction
        task = (_two_steps if is_multi_step else _one_step)(rng, phrasing)
        if task is not None and reserved.isdisjoint(task.expressions):
            return task


def _one_step(rng: random.Random, phrasing: str) -> Task:
    expression = random_expression(rng)
    prompt = _ask(rng, CALCULATOR, phrasing, expression=expression)
    return Task(prompt, (expression,), calculate(expression), phrasing)


def _two_steps(rng: random.Random, phrasing: str) -> Task | None:
    expression, sign = random_expression(rng), rng.choice(sorted(CHANGES))
    first, number = calculate(expression), rng.randint(2, 9 if sign == "*" else 99)
    if not SHORT_NUMBER.fullmatch(first):
        return None  # a long or broken number is no fun to calculate with
    second = f"{first}{sign}{number}"
    change = CHANGES[sign].format(number=number)
    prompt = _ask(rng, THEN_CALCULATE, phrasing, expression=expression, change=change)
    return Task(prompt, (expression, second), calculate(second), phrasing)


def _ask(rng: random.Random, phrasings: Phrasings, phrasing: str, **arguments: str) -> str:
    return rng.choice(PREFIXES) + rng.choice(phrasings.of(phrasing)).format(**arguments)


def scenario_expressions(folder: Path) -> frozenset[str]:
    """What the agent's scenarios calculate."""
    calls = (json.loads(row["expected_calls"]) for row in read_rows(folder, ["expected_calls"]))
    return frozenset(_expressions_of(call for row in calls for call in row))


def _expressions_of(calls: Iterable[dict[str, dict[str, str]]]) -> Iterator[str]:
    return (call["arguments"]["expression"] for call in calls if "expression" in call["arguments"])
